"""Tables of what is to be had from a model."""

from __future__ import annotations

from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.layout import FAINT, Tables, change, count, heading, left, paragraph, right, si, table
from onnxprune.report.summary import ModelSummary
from onnxprune.workflow.outlook import Outlook


def outlook_tables(found: Outlook, summary: ModelSummary) -> Tables:
    """Show what cleaning, pruning and INT8 weights would bring."""
    cleaning, pruning = found.cleaning, found.pruning
    (before, cleaned), (params, kept) = cleaning.bytes, cleaning.params
    figures = change(before, cleaned), change(params, kept), "0.0 %"
    rows = [("cleaning", si(cleaned, "B"), *figures, _time(found.cleaned_time))]
    if pruning is not None:
        after = pruning.cost
        figures = change(before, pruning.bytes), change(params, after.params), change(summary.cost.macs, after.macs)
        rows.append(("pruning", si(pruning.bytes, "B"), *figures, _time(found.pruned_time)))
    if found.int8 is not None:
        rows.append(("INT8 weights", si(found.int8, "B"), change(before, found.int8), "0.0 %", "0.0 %", ""))
    timed = ["time on the CPU"] if found.cleaned_time is not None else [""]
    yield heading("to be had", "estimates, each alone")
    yield table(left("") + right("file", "change", "parameters", "MACs", *timed), rows)
    if cleaning.nodes is not None and cleaning.nodes[0] != cleaning.nodes[1]:
        yield paragraph(f"Cleaning brings {count(cleaning.nodes[0], 'node')} to {cleaning.nodes[1]:,}.", FAINT)
    if cleaning.weights_as_inputs:
        weights = count(cleaning.weights_as_inputs, "weight")
        yield paragraph(
            f"{weights} can be replaced by callers, as they are inputs of the graph, too. ONNX Runtime can't fold such"
            " weights, which makes many networks slower. Cleaned models don't have such inputs; the command `clean`"
            " makes one."
        )
    if pruning is not None:
        yield paragraph("Pruning removes the same share of every group, down to half of the MACs if possible.", FAINT)
    if found.cleaned_time is None:
        yield paragraph("The option `measure` times the model as it is, cleaned and pruned.", FAINT)


def _time(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"

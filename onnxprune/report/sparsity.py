"""Tables and fields of a model that was made sparse."""

from __future__ import annotations

from collections import Counter
from typing import Any

from onnxprune.evaluation.fidelity import fidelity
from onnxprune.report.documents import pick
from onnxprune.report.evaluation import evaluation_tables, left_out_tables
from onnxprune.report.layout import (
    CODE,
    FAINT,
    Name,
    Tables,
    change,
    count,
    flexible,
    heading,
    left,
    line,
    paragraph,
    percent,
    right,
    si,
    table,
)
from onnxprune.report.outcome import answers_line
from onnxprune.settings.sparsity import SparsifySettings
from onnxprune.sparsity.runtimes import RUNTIMES
from onnxprune.workflow.pruning import Pruned
from onnxprune.workflow.sparsifying import Sparsified

_WHERE = {"file": "as it is", "zlib": "compressed by zlib", "zstd": "compressed by zstd", "packed": "packed"}
_LEFT = {"macs": "MACs", "params": "parameters"}
_TOLD = 0.01  # share of zeros of the original from which on they are told
NO_FASTER = ": what is won is bytes to download, and time on runtimes that use them"


def sparsity_fields(result: Sparsified, settings: SparsifySettings) -> dict[str, Any]:
    """Return what a document contains of a sparse model."""
    runtimes: dict[str, dict[str, Any]] = {}
    for each in result.eligible:
        runtimes.setdefault(each.node, {})[each.runtime] = pick(each, "use", "why")
    sizes = {name: dict(zip(("before", "after"), both, strict=True)) for name, both in result.sizes.items()}
    layers = [
        {
            **pick(layer, "node", "operator", "weight", "size", "zeros", "error"),
            "runtimes": runtimes.get(layer.node, {}),
        }
        for layer in result.layers
    ]
    return {
        "pattern": str(settings.pattern),
        **pick(result, "method", "zeros", "judged", "samples", "dense"),
        "sparse_layers": layers,
        "sizes": sizes,
        "file_size": sizes["file"],
        "limit": result.limit,
        "tried": result.tried,
        "channels": None if result.pruned is None else _removed(result.pruned),
        "evaluation": result.evaluation,
    }


def _removed(pruned: Pruned) -> dict[str, Any]:
    proof = pruned.verification
    return {**pick(pruned.plan, "before", "after"), "error": None if proof is None else proof.error}


def sparsity_tables(result: Sparsified, settings: SparsifySettings, *, every: bool) -> Tables:
    """Show what was set to zero, which runtimes use it, the sizes, and what was lost.

    Args:
        result: the result.
        settings: the settings.
        every: whether to show every layer.
    """
    yield from left_out_tables("stay dense", result.dense)
    if every:
        yield heading("sparse layers")
        rows = (
            (
                Name(layer.node),
                layer.operator,
                f"{layer.size:,}",
                percent(layer.zeros / layer.size),
                "" if layer.error is None else f"{layer.error:.3f}",
            )
            for layer in result.layers
        )
        yield table(flexible("node") + left("operator") + right("weights", "zero", "error"), rows)
    if result.evaluation is not None:
        yield from evaluation_tables(result.evaluation)
    yield from _runtimes(result)
    yield heading("size")
    yield table(
        left("") + right("before", "after", "change"),
        ((_WHERE[name], si(a, "B"), si(b, "B"), change(a, b)) for name, (a, b) in result.sizes.items()),
    )
    if result.limit is not None:
        yield paragraph(f"{si(int(result.limit), 'B')} are allowed for the packed file")
    yield from _channels(result)
    weights = sum(layer.size for layer in result.layers)
    by = f"{settings.pattern} by {result.method}"
    solved = f", solved on {count(result.samples, 'sample')}" if result.samples and settings.recover != "none" else ""
    said = f"{percent(result.zeros)} of {si(weights)} weights in {count(len(result.layers), 'layer')} are zero"
    if (already := sum(layer.already for layer in result.layers) / weights) > _TOLD:
        said += f" ({percent(already)} were before)"
    yield paragraph(f"{said}, {by}{solved}; checked: only these weights changed, and as they were solved for")
    if not result.samples:
        yield paragraph(line(("accuracy isn't considered", CODE), ": weights are chosen by magnitude. Give `data`"))
    if (close := None if result.evaluation is None else fidelity(result.evaluation)) is not None:
        yield answers_line(close, result.judged)
    yield paragraph(line(("ONNX Runtime runs zeros no faster", CODE), NO_FASTER))


def _channels(result: Sparsified) -> Tables:
    """Show what removing channels would bring within the same packed bytes, and what was removed."""
    if len(result.tried) > 1:
        yield heading("channels first", "within the same packed bytes, tried on a part of the samples")
        rows = (
            (percent(each.channels), percent(each.zeros), f"{each.error:.3g}", "" if each.error > best else "taken")
            for best in [min(each.error for each in result.tried)]
            for each in result.tried
        )
        yield table(right("weights in channels", "zeros in the rest", "error") + left(""), rows)
    if result.pruned is not None:
        plan, proof = result.pruned.plan, result.pruned.verification
        left_over = " and ".join(f"{percent(plan.after[n] / plan.before[n])} of the {w}" for n, w in _LEFT.items())
        proved = "" if proof is None else f"; proved: error {proof.error:.2g}, allowed {proof.tolerance:.2g}"
        yield paragraph(f"channels were removed first, which leaves {left_over}{proved}")


def _runtimes(result: Sparsified) -> Tables:
    """Show for each runtime how many layers' zeros it uses, and why not those of the others."""
    yield heading("who uses the zeros", "by what is known of the runtimes, not measured; -v shows every layer")
    rows = []
    for facts in RUNTIMES:
        own = [each for each in result.eligible if each.runtime == facts.name]
        uses = Counter((each.use, each.why) for each in own)
        for (use, why), number in uses.most_common():
            rows.append((facts.name, use, f"{number} of {len(own)}", why))
    yield table(left("runtime", "") + right("layers") + flexible("why"), rows)
    yield paragraph("Sources are in the guide to sparse models.", FAINT)

"""Tables of proofs and comparisons with the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite
from statistics import fmean

from rich.text import Text

from onnxprune.recover import Repair
from onnxprune.report.checks import Check
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Cell,
    Name,
    Tables,
    count,
    flexible,
    heading,
    left,
    line,
    paragraph,
    right,
    table,
)
from onnxprune.rewrite.comparison import Comparison, Link
from onnxprune.rewrite.verify import Verification
from onnxprune.rewrite.weights import WeightCheck
from onnxprune.train.finetune import FineTuned
from onnxprune.workflow.pruning import Pruned

_MANY = 6  # nodes that are listed


def comparison_tables(comparison: Comparison) -> Tables:
    """Show whether a pruned model is right, and how that was checked."""
    if comparison.changes:
        yield heading("interface")
        yield from map(paragraph, comparison.changes)
    elif comparison.verification is not None:
        yield from _verification(comparison)
        if comparison.weights is not None:
            yield from _weights(comparison.weights)
        for name, wrong in comparison.broken.items():
            yield paragraph(line(("zeros are gone", BAD), f": weight {name}: {wrong}"))
    elif comparison.distances is None:
        yield heading("verification")
        yield paragraph("not proved: verification was skipped", CODE)
    if comparison.distances is not None:
        yield from _distances(comparison)
    yield from map(paragraph, comparison.notes)


def proof_checks(proof: Verification | None) -> tuple[Check, ...]:
    """Return the proof of a rewriting as a check; none if it was skipped."""
    if proof is None:
        return ()
    return (Check("rewriting", proof.passed, f"error {proof.error:.2g}, allowed {proof.tolerance:.2g}"),)


def comparison_checks(found: Comparison) -> tuple[Check, ...]:
    """Return what a comparison checked."""
    checks = [Check("interface", not found.changes, found.changes[0] if found.changes else "the same")]
    checks.extend(proof_checks(found.verification))
    if found.weights is not None:
        wrong = [*found.weights.missing, *found.weights.altered, *found.weights.not_finite]
        text = f"wrong: {', '.join(wrong[:_MANY])}" if wrong else "slices of the original, or as they were left"
        checks.append(Check("weights", found.weights.passed, text))
    if found.broken:
        checks.append(Check("zeros", False, "; ".join(f"{name}: {wrong}" for name, wrong in found.broken.items())))
    if found.distances is not None:
        largest = max((d.difference for d in found.distances), default=0.0)
        sound = found.agree is not False and all(d.sound for d in found.distances)
        checks.append(Check("outputs", sound, f"they differ by {largest:.2g}"))
    return tuple(checks)


def proof_tables(pruned: Pruned, repairs: Sequence[Repair] = (), tuned: FineTuned | None = None) -> Tables:
    """Say in a line how the rewriting was proved and what was done then, and list what couldn't be proved.

    Args:
        pruned: the model with its proof.
        repairs: the error of each repaired layer before and after.
        tuned: how the model was trained after that; None if it wasn't.
    """
    yield line("")
    proof, then = pruned.verification, list[str]()
    if repairs:
        before, after = (fmean(getattr(repair, when) for repair in repairs) for when in ("before", "after"))
        outputs = f"whose outputs' mean error fell from {before:.3f} to {after:.3f}"
        then.append(f"repaired {count(len(repairs), 'layer')}, {outputs}")
    if tuned is not None and tuned.kept == "after":
        then.append("trained")
        if tuned.before is not None and tuned.after is not None and tuned.metric is not None:
            was, now = (e[tuned.metric].model.value for e in (tuned.before, tuned.after))
            then[-1] += f", by which {tuned.metric} on samples held back went from {was:.3g} to {now:.3g}"
    if proof is None:
        yield paragraph("not proved: verification was skipped", CODE)
        return
    yield from _links(pruned.links)
    partly = ("rewriting proved in part", CODE) if proof.unproved else ("rewriting proved", GOOD)
    said = [
        f"error {proof.error:.2g}, allowed {proof.tolerance:.2g}",
        *(["then " + " and ".join(then)] if then else []),
    ]
    yield paragraph(line(partly, f": {'; '.join(said)}"))
    yield from _gaps(proof)


def _links(links: Sequence[Link]) -> Tables:
    """Say how changes of the whole network were proved, a line each."""
    for link in links:
        yield paragraph(line((f"{link.what} proved", GOOD), f": error {link.error:.2g}"))


def _verification(comparison: Comparison) -> Tables:
    v, weights = comparison.verification, comparison.weights
    assert v is not None
    yield heading("verification")
    rows = [(Name(o.name), f"{o.error:.2g}", f"{o.change:.2g}" if isfinite(o.change) else "differs") for o in v.outputs]
    yield table(flexible("output") + right("error", "change by pruning"), rows)
    yield from _links(comparison.links)
    partly = ("rewriting proved in part", CODE) if v.unproved else ("rewriting proved", GOOD)
    outcome = partly if v.passed else ("rewriting NOT right", BAD)
    before = "" if weights is None else " The weights changed since were put back for this."
    inputs = "your inputs" if v.seed is None else f"generated inputs, seed {v.seed}"
    if v.steps > 1:
        inputs += f", in {v.steps} steps that pass the states on"
    meaning = (
        f": compared with the original whose removed weights are set to zero, on {inputs}."
        f" Error {v.error:.2g}, allowed {v.tolerance:.2g}, relative to an output's largest value.{before}"
    )
    yield paragraph(line(outcome, meaning))
    yield from _gaps(v)


def _gaps(v: Verification) -> Tables:
    """Say what a reader of a proof must know, and which nodes it doesn't cover."""
    yield from map(paragraph, v.notes)
    if v.unproved:
        yield paragraph("The tensors above are where the part ends that ONNX Runtime's CPU provider runs. Not proved:")
        rows = [(Name(n.node), n.operator, n.cause) for n in v.unproved[:_MANY]]
        yield table(flexible("node", "operator", "why"), rows)
        if len(v.unproved) > _MANY:
            yield paragraph(f"and {count(len(v.unproved) - _MANY, 'more node')}", FAINT, indent=4)


def _weights(found: WeightCheck) -> Tables:
    """Show where a model's weights come from, and those that aren't what they should be."""
    kinds = Counter(found.changed.values())
    wrong = [*found.missing, *found.altered, *found.not_finite]
    yield heading("weights")
    rows: list[Sequence[Cell]] = [("slices of the original", str(found.slices), "")]
    for by, number in kinds.items():
        since = sum(found.changed.get(name) == by for name in set(wrong))
        rows.append((f"changed by {', then '.join(by)}", str(number), "" if since else "as they were left"))
    for names, what in ((found.altered, "altered since"), (found.missing, "missing"), (found.not_finite, "not finite")):
        if names:
            shown = ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")
            rows.append((Text(what, BAD), str(len(names)), Name(shown)))
    yield table(left("") + right("") + flexible(""), rows)


def _distances(comparison: Comparison) -> Tables:
    yield heading("comparison", "difference relative to the original's largest value")
    rows = (
        (
            Name(d.name),
            f"{d.difference:.2g}",
            "-" if d.cosine is None else f"{d.cosine:.4f}",
            "" if d.sound else Text("another shape, or not finite", BAD),
        )
        for d in comparison.distances or ()
    )
    yield table(flexible("output") + right("difference", "cosine") + left(""), rows)
    if comparison.weights is not None:
        yield paragraph("Weights changed since change the outputs by design.", FAINT)
        return
    outcome = ("The outputs agree", GOOD) if comparison.agree else ("The outputs differ", BAD)
    meaning = f"; {comparison.tolerance:.2g} is allowed. Nothing is proved: that needs the `plan`."
    yield paragraph(line(outcome, meaning))

"""Sections of what was measured: costs, latencies, accuracies, proofs and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite

from onnxprune.report.layout import change, count, dims, milliseconds, share, si
from onnxprune.report.page.parts import Cell, Grid, Interval, Intervals, Part, Row, Said, Tone
from onnxprune.report.page.reading import (
    Accuracy,
    Fields,
    Stage,
    accuracies,
    estimate,
    factor,
    interval,
    metric_title,
    named,
    number,
)

COSTS = {"params": ("parameters", ""), "macs": ("MACs", ""), "size": ("weights", "B"), "memory": ("activations", "B")}
"""Titles and units of costs."""

_UNITS: Mapping[str, Callable[[float], str]] = {
    "number": lambda v: f"{v:z.4g}",
    "share": lambda v: f"{v:z.2%}",
    "factor": lambda v: f"{v:.2f}x",
    "bytes": lambda v: si(round(v), "B"),
}


def costs(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show parameters, MACs and bytes before and after."""
    for stage in stages:
        if not stage.get("cost", "before") and not (stage.top and stage.sizes and not stage.get("cases")):
            continue
        before, after = (stage.get("cost", side) or {} for side in ("before", "after"))
        rows = [
            _before_after(title, before[key], after[key], unit)
            for key, (title, unit) in COSTS.items()
            if key in before and key in after
        ]
        if stage.sizes:
            rows.append(_before_after("file", *stage.sizes, "B"))
        shapes = _shapes(stage.get("counted_at") or {})
        note = f"Counted at {shapes}. Activations are the peak of what is alive at once." if shapes else ""
        if not stage.top:
            note = f"Before is the model that {stage.name} began with. {note}".strip()
        yield Grid(named("Costs", stage, stages), ("", ">before", ">after", ">change"), rows, note)


def _before_after(title: str, before: int, after: int, unit: str) -> Row:
    left = share(after, before)
    return title, si(before, unit), si(after, unit), Cell(change(before, after), left)


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {dims(shape)}" for name, shape in shapes.items())


def latencies(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the times of runs."""
    for stage in stages:
        for case in stage.get("cases") or ():
            yield _case(case, stage, stages)
        if stage.top and (speed := stage.speed):
            yield _speed(speed, named(f"Latency on {speed['provider']}", stage, stages))
        elif why := stage.get("outcome", "untimed"):
            yield Said(named(f"The speed wasn't measured: {why}.", stage, stages), "warn")
        if changes := stage.get("changes"):
            columns = ("model", "provider", ">batch", "figure", ">before", ">now", ">slower")
            yield Grid(named("Against the baseline", stage, stages), columns, list(map(_changed, changes)))


def _case(case: Fields, stage: Stage, stages: Sequence[Stage]) -> Grid:
    first = case["results"][0]["latency"]["median"]
    rows: list[Row] = []
    for result in case["results"]:
        times, faster, memory = result["latency"], estimate(result["speedup"]), result["peak_memory"]
        rows.append(
            (
                *(result["model"], Cell(milliseconds(times["median"]), share(times["median"], first))),
                *(milliseconds(times[key]) for key in ("p90", "p99")),
                *("" if faster is None else factor(faster), "?" if memory is None else si(memory, "B")),
                milliseconds(result["load"]),
            )
        )
    columns = ("model", ">median", ">p90", ">p99", ">speed-up", ">peak memory", ">load")
    caption = f"Latency on {case['provider']}, batch {case['batch']}: {_shapes(case['shapes'])}"
    runs = count(sum(r["latency"]["runs"] for r in case["results"]), "run")
    note = f"{runs}, timed in turns, so that load affects all models equally. Speed-up with its interval."
    return Grid(named(caption, stage, stages), columns, rows, " ".join([note, *case["notes"]]))


def _speed(speed: Fields, caption: str) -> Grid:
    faster, before, after = estimate(speed["speedup"]), speed["before"], speed["after"]
    rows: list[Row] = [
        ("original", Cell(milliseconds(before), 1.0), ""),
        ("result", Cell(milliseconds(after), share(after, before)), factor(faster) if faster else ""),
    ]
    return Grid(caption, ("", ">median", ">speed-up"), rows, "Timed in turns; the speed-up with its interval.")


def _changed(change: Fields) -> Row:
    ratio = change["figure"] == "speed-up"
    values = (f"{v:.2f}x" if ratio else milliseconds(v) for v in (change["before"], change["after"]))
    return *(change[key] for key in ("model", "provider", "batch", "figure")), *values, f"{change['slower']:+z.1%}"


def accuracy(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show all metrics with their intervals."""
    for found in accuracies(stages):
        kind = f"{found.what} sample" if found.what and "training" not in found.what else "sample"
        when = f", {found.what}" if "training" in found.what else ""
        caption = f"On {count(found.samples, kind)}{when}, with intervals of {found.confidence:.0%}"
        caption = named(caption, found.stage, stages)
        drawn = list(_drawn(found))
        if drawn:
            yield Intervals(caption, drawn)
        columns = ("", ">model", "<", f">{found.compared}", "<", ">change", "<")
        rows: list[Row] = [(metric_title(score), *_values(score)) for score in found.scores]
        if any(score["original"] for score in found.scores):
            yield Grid(
                *(caption, columns, rows),
                note=f"The change is the model's value minus the {found.compared}'s on the same samples."
                + (" Nothing was fitted to these, nor chosen by them." if found.what == "held-out" else ""),
            )
        else:
            yield Grid(caption, columns[:3], [row[:3] for row in rows])


def _values(score: Fields) -> Iterator[str]:
    for key, sign in (("model", ""), ("original", ""), ("difference", "+")):
        value = estimate(score[key])
        yield "" if value is None else number(value.value, score["share"], sign)
        yield "" if value is None or not isfinite(value.value) else interval(value, score["share"], sign)


def _drawn(found: Accuracy) -> Iterator[Interval]:
    for score in (score for score in found.scores if score["share"]):
        for key in ("model", "original"):
            value = estimate(score[key])
            if value is not None and isfinite(value.value):
                title = metric_title(score)
                label = title if key == "model" else f"{title}, {found.compared}"
                text = f"{number(value.value, True)} ({interval(value, True)})"
                yield Interval(label, value.value, value.low, value.high, text, key == "original")


def proofs(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show limits, proofs of rewriting, and distances from the original."""
    for stage in stages:
        if gates := stage.get("gates"):
            titles = ("", ">value", ">interval", "must be", "")
            yield Grid(named("Limits", stage, stages), titles, list(map(_gate, gates)))
        if proof := stage.get("verification"):
            yield _proof(proof, named("Proof of the rewriting", stage, stages))
        if distances := stage.get("distances"):
            far = [(d["name"], _figure(d["difference"]), _figure(d["cosine"], ".4f")) for d in distances]
            yield Grid(named("Distance from the original", stage, stages), ("output", ">difference", ">cosine"), far)


def _gate(gate: Fields) -> Row:
    found, write = estimate(gate["found"]), _UNITS[gate["unit"]]
    assert found is not None
    value, low, high = (write(v) if isfinite(v) else "-" for v in (found.value, found.low, found.high))
    tone: Tone = "good" if gate["held"] else "bad"
    verdict = ("held" if gate["held"] else "missed") + ("" if gate["decided"] else ", not certain")
    ends = "" if low == high == value else f"{low} to {high}"
    return gate["name"], value, ends, f"at {gate['bound']} {write(gate['limit'])}", Cell(verdict, tone=tone)


def _proof(proof: Fields, caption: str) -> Grid:
    rows = [
        (o["name"], _figure(o["error"]), "differs" if o["change"] is None else _figure(o["change"]))
        for o in proof["outputs"]
    ]
    inputs = "the user's inputs" if proof["seed"] is None else f"generated inputs, seed {proof['seed']}"
    note = (
        f"Compared with the original whose removed weights are set to zero, on {inputs}. Errors are relative to an"
        f" output's largest value; {proof['tolerance']:.2g} is allowed."
    )
    return Grid(caption, ("output", ">error", ">change by pruning"), rows, " ".join([note, *proof["notes"]]))


def _figure(value: float | None, form: str = ".2g") -> str:
    return "-" if value is None else format(value, form)

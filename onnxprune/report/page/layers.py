"""Sections of a model's layers: before and after, and what had to stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from onnxprune.benchmarking.layers import START
from onnxprune.errors import CATALOG
from onnxprune.report.labels import Labels
from onnxprune.report.layout import change, dims, milliseconds, percent, share
from onnxprune.report.page.parts import ROWS, Cell, Grid, Part, Row
from onnxprune.report.page.reading import Fields, Stage, named

_QUOTED = re.compile(r'"([^"]*)"')  # the name of a node
_SENTENCE = re.compile(r".+?[.:;](?= |$)")
_NOTES = {
    "error": "Errors are those of a layer's outputs against the unpruned layer's, squared, relative to their variance.",
    "seconds": "Times are of a profile, which slows every layer down, and include the operators up to the next layer.",
}


def layers(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show every layer, with what all documents say of it."""
    found = {name: layer for name, layer in _joined(stages).items() if layer.get("number") and "shapes" in layer}
    if not found:
        return
    labels = labels_of(stages)
    has = [key for key in _NOTES if any(key in layer for layer in found.values())]
    columns = ["layer", "operator", ">weight before", ">after", ">change of MACs"]
    columns += [">error before repair", ">after it"] if "error" in has else []
    columns += [">time before", ">after"] if "seconds" in has else []
    order = sorted(found.items(), key=lambda pair: int(pair[1]["number"]))
    notes = ["Bars show what is left of a layer's MACs.", *map(_NOTES.__getitem__, has)]
    notes += filter(None, [labels.left_out])
    if len(found) > ROWS:
        notes.append(f"{len(found) - ROWS} more are in the JSON output.")
    rows = [_layer(labels.short(name), layer, has) for name, layer in order[:ROWS]]
    yield Grid("Layers before and after", columns, rows, " ".join(notes))


def labels_of(stages: Sequence[Stage]) -> Labels:
    """Return how nodes are called: what is left out of the names of layers, or of groups if no layer is known."""
    known = [*_joined(stages)] or [str(g["name"]) for s in stages for g in s.get("groups") or () if g.get("points")]
    return Labels.numbered({name: number for number, name in enumerate(known, 1) if name != START})


def _joined(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return what is known of each layer: the first word on its shape, errors of repairs, times of profiles."""
    known: dict[str, dict[str, Any]] = {}
    for stage in stages:
        timed = [layer for case in stage.get("cases") or () for layer in case["layers"]]
        for layer in [*(stage.get("layers") or ()), *(stage.get("outcome", "layers") or ()), *timed]:
            own = known.setdefault(layer["name"], {})
            own |= {key: value for key, value in layer.items() if key not in own}
        for repair in stage.get("repairs") or ():
            known.setdefault(repair["node"], {})["error"] = repair["before"], repair["after"]
    return known


def _layer(name: str, layer: Fields, has: Sequence[str]) -> Row:
    (old, new), macs = layer["shapes"], layer["macs"]
    errors = ["" if e is None else f"{e:.2g}" for e in layer.get("error", (None, None))]
    times = [milliseconds(s) for s in layer.get("seconds", ())] or ["", ""]
    return (
        *(Cell(name, note=f"L{layer['number']}"), layer["op"], dims(old), "removed" if old and not new else dims(new)),
        Cell(change(*macs), share(macs[1], macs[0]) if macs[0] else None),
        *(errors if "error" in has else ()),
        *(times if "seconds" in has else ()),
    )


def stayed(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show what could not be removed, repaired, trained, proved or rounded, with the reasons."""
    labels = labels_of(stages)
    for stage in stages:
        params = stage.get("cost", "before", "params") or stage.get("cost", "params") or 0
        if pins := stage.get("pins"):
            columns = ("reason", "code", ">layers", ">parameters only it holds", "by")
            rows = [_pin(pin, params, labels) for pin in pins[:ROWS]]
            yield Grid(named("Channels that can't be removed", stage, stages), columns, rows)
        for keys, what, title in _LEFT:
            if left := stage.get(*keys):
                rows = [(labels.short(str(entry["node"])), *(str(entry[k]) for k in what[1:])) for entry in left[:ROWS]]
                yield Grid(named(title, stage, stages), what, rows)
        if held := [state for state in stage.get("states") or () if state["held"]]:
            rows = [(s["input"], s["output"], f"{s['held']['node']}: {s['held']['reason']}") for s in held[:ROWS]]
            yield Grid(named("States that stay as they are", stage, stages), ("input", "output", "because"), rows)
        if kept := stage.get("best", "kept"):
            rows = [(labels.short(str(name)),) for name in kept[:ROWS]]
            yield Grid(named("Layers that stay in float", stage, stages), ("layer",), rows)


_LEFT = (
    (("unrepaired",), ("node", "operator", "reason"), "Layers that a repair can't change"),
    (("untrained",), ("node", "operator", "reason"), "Layers that weren't trained"),
    (("verification", "unproved"), ("node", "operator", "cause"), "Nodes that the proof doesn't cover"),
)


def _pin(pin: Fields, params: int, labels: Labels) -> Row:
    known, locked, by = CATALOG.get(pin["code"]), share(pin["locked"], params), list(map(str, pin["by"]))
    shown = [_QUOTED.sub(lambda found: f'"{labels.short(found[1])}"', name) for name in by[:3]]
    meaning = _SENTENCE.match(known.explanation) if known else None
    because = f"{meaning[0].rstrip('.:;')}." if meaning else ""
    title = Cell(known.title if known else str(pin["code"]), note=because)
    more = f" and {len(by) - 3} more" if len(by) > 3 else ""
    return title, str(pin["code"]), str(len(pin["layers"])), Cell(percent(locked), locked), ", ".join(shown) + more

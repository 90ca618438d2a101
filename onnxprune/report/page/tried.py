"""Sections of what was tried: stages, forms, trials, epochs, sensitivities, and samples on which models disagree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from onnxprune.report.layout import count, percent, share, si
from onnxprune.report.page.parts import ROWS, Cell, Chart, Example, Gallery, Grid, Line, Part, Row, Tone
from onnxprune.report.page.reading import Fields, Stage, estimate, factor, named

_CURVES = 6  # lines that can be told apart
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def tried(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show what each stage brought, the forms in fewer bits, the trials of a search, and the epochs of training."""
    if own := [stage for stage in stages if not stage.top and stage.get("verdict") is not None]:
        columns = ("stage", "", ">file", ">speed-up", "why")
        yield Grid("What each stage brought", columns, list(map(_brought, own)))
    for stage in stages:
        if forms := [trial for trial in stage.get("trials") or () if "kind" in trial]:
            best = stage.get("best")
            allowed = stage.get("allowed", "error")
            note = "" if allowed is None else f"Error allowed: {allowed:.2g} of the variance of the outputs."
            columns = ("form", ">size", ">error", ">speed-up", "remark")
            rows = [_form(trial, best) for trial in forms]
            yield Grid(named("Forms tried in fewer bits", stage, stages), columns, rows, note)
        if found := stage.get("search"):
            yield from _search(found, stage, stages)
        points = [(e["number"], e["loss"]) for e in stage.get("history") or () if e["loss"] is not None]
        if len(points) > 1:
            yield Chart(named("Training", stage, stages), "epoch", "loss", [Line("loss", points)])


def _brought(stage: Stage) -> Row:
    said = stage.get("verdict")
    verdict = "kept" if said is True else "left out" if said is False else str(said)
    tone: Tone = "good" if verdict == "kept" else "warn"
    sizes, faster = stage.get("file_size"), estimate(stage.get("speedup"))
    size = Cell("")
    if sizes:
        text = f"{si(sizes['before'], 'B')} → {si(sizes['after'], 'B')}"
        size = Cell(text, share(sizes["after"], sizes["before"]))
    speed = factor(faster) if faster else ""
    return stage.name, Cell(verdict, tone=tone), size, speed, str(stage.get("why") or "")


def _form(trial: Fields, best: Fields | None) -> Row:
    failed, faster = trial["failure"], estimate(trial["speedup"])
    details = [f"{key} {value}" for key, value in trial["about"].items()]
    details += [f"{count(len(trial['kept']), 'layer')} in float"] if trial["kept"] else []
    return (
        Cell(trial["kind"], note="chosen" if trial == best else ""),
        "" if failed else si(trial["size"], "B"),
        "" if failed or trial["error"] is None else f"{trial['error']:.2g}",
        "" if faster is None else factor(faster),
        str(failed or ", ".join(details)),
    )


def _search(found: Fields, stage: Stage, stages: Sequence[Stage]) -> Iterator[Part]:
    scale, unit = (100, "percentage points") if found["share"] else (1, "absolute")
    known = [trial for trial in found["trials"] if None not in trial]
    points = sorted((100 * cost, scale * loss, bool(good)) for cost, loss, good in known)
    if points:
        yield Chart(
            named(f"{count(len(points), 'trial')} of the search for the smallest model", stage, stages),
            f"{found['cost']}, % of the original's",
            f"drop in {found['metric']}, {unit}",
            [Line("trials", [(x, y) for x, y, _ in points], [good for *_, good in points])],
            scale * found["limit"],
            "drop allowed",
        )


def sensitivities(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the curves of the groups that matter most, and the largest error of each."""
    for stage in stages:
        curves = [group for group in stage.get("groups") or () if group.get("points") and group["order"]]
        points = [[(r / len(c["order"]), e) for r, e in c["points"] if e is not None] for c in curves]
        pairs = [(str(c["name"]), len(c["order"]), own) for c, own in zip(curves, points, strict=True) if own]
        known = sorted(pairs, key=lambda pair: -max(e for _, e in pair[2]))
        if not known:
            continue
        lines = [Line(name, [(0.0, 0.0), *((100 * r, e) for r, e in own)]) for name, _, own in known[:_CURVES]]
        caption = f"Error of pruning each group alone, the {len(lines)} most sensitive"
        error, axis = (
            "squared error of the outputs, relative to their variance",
            "share of the group's units removed, %",
        )
        yield Chart(named(caption, stage, stages), axis, stage.get("settings", "metric") or error, lines)
        worst = max(e for _, _, own in known for _, e in own) or 1.0
        rows = [
            (name, str(units), Cell(f"{most:.2g}", most / worst), percent(at))
            for name, units, own in known[:ROWS]
            for most, at in [max((e, r) for r, e in own)]
        ]
        columns = ("group", ">units", ">largest error", ">with units removed")
        yield Grid(named("Groups, the most sensitive first", stage, stages), columns, rows)


def disagreements(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the samples on which the models disagree most."""
    for stage in stages:
        sources = (stage.found, stage.get("evaluation"), stage.get("outcome"))
        found = next((s["examples"] for s in sources if s and s.get("examples")), ())
        if examples := list(map(_example, found)):
            caption = f"{count(len(examples), 'sample')}, the largest difference first"
            yield Gallery(named(caption, stage, stages), examples)


def _example(found: Fields) -> Example:
    picture, text, label = found["picture"], found["text"], found["label"]
    return Example(
        name=str(found["name"]),
        original=str(found["original"]),
        model=str(found["model"]),
        label="" if label is None else str(label),
        picture=picture if picture and _PICTURE.fullmatch(picture) else None,
        text=None if text is None else str(text),
    )

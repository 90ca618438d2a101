"""Sections of what was tried: stages, forms, trials, epochs, sensitivities, and samples on which models disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite

from onnxprune.report.layout import count, percent, share, si
from onnxprune.report.page.parts import ROWS, Cell, Chart, Example, Gallery, Grid, Line, Part, Row
from onnxprune.report.page.reading import Fields, Stage, estimate, factor, named

BROUGHT = "What each stage brought"
"""The caption of the table of stages."""

_CURVES = 6  # lines that can be told apart
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def tried(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show what each stage brought, the forms and budgets that were tried, and the epochs of training."""
    if own := [stage for stage in stages if not stage.top and isinstance(stage.get("kept"), bool)]:
        columns = ("stage", "<", ">file", ">speed-up", ">drop", "why")
        yield Grid(BROUGHT, columns, list(map(_brought, own)))
    for stage in stages:
        for show in (_expected, _cleaners, _forms, _search, _training):
            if (part := show(stage, partial(named, stage=stage, stages=stages))) is not None:
                yield part


Caption = Callable[[str], str]


def _expected(stage: Stage, caption: Caption) -> Part | None:
    found = stage.get("expected")
    if not found:
        return None
    rows = [(e["stage"], f"left out: {e['skipped']}" if e["skipped"] else str(e["what"])) for e in found]
    return Grid(caption("What was expected"), ("stage", "what"), rows)


def _cleaners(stage: Stage, caption: Caption) -> Part | None:
    found = stage.get("tried")
    if not found:
        return None
    columns = ("optimizer", ">nodes", ">file", ">error", ">speed-up", "remark")
    return Grid(caption("Optimizers tried"), columns, [_cleaner(each, stage.get("best")) for each in found])


def _forms(stage: Stage, caption: Caption) -> Part | None:
    found = [trial for trial in stage.get("trials") or () if "kind" in trial]
    if not found:
        return None
    allowed = stage.get("allowed", "error")
    note = "" if allowed is None else f"Error allowed: {allowed:.2g} of the variance of the outputs."
    columns = ("form", ">size", ">error", ">speed-up", "remark")
    return Grid(caption("Forms tried in fewer bits"), columns, [_form(t, stage.get("best")) for t in found], note)


def _search(stage: Stage, caption: Caption) -> Part | None:
    found = stage.get("search")
    if not found:
        return None
    scale, unit = (100, "percentage points") if found["share"] else (1, "absolute")
    known = [trial for trial in found["trials"] if None not in trial]
    points = sorted((100 * cost, scale * loss, bool(good)) for cost, loss, good in known)
    if not points:
        return None
    return Chart(
        caption(f"{count(len(points), 'trial')} of the search for the smallest model"),
        f"{found['cost']}, % of the original's",
        f"drop in {found['metric']}, {unit}",
        [Line("trials", [(x, y) for x, y, _ in points], [good for *_, good in points])],
        scale * found["limit"],
        "drop allowed",
    )


def _training(stage: Stage, caption: Caption) -> Part | None:
    points = [(e["number"], e["loss"]) for e in stage.get("history") or () if e["loss"] is not None]
    return Chart(caption("Training"), "epoch", "loss", [Line("loss", points)]) if len(points) > 1 else None


def _brought(stage: Stage) -> Row:
    verdict = Cell("kept", tone="good") if stage.get("kept") else Cell("left out", tone="warn")
    size, faster, drop = Cell(""), estimate((stage.speed or {}).get("speedup")), estimate(stage.get("drop"))
    if stage.sizes:
        before, after = stage.sizes
        size = Cell(f"{si(before, 'B')} → {si(after, 'B')}", share(after, before))
    lost = "" if drop is None or not isfinite(drop.value) else f"{drop.value:z.2%}"
    return stage.name, verdict, size, factor(faster) if faster else "", lost, str(stage.get("why") or "")


def _cleaner(each: Fields, best: Fields | None) -> Row:
    faster, failed = estimate(each["speedup"]), each["failure"]
    return (
        Cell(each["name"], note="taken" if each == best else ""),
        "" if failed else f"{each['nodes']:,}",
        "" if failed else si(each["size"], "B"),
        "" if failed or each["error"] is None else f"{each['error']:.2g}",
        "" if faster is None else factor(faster),
        str(failed or ""),
    )


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

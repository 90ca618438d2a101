"""Sections of what was tried: stages, forms, trials, epochs, sensitivities, and samples on which models disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from math import isfinite
from pathlib import PurePath

from onnxprune.progress import duration
from onnxprune.report.layout import count, milliseconds, percent, share, si
from onnxprune.report.page.layers import labels_of
from onnxprune.report.page.measured import COSTS
from onnxprune.report.page.parts import ROWS, Cell, Chart, Example, Gallery, Grid, Line, Part, Row
from onnxprune.report.page.reading import Fields, Stage, estimate, factor, named
from onnxprune.settings.evaluation import METRICS, title_of
from onnxprune.settings.quantization import FORMS

BROUGHT = "What each stage brought"
"""The caption of the table of stages."""

_CURVES = 6  # lines that can be told apart
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_ABOUT = {"bits": "bits of weights:", "calibration": "ranges by", "operators": "operators:"}  # details of a form
_COMPARED = (
    "Sizes and speed-ups compare the model after a stage with the model before it; a size that was expected is of that "
    "stage alone. The drop compares with the original file, on the samples that decide what is kept."
)


def tried(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show what each stage was to bring and brought, the forms and budgets that were tried, and epochs of training."""
    expected = {str(e["stage"]): e for stage in stages for e in stage.get("expected") or ()}
    done = {stage.name: stage for stage in stages if not stage.top and isinstance(stage.get("kept"), bool)}
    if names := list(dict.fromkeys((*expected, *done))):
        columns = ("stage", "<", ">file", ">speed-up", ">drop", ">time", "what was done, or why not")
        rows = [_stage(name, expected.get(name, {}), done.get(name)) for name in names]
        basis = next((f" Nothing was asked for: the drop allowed is {why}." for why in map(_basis, stages) if why), "")
        yield _filled(BROUGHT if done else "What each stage is expected to bring", columns, rows, _COMPARED + basis)
    for stage in stages:
        for show in (_cleaners, _forms, _search, _training):
            if (part := show(stage, partial(named, stage=stage, stages=stages))) is not None:
                yield part


Caption = Callable[[str], str]


def _filled(caption: str, columns: Sequence[str], rows: Sequence[Row], note: str = "") -> Grid:
    """Return a table without columns that are empty in every row."""
    used = [any(str(cell) for cell in column) for column in zip(*rows, strict=True)]
    return Grid(caption, list(compress(columns, used)), [list(compress(row, used)) for row in rows], note)


def _basis(stage: Stage) -> str:
    why = stage.get("allowed", "why") if stage.get("expected") else None
    return "" if why in (None, "asked for") else str(why)


def _stage(name: str, plan: Fields, stage: Stage | None) -> Row:
    """Return what a stage was expected to bring, and what it brought."""
    size, time, what = "", "", str(plan.get("skipped") or plan.get("what") or "")
    if plan and not plan["skipped"]:
        size = "" if plan["size"] is None else f"{si(plan['size'], 'B')} expected"
        time = f"about {duration(plan['seconds'])} expected"
    if stage is None:
        verdict = Cell("left out", tone="warn") if plan.get("skipped") else Cell("")
        return name, verdict, size, "", "", time, what
    verdict = Cell("kept", tone="good") if stage.get("kept") else Cell("left out", tone="warn")
    file, faster, drop = Cell("", note=size), estimate((stage.speed or {}).get("speedup")), estimate(stage.get("drop"))
    if stage.sizes:
        before, after = stage.sizes
        file = Cell(f"{si(before, 'B')} → {si(after, 'B')}", share(after, before), note=size)
    lost = "" if drop is None or not isfinite(drop.value) else f"{drop.value:z.2%}"
    spent = stage.get("seconds")
    took = Cell(duration(spent) if spent and spent >= 0.5 else "", note=time)
    return name, verdict, file, factor(faster) if faster else "", lost, took, str(stage.get("why") or "")


def _cleaners(stage: Stage, caption: Caption) -> Part | None:
    found = stage.get("tried")
    if not found:
        return None
    columns = ("optimizer", ">nodes", ">file", ">error", ">speed-up", "remark")
    rows = [_cleaner(each, stage.get("best")) for each in found]
    note = "Errors of the outputs are relative to their largest value"
    limit = stage.get("compared", "tolerance")
    note += "." if limit is None else f"; up to {limit:g} is rounding."
    return _filled(caption("Optimizers tried"), columns, rows, note)


def _forms(stage: Stage, caption: Caption) -> Part | None:
    found = [trial for trial in stage.get("trials") or () if "kind" in trial]
    if not found:
        return None
    allowed = stage.get("allowed", "error")
    kinds = dict.fromkeys(str(trial["kind"]) for trial in found)
    note = "; ".join(f"{kind}: {FORMS[kind]}" for kind in kinds if kind in FORMS)  # type: ignore[index]
    note += "" if allowed is None else f". Squared errors relative to the outputs' variance: {allowed:.2g} is allowed."
    columns = ("form", ">size", ">error", ">speed-up", "remark")
    return _filled(caption("Forms tried in fewer bits"), columns, [_form(t, stage.get("best")) for t in found], note)


def _search(stage: Stage, caption: Caption) -> Part | None:
    found = [trial for trial in stage.get("trials") or () if "share" in trial]
    known = [trial for trial in found if trial["share"] is not None and trial["drop"] is not None]
    if not known:
        return None
    allowed = stage.get("allowed")
    facts = METRICS.get(allowed["metric"])
    scale, unit = (100, "percentage points") if facts is None or facts.share else (1, "absolute")
    points = sorted((100 * t["share"], scale * t["drop"]["value"], bool(t["kept"])) for t in known)
    return Chart(
        caption(f"{count(len(points), 'trial')} of the search for the smallest model"),
        f"{COSTS.get(allowed['cost'], [allowed['cost']])[0]}, % of the original's",
        f"drop in {allowed['metric'] if facts is None else facts.title}, {unit}",
        [Line("trials", [(x, y) for x, y, _ in points], [good for *_, good in points])],
        scale * allowed["drop"],
        "drop allowed",
    )


def _training(stage: Stage, caption: Caption) -> Part | None:
    points = [(e["number"], e["loss"]) for e in stage.get("history") or () if e["loss"] is not None]
    return Chart(caption("Training"), "epoch", "loss", [Line("loss", points)]) if len(points) > 1 else None


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
    details = [f"{_ABOUT.get(key, key)} {value}" for key, value in trial["about"].items()]
    details += [f"{count(len(trial['kept']), 'layer')} in float"] if trial["kept"] else []
    return (
        Cell(trial["kind"], note="chosen" if trial == best else ""),
        "" if failed else si(trial["size"], "B"),
        "" if failed or trial["error"] is None else f"{trial['error']:.2g}",
        "" if faster is None else factor(faster),
        str(failed or ", ".join(details)),
    )


def sensitivities(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the curves of the groups that matter most, the largest error of each, and what was removed of it."""
    labels = labels_of(stages)
    for stage in stages:
        own = stage.get("sensitivity") or stage.get("groups") or ()
        curves = [group for group in own if group.get("points") and group["order"]]
        points = [[(r / len(c["order"]), e) for r, e in c["points"] if e is not None] for c in curves]
        pairs = [(str(c["name"]), len(c["order"]), at) for c, at in zip(curves, points, strict=True) if at]
        known = sorted(pairs, key=lambda pair: -max(e for _, e in pair[2]))
        if not known:
            continue
        lines = [
            Line(labels.short(name), [(0.0, 0.0), *((100 * r, e) for r, e in at)]) for name, _, at in known[:_CURVES]
        ]
        caption = f"Error of pruning each group alone, the {len(lines)} most sensitive"
        error = stage.get("settings", "metric") or "squared error of the outputs, relative to their variance"
        yield Chart(named(caption, stage, stages), "share of the group's units removed, %", error, lines)
        worst = max(e for _, _, at in known for _, e in at) or 1.0
        removed = {str(g["name"]): g["removed"] for g in stage.get("groups") or () if "removed" in g}
        rows: list[Row] = [
            (
                *(labels.short(name), f"{units:,}", Cell(f"{most:.2g}", most / worst), percent(at)),
                f"{removed[name]:,}" if name in removed else "",
            )
            for name, units, own in known[:ROWS]
            for most, at in [max((e, r) for r, e in own)]
        ]
        columns = [
            "group",
            ">units",
            ">largest error",
            ">with units removed",
            *([">removed by the plan"] if removed else []),
        ]
        note = (
            "A group is the channels that must leave together. Its least important units were removed, and the layers "
            "that read them refitted; the error is that of the outputs on samples that weren't fitted to."
        )
        note = f"{note} {labels.left_out}".strip()
        yield _filled(named("Groups, the most sensitive first", stage, stages), columns, rows, note)


_COSTS = {name: title for name, (title, _) in COSTS.items()} | {"size": "file"}


def trade_offs(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the models of sweeps: the drop against each cost, with those that none beats as a line."""
    for stage in (stage for stage in stages if stage.get("front") is not None):
        found = {row["number"]: row for row in stage.get("models")}
        best = [found[number] for number in stage.get("front")]
        title, whole = title_of(stage.get("metric")), stage.get("costs")
        tags = dict.fromkeys(tag for row in best for tag in row["latency"])
        measures: dict[str, Callable[[Fields], float | None]] = {
            _COSTS[name]: partial(_share_of, name, whole) for name in whole
        }
        measures |= {f"latency on {tag}": partial(_time_of, tag) for tag in tags}
        for what, measure in measures.items():
            lines = []
            for label, rows in (("front", best), ("others", [r for r in found.values() if r not in best])):
                points = sorted(
                    (
                        100 * at,
                        100 * row["drop"]["value"],
                        f"{row['number']}: {row['told']}; drop {row['drop']['value']:.2%}",
                    )
                    for row in rows
                    if (at := measure(row)) is not None and row["drop"]["value"] is not None
                )
                if points:
                    lines.append(Line(label, [p[:2] for p in points], names=[p[2] for p in points]))
            if lines:
                yield Chart(f"Drop in {title} and {what}", f"{what}, % of the file's", "drop, percentage points", lines)
        columns = (
            ">number",
            ">drop",
            *(f">{_COSTS[name]}" for name in whole),
            *(f">{t}" for t in tags),
            "recipe",
        )
        yield _filled("The models that no other one beats", columns, [_model(row, whole, list(tags)) for row in best])


def _share_of(cost: str, whole: Fields, row: Fields) -> float | None:
    return share(row["costs"][cost], whole[cost])


def _time_of(tag: str, row: Fields) -> float | None:
    return row["latency"][tag]["share"]["value"] if tag in row["latency"] else None


def _model(row: Fields, whole: Fields, tags: Sequence[str]) -> Row:
    loss = row["drop"]
    drop = "" if loss["value"] is None else f"{loss['value']:z.2%}"
    between = "" if loss["low"] is None else f"{loss['low']:z.2%} to {loss['high']:z.2%}"
    costs = [percent(share(row["costs"][name], whole[name])) for name in whole]
    times = [milliseconds(row["latency"][tag]["seconds"]) if tag in row["latency"] else "" for tag in tags]
    return (str(row["number"]), Cell(drop, note=between), *costs, *times, row["told"])


def disagreements(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show the samples on which the models disagree most."""
    for stage in stages:
        trained = stage.get("after") if stage.get("kept") == "after" else None
        sources = (stage.found, stage.get("evaluation"), stage.get("outcome"), trained)
        found = next((s["examples"] for s in sources if s and s.get("examples")), ())
        if examples := _without_folder(list(map(_example, found))):
            scores = "; in parentheses, the score of the class" if "class " in examples[0].original else ""
            judging = f"{count(len(examples), 'sample')} of those that judge the model"
            caption = f"{judging}, the largest difference first{scores}"
            yield Gallery(named(caption, stage, stages), examples)


def _without_folder(examples: Sequence[Example]) -> list[Example]:
    """Leave out the folder that all samples lie in."""
    parts, shared = [PurePath(example.name).parts for example in examples], 0
    while all(len(own) > shared + 1 for own in parts) and len({own[shared] for own in parts}) == 1:
        shared += 1
    return [replace(e, name=str(PurePath(*own[shared:]))) for e, own in zip(examples, parts, strict=True)]


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

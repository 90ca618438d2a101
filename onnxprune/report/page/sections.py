"""The sections of a report. Each takes what it shows from the fields of documents, whichever command wrote them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from onnxprune.errors import CATALOG
from onnxprune.report.labels import Labels
from onnxprune.report.layout import change, count, dims, milliseconds, percent, share, si
from onnxprune.report.page.parts import (
    Cell,
    Chart,
    Code,
    Example,
    Gallery,
    Grid,
    Interval,
    Intervals,
    Line,
    Part,
    Said,
    Section,
    Tone,
)
from onnxprune.report.page.reading import (
    Fields,
    Stage,
    accuracies,
    estimate,
    factor,
    interval,
    metric_title,
    number,
)

ROWS = 300
"""Most rows of a table."""

_CURVES = 6  # lines that can be told apart
_COSTS = {"params": ("parameters", ""), "macs": ("MACs", ""), "size": ("weights", "B"), "memory": ("activations", "B")}
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_SENTENCE = re.compile(r".+?[.:;](?= |$)")

_UNASKED = ("-o", "--output", "--report", "--card", "--force", "--format", "-q", "--quiet")

Read = Callable[[Sequence[Stage]], Iterator[Part]]


def sections_of(stages: Sequence[Stage]) -> tuple[Section, ...]:
    """Return the sections that have something to show."""
    made = ((key, title, lead, tuple(read(stages))) for key, title, lead, read in _SECTIONS)
    return tuple(Section(key, title, lead, parts) for key, title, lead, parts in made if parts)


def _asked(stages: Sequence[Stage]) -> Iterator[Part]:
    names = {
        "model": "model",
        "models": "models",
        "original": "original",
        "pruned": "pruned",
        "against": "compared with",
        "teacher": "teacher",
        "output": "written to",
    }
    for stage in (stage for stage in stages if stage.top):
        rows: list[tuple[str, str]] = [
            (title, str(stage.get(name))) for name, title in names.items() if stage.get(name) is not None
        ]
        given = stage.get("options") or {}
        rows += [(str(name), str(value)) for name, value in given.items() if name not in _UNASKED]
        yield Grid(f"Options of {stage.name}", ("", "as given"), rows)


def _costs(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        if not stage.get("cost", "before") and not stage.get("file_size"):
            continue
        before, after = (stage.get("cost", side) or {} for side in ("before", "after"))
        rows = [
            _before_after(title, before[key], after[key], unit)
            for key, (title, unit) in _COSTS.items()
            if key in before and key in after
        ]
        if files := stage.get("file_size"):
            rows.append(_before_after("file", files["before"], files["after"], "B"))
        shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in (stage.get("counted_at") or {}).items())
        note = f"Counted at {shapes}. Activations are the peak of what is alive at once." if shapes else ""
        yield Grid(_of(stage, stages, "Costs"), ("", ">before", ">after", ">change"), rows, note)


def _before_after(title: str, before: int, after: int, unit: str) -> tuple[str | Cell, ...]:
    left = share(after, before)
    return title, si(before, unit), si(after, unit), Cell(change(before, after), min(left, 1.0))


def _latencies(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        for case in stage.get("cases") or ():
            shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in case["shapes"].items())
            first = case["results"][0]["latency"]["median"]
            rows = []
            for result in case["results"]:
                times, faster = result["latency"], estimate(result["speedup"])
                figures = (milliseconds(times[key]) for key in ("median", "p90", "p99"))
                median, *rest = figures
                bar = Cell(median, min(share(times["median"], first), 1.0))
                memory = result["peak_memory"]
                rows.append(
                    (result["model"], bar, *rest, "" if faster is None else factor(faster))
                    + ("?" if memory is None else si(memory, "B"), milliseconds(result["load"]))
                )
            columns = ("model", ">median", ">p90", ">p99", ">speed-up", ">peak memory", ">load")
            caption = f"Latency on {case['provider']}, batch {case['batch']}: {shapes}"
            runs = count(sum(r["latency"]["runs"] for r in case["results"]), "run")
            note = f"{runs}, timed in turns, so that load affects all models equally. Speed-up with its interval."
            yield Grid(_of(stage, stages, caption), columns, rows, " ".join([note, *case["notes"]]))
        if speed := stage.get("outcome", "speed"):
            faster = estimate(speed["speedup"])
            assert faster is not None
            rows = [
                ("original", Cell(milliseconds(speed["before"]), 1.0), ""),
                ("result", Cell(milliseconds(speed["after"]), min(share(speed["after"], speed["before"]), 1.0)))
                + (factor(faster),),
            ]
            caption = _of(stage, stages, f"Latency on {speed['provider']}")
            yield Grid(caption, ("", ">median", ">speed-up"), rows, "Timed in turns; the speed-up with its interval.")
        elif why := stage.get("outcome", "untimed"):
            yield Said(_of(stage, stages, f"The speed wasn't measured: {why}."), "warn")
        if changes := stage.get("changes"):
            rows = [
                (c["model"], c["provider"], str(c["batch"]), c["figure"])
                + tuple(
                    f"{v:.2f}x" if c["figure"] == "speed-up" else milliseconds(v) for v in (c["before"], c["after"])
                )
                + (f"{c['slower']:+z.1%}",)
                for c in changes
            ]
            columns = ("model", "provider", ">batch", "figure", ">before", ">now", ">slower")
            yield Grid(_of(stage, stages, "Against the baseline"), columns, rows)


def _accuracy(stages: Sequence[Stage]) -> Iterator[Part]:
    for found in accuracies(stages):
        columns = ("", ">model", "", f">{found.compared}", "", ">change", "")
        paired = any(score["original"] for score in found.scores)
        rows, drawn = [], []
        for score in found.scores:
            title, cells = metric_title(score), list[str]()
            for key, sign in (("model", ""), ("original", ""), ("difference", "+")):
                value = estimate(score[key])
                known = value is not None and isfinite(value.value)
                cells += [number(value.value, score["share"], sign) if value else ""]
                cells += [interval(value, score["share"], sign) if value and known else ""]
                if value and known and score["share"] and key != "difference":
                    label = title if key == "model" else f"{title}, {found.compared}"
                    text = f"{cells[-2]} ({cells[-1]})"
                    drawn.append(Interval(label, value.value, value.low, value.high, text, key == "original"))
            rows.append((title, *cells))
        what = f"{found.what} sample" if found.what and "training" not in found.what else "sample"
        where = f", {found.what}" if "training" in found.what else ""
        caption = f"On {count(found.samples, what)}{where}, with 95 % intervals"
        caption = f"{caption} ({found.stage})" if len({s.name for s in stages}) > 1 else caption
        if drawn:
            yield Intervals(caption, drawn)
        yield Grid(caption, columns if paired else columns[:3], rows if paired else [row[:3] for row in rows])
        if paired:
            yield Said(f"The change is the model's value minus the {found.compared}'s on the same samples.")


def _stages(stages: Sequence[Stage]) -> Iterator[Part]:
    own = [stage for stage in stages if stage.get("verdict") is not None or stage.get("why") is not None]
    if own:
        rows = []
        for stage in own:
            said = stage.get("verdict")
            verdict = "kept" if said is True else "left out" if said is False else str(said or "")
            tone: Tone = "good" if verdict == "kept" else "warn"
            sizes, faster = stage.get("file_size"), estimate(stage.get("speedup"))
            speed = f"{faster.value:.2f}x" if faster else ""
            size = f"{si(sizes['before'], 'B')} → {si(sizes['after'], 'B')}" if sizes else ""
            bar = min(share(sizes["after"], sizes["before"]), 1.0) if sizes else None
            rows.append((stage.name, Cell(verdict, tone=tone), Cell(size, bar), speed, str(stage.get("why") or "")))
        yield Grid("What each stage brought", ("stage", "", ">file", ">speed-up", "why"), rows)
    for stage in stages:
        if forms := [trial for trial in stage.get("trials") or () if "kind" in trial]:
            best = (stage.get("best") or {}).get("kind")
            rows = []
            for trial in forms:
                failed, faster = trial["failure"], estimate(trial["speedup"])
                details = [f"{key} {value}" for key, value in trial["about"].items()]
                details += [f"{len(trial['kept'])} layers in float"] if trial["kept"] else []
                mark = Cell(trial["kind"], note="kept" if trial["kind"] == best else "")
                error = "" if failed or trial["error"] is None else f"{trial['error']:.2g}"
                rows.append(
                    (mark, "" if failed else si(trial["size"], "B"), error, "" if faster is None else factor(faster))
                    + (str(failed or ", ".join(details)),)
                )
            allowed = stage.get("allowed") or {}
            note = f"Error allowed: {allowed['error']:.2g} of the variance of the outputs." if allowed else ""
            columns = ("form", ">size", ">error", ">speed-up", "remark")
            yield Grid(_of(stage, stages, "Forms tried in fewer bits"), columns, rows, note)
        if (found := stage.get("search")) and (known := [t for t in found["trials"] if None not in t]):
            scale = 100 if found["share"] else 1
            points = sorted((100 * cost, scale * loss, bool(good)) for cost, loss, good in known)
            trials = Line("trials", [(x, y) for x, y, _ in points], [good for *_, good in points])
            unit = "percentage points" if found["share"] else "absolute"
            yield Chart(
                _of(stage, stages, f"{count(len(points), 'trial')} of the search for the smallest model"),
                f"{found['cost']}, % of the original's",
                f"drop in {found['metric']}, {unit}",
                [trials],
                scale * found["limit"],
                "drop allowed",
            )
        for epochs in [stage.get("history")] if stage.get("history") else []:
            lines = [Line("loss", [(e["number"], e["loss"]) for e in epochs if e["loss"] is not None])]
            lines = [line for line in lines if line.points]
            yield Chart(_of(stage, stages, "Training"), "epoch", "loss", lines)


def _layers(stages: Sequence[Stage]) -> Iterator[Part]:
    """Show every layer, with what all documents say of it."""
    layers: dict[str, dict[str, Any]] = {}
    for stage in stages:
        timed = [layer for case in stage.get("cases") or () for layer in case["layers"]]
        for layer in [*(stage.get("layers") or ()), *timed]:
            known = layers.setdefault(layer["name"], {})
            known |= {key: value for key, value in layer.items() if value is not None and key not in known}
        for repair in stage.get("repairs") or ():
            layers.setdefault(repair["node"], {})["error"] = repair["before"], repair["after"]
    shown = {name: layer for name, layer in layers.items() if layer.get("number") and "shapes" in layer}
    if not shown:
        return
    labels = Labels.numbered({name: layer["number"] for name, layer in shown.items()})
    has = {key: any(key in layer for layer in shown.values()) for key in ("error", "seconds")}
    columns = ["layer", "operator", ">weight before", ">after", ">MACs"]
    columns += [">error before repair", ">after it"] if has["error"] else []
    columns += [">time before", ">after"] if has["seconds"] else []
    rows = []
    for name, layer in sorted(shown.items(), key=lambda pair: pair[1]["number"])[:ROWS]:
        old, new = layer["shapes"]
        macs = layer["macs"]
        cells: list[str | Cell] = [Cell(labels.short(name), note=f"L{layer['number']}"), layer["op"]]
        cells += [dims(old), "removed" if old and not new else dims(new)]
        cells += [Cell(change(*macs), min(share(macs[1], macs[0]), 1.0) if macs[0] else None)]
        if has["error"]:
            cells += [_error(value) for value in layer.get("error", (None, None))]
        if has["seconds"]:
            cells += [milliseconds(value) for value in layer["seconds"]] if "seconds" in layer else ["", ""]
        rows.append(cells)
    notes = ["Bars show what is left of a layer's MACs."]
    if has["error"]:
        notes.append("Errors are those of a layer's outputs, squared, relative to their variance.")
    if has["seconds"]:
        notes.append("Times include the operators up to the next layer.")
    if labels.prefix or labels.suffix:
        notes.append(f'Names are shown without "{labels.prefix}" in front and "{labels.suffix}" at the end.')
    if len(shown) > ROWS:
        notes.append(f"{len(shown) - ROWS} more are in the JSON output.")
    yield Grid("Layers before and after", columns, rows, " ".join(notes))


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _kept(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        params = stage.get("cost", "before", "params") or stage.get("cost", "params") or 0
        rows: list[Sequence[str | Cell]] = []
        for pin in (stage.get("pins") or ())[:ROWS]:
            known = CATALOG.get(pin["code"])
            meaning = _SENTENCE.match(known.explanation) if known else None
            title = Cell(known.title if known else str(pin["code"]), note=meaning[0] if meaning else "")
            locked = share(pin["locked"], params)
            by = ", ".join(map(str, pin["by"][:3])) + (f" and {len(pin['by']) - 3} more" if len(pin["by"]) > 3 else "")
            rows.append((title, pin["code"], str(len(pin["layers"])), Cell(percent(locked), min(locked, 1.0)), by))
        if rows:
            columns = ("reason", "code", ">layers", ">parameters only it holds", "by")
            yield Grid(_of(stage, stages, "Channels that can't be removed"), columns, rows)
        for key, what in (("unrepaired", "Layers that a repair can't change"), ("untrained", "Layers not trained")):
            if left := stage.get(key):
                rows = [(x["node"], x["operator"], x["reason"]) for x in left[:ROWS]]
                yield Grid(_of(stage, stages, what), ("layer", "operator", "reason"), rows)
        if unproved := stage.get("verification", "unproved"):
            rows = [(x["node"], x["operator"], x["cause"]) for x in unproved[:ROWS]]
            yield Grid(_of(stage, stages, "Nodes that the proof doesn't cover"), ("node", "operator", "why"), rows)
        if held := [state for state in stage.get("states") or () if state["held"]]:
            rows = [(s["input"], s["output"], f"{s['held']['node']}: {s['held']['reason']}") for s in held[:ROWS]]
            yield Grid(_of(stage, stages, "States that stay as they are"), ("input", "output", "because"), rows)
        if kept := (stage.get("best") or {}).get("kept"):
            rows = [(name,) for name in kept[:ROWS]]
            yield Grid(_of(stage, stages, "Layers that stay in float"), ("layer",), rows)


def _disagreements(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        sources = (stage.found, stage.get("evaluation"), stage.get("outcome"))
        found = next((s["examples"] for s in sources if s and s.get("examples")), ())
        examples = [
            Example(
                *(str(e[key]) for key in ("name", "original", "model")),
                label="" if e["label"] is None else str(e["label"]),
                picture=e["picture"] if e["picture"] and _PICTURE.fullmatch(e["picture"]) else None,
                text=None if e["text"] is None else str(e["text"]),
            )
            for e in found
        ]
        if examples:
            yield Gallery(_of(stage, stages, f"{count(len(examples), 'sample')}, the largest difference first"), examples)


def _sensitivities(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        curves = [group for group in stage.get("groups") or () if group.get("points")]
        known = [(c, [(r / len(c["order"]), e) for r, e in c["points"] if e is not None]) for c in curves if c["order"]]
        known = sorted(((c, p) for c, p in known if p), key=lambda pair: -max(e for _, e in pair[1]))
        if not known:
            continue
        lines = [
            Line(str(c["name"]), [(0.0, 0.0), *((100 * r, e) for r, e in points)]) for c, points in known[:_CURVES]
        ]
        caption = f"Error of pruning each group alone, the {min(len(known), _CURVES)} most sensitive"
        axis = "share of the group's units removed, %"
        yield Chart(_of(stage, stages, caption), axis, "error of the outputs, of their variance", lines)
        worst = max(e for _, p in known for _, e in p) or 1.0
        rows = [
            (str(c["name"]), str(len(c["order"])))
            + (Cell(f"{p[-1][1]:.2g}", min(p[-1][1] / worst, 1.0)), percent(p[-1][0]))
            for c, p in known[:ROWS]
        ]
        columns = ("group", ">units", ">largest error", ">at")
        yield Grid(_of(stage, stages, "Groups, the most sensitive first"), columns, rows)


def _environment(stages: Sequence[Stage]) -> Iterator[Part]:
    found = next((stage.get("environment") for stage in stages if stage.get("environment")), None)
    if not found:
        return
    providers = [p for stage in stages for p in stage.get("providers") or ()]
    providers += [case["provider"] for stage in stages for case in stage.get("cases") or ()]
    providers += [stage.get("outcome", "speed", "provider") or "" for stage in stages]
    threads = [stage.get("options", "--threads") or stage.get("settings", "threads") for stage in stages]
    rows = [
        ("processor", f"{found['cpu']}, {count(found['cores'], 'core')}"),
        ("GPU", "; ".join(found["gpus"])),
        ("execution provider", ", ".join(dict.fromkeys(filter(None, map(str, providers))))),
        ("threads", ", ".join(dict.fromkeys(str(t) for t in threads if t)) or "ONNX Runtime's default"),
        ("load", "unknown" if found["load"] is None else f"{found['load']}"),
        ("clock governor", found["governor"] or "unknown"),
        ("system", found["system"]),
        ("ONNX Runtime", found["onnxruntime"]),
        ("Python", found["python"]),
        *found["packages"].items(),
    ]
    yield Grid("Machine and versions", ("", "as measured"), [(k, str(v)) for k, v in rows if v])


def _reproduce(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        if words := stage.get("command"):
            yield Code(_lines([str(word) for word in words]))
        digests = {"model, SHA-256": stage.get("model_sha256"), "plan": stage.get("plan_digest")}
        rows = [(title, str(digest)) for title, digest in digests.items() if digest]
        if rows:
            yield Grid(_of(stage, stages, "Fingerprints"), ("", "digest"), rows)


def _lines(words: Sequence[str]) -> list[str]:
    """Return a command line with an option in each line."""
    lines = [""]
    for word in words:
        if word.startswith("-") and len(word) > 1:
            lines.append("")
        lines[-1] = f"{lines[-1]} {shlex.quote(word)}".strip()
    return lines


def _of(stage: Stage, stages: Sequence[Stage], text: str) -> str:
    """Return a caption, with the stage's name if there are several."""
    return text if len({s.name for s in stages}) < 2 else f"{text} ({stage.name})"


def _proofs(stages: Sequence[Stage]) -> Iterator[Part]:
    for stage in stages:
        if gates := stage.get("gates"):
            rows = []
            for gate in gates:
                found, unit = estimate(gate["found"]), gate["unit"]
                assert found is not None
                limit, value, low, high = (_in(unit, v) for v in (gate["limit"], found.value, found.low, found.high))
                tone: Tone = "good" if gate["held"] else "bad"
                verdict = ("held" if gate["held"] else "missed") + ("" if gate["decided"] else ", not certain")
                ends = "" if low == high == value else f"{low} to {high}"
                rows.append((gate["name"], value, ends, f"at {gate['bound']} {limit}", Cell(verdict, tone=tone)))
            yield Grid(_of(stage, stages, "Limits"), ("", ">value", ">interval", "must be", ""), rows)
        if proof := stage.get("verification"):
            rows = [(o["name"], f"{o['error']:.2g}", "differs" if o["change"] is None else f"{o['change']:.2g}")
                    for o in proof["outputs"] if o["error"] is not None]  # fmt: skip
            inputs = "the user's inputs" if proof["seed"] is None else f"generated inputs, seed {proof['seed']}"
            note = (
                f"Compared with the original whose removed weights are set to zero, on {inputs}. Errors are relative"
                f" to an output's largest value; {proof['tolerance']:.2g} is allowed."
            )
            yield Grid(_of(stage, stages, "Proof of the rewriting"), ("output", ">error", ">change by pruning"), rows,
                       " ".join([note, *proof["notes"]]))  # fmt: skip
        if distances := stage.get("distances"):
            rows = [
                (d["name"], f"{d['difference']:.2g}" if d["difference"] is not None else "-")
                + ("-" if d["cosine"] is None else f"{d['cosine']:.4f}",)
                for d in distances
            ]
            columns = ("output", ">difference", ">cosine")
            yield Grid(_of(stage, stages, "Distance from the original"), columns, rows)


def _in(unit: str, value: float) -> str:
    forms: Mapping[str, Callable[[float], str]] = {
        "share": lambda v: f"{v:z.2%}",
        "factor": lambda v: f"{v:.2f}x",
        "bytes": lambda v: si(round(v), "B"),
    }
    return forms.get(unit, lambda v: f"{v:z.4g}")(value) if isfinite(value) else "-"


_SECTIONS: Sequence[tuple[str, str, str, Read]] = (
    ("asked", "What was asked", "The models, the data and the options, as they were given.", _asked),
    ("costs", "Size and cost", "What the model is made of, before and after.", _costs),
    ("latency", "Latency", "Median times of a run, measured on this machine.", _latencies),
    ("accuracy", "Accuracy", "Measured values with their intervals.", _accuracy),
    ("proofs", "Proof and limits", "What was checked, and against which limit.", _proofs),
    ("stages", "Stage by stage", "What was tried, and what each step brought.", _stages),
    ("layers", "Layer by layer", "Every layer with weights, in the order of the graph.", _layers),
    ("kept", "What stayed, and why", "What could not be removed, repaired, trained or proved.", _kept),
    ("examples", "Where the models disagree", "Samples on which the answers differ most.", _disagreements),
    ("sensitivity", "Sensitivity", "How much the outputs change when units of one group leave.", _sensitivities),
    ("environment", "Environment", "Times are comparable only on equal hardware.", _environment),
    ("reproduce", "How to get this again", "The same command on the same files gives the same model.", _reproduce),
)


def plain_text(cell: str | Cell) -> str:
    """Return what a cell says."""
    return cell if isinstance(cell, str) else cell.text

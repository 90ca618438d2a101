"""Tables and fields of a sweep: the models that none beats, and the one that was taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxprune.report.documents import Document, document, pick
from onnxprune.report.evaluation import evaluation_tables
from onnxprune.report.layout import (
    FAINT,
    Cell,
    Tables,
    count,
    flexible,
    heading,
    milliseconds,
    paragraph,
    percent,
    right,
    share,
    si,
    table,
)
from onnxprune.settings.evaluation import title_of
from onnxprune.sweeping.front import Row
from onnxprune.sweeping.session import Picked, Sweep
from onnxprune.sweeping.store import shown

_UNITS = {"size": "B", "memory": "B", "macs": "", "params": ""}
_TITLES = {"size": "file", "memory": "memory", "macs": "MACs", "params": "params"}


def row_fields(row: Row) -> dict[str, Any]:
    """Return what a document contains of a model."""
    own, found = row.latency(), dict(row.latencies)
    if own is not None:
        found[own["tag"]] = own
    times = {
        tag: {"seconds": each["seconds"], "before": each["before"], "share": _interval(each["share"])}
        for tag, each in found.items()
    }
    known = ("proved", "sha256", "told", "seconds", "tag")
    costs = {name: int(value) for name, value in row.costs.items()}
    return {
        "number": row.number,
        "settings": dict(row.choice),
        "drop": row.loss,
        "costs": costs,
        "latency": times,
        **{name: row.document[name] for name in known},
    }


def _interval(values: list[float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), values, strict=True))


def sweep_document(found: Sweep, store: str) -> Document:
    """Return the document of a sweep."""
    spec = found.spec
    return document(
        "sweep",
        store=shown(store),
        model=spec.model[0],
        data=spec.data[0],
        objectives=spec.objectives,
        metric=spec.metric,
        costs={name: int(value) for name, value in spec.costs.items()},
        trials={"asked": spec.trials, **found.counts},
        models=[row_fields(row) for row in found.rows],
        front=[row.number for row in found.front],
    )


def sweep_tables(found: Sweep) -> Tables:
    """Show the models that none beats, the least drop first."""
    spec, counts = found.spec, found.counts
    done = f"{counts['complete'] + counts['pruned']} of {count(spec.trials, 'trial')}"
    more = "".join(f", {counts[name]} {name}" for name in ("running", "failed") if counts[name])
    yield heading(f"front  {count(len(found.front), 'model')} that no other one beats", f"{done}{more}")
    tags = tags_of(found)
    costs = list(dict.fromkeys([*(name for name in spec.objectives if name in spec.costs), "macs", "size"]))
    columns = right("", "drop", "95%", *(t for name in costs for t in (_TITLES[name], "")), *tags) + flexible("recipe")
    yield table(columns, [list(_cells(row, spec.costs, costs, tags)) for row in found.front])
    what = title_of(spec.metric)
    yield paragraph(
        f"The drop is that of {what} against the file, on samples that choose. Shares are of the file.", FAINT
    )
    if unproved := [row.number for row in found.front if row.document["proved"] is False]:
        yield paragraph(f"Not proved in all parts: {', '.join(map(str, unproved))}.", FAINT)


def _cells(row: Row, whole: Any, costs: list[str], tags: list[str]) -> Iterator[Cell]:
    loss = row.loss
    yield from (str(row.number), f"{loss.value:z.2%}", f"{100 * loss.low:z.1f} to {100 * loss.high:z.1f}")
    for name in costs:
        yield from (si(int(row.costs[name]), _UNITS[name]), percent(share(row.costs[name], whole[name])))
    for tag in tags:
        own = row.latency(tag)
        yield "" if own is None else milliseconds(own["seconds"])
    yield str(row.document["told"])


def tags_of(found: Sweep) -> list[str]:
    """Return the hardware that models of the front were timed on."""
    tags = [found.spec.tag] if found.spec.tag else []
    return list(dict.fromkeys([*tags, *(tag for row in found.front for tag in row.latencies)]))


def picked_document(found: Picked, store: str, output: Path, recipe: Path) -> Document:
    """Return the document of a model that was taken."""
    picked = {
        **row_fields(found.row),
        **pick(found, "same", "drop", "metric", "evaluation"),
        "output": output,
        "recipe": recipe,
    }
    return document("sweep", store=shown(store), model=str(found.model), picked=picked)


def picked_tables(found: Picked) -> Tables:
    """Show the model that was taken, and how good its answers are on samples that chose nothing."""
    row, costs = found.row, found.candidate.costs
    yield heading(f"model {row.number}", str(row.document["told"]))
    rows = [(_TITLES[name], si(int(value), _UNITS[name])) for name, value in costs.items()]
    rows += [(f"latency on {tag}", milliseconds(own["seconds"])) for tag, own in row_fields(row)["latency"].items()]
    yield table(flexible("") + right(""), rows)
    proved = {True: "The pruning was proved again.", False: "The pruning isn't proved in all parts.", None: ""}
    same = "The bytes are those that the sweep made." if found.same else (
        "The bytes differ from those that the sweep made: another machine or other versions round differently."
    )  # fmt: skip
    yield paragraph(f"{proved[found.candidate.proved]} {same}".strip(), FAINT)
    if found.evaluation is not None:
        yield from evaluation_tables(found.evaluation)

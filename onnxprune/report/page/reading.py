"""Documents of commands as reports read them: stages, estimates and accuracies, and how these are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.layout import percent
from onnxprune.settings.evaluation import METRICS, judging, title_of

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a run, or a command.

    Attributes:
        name: its name.
        found: the fields of its document.
        top: whether it is a document of its own, and no part of another one.
    """

    name: str
    found: Fields
    top: bool = True

    def get(self, *keys: str) -> Any:
        """Return a field of a field, None if there is none."""
        value: Any = self.found
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def speed(self) -> Fields | None:
        """The speed, measured in turns: seconds before and after, the speed-up, and the provider."""
        found: Fields | None = self.get("outcome", "speed") or self.get("speed")
        return found

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Bytes of the file before and after."""
        if files := self.get("file_size"):
            return files["before"], files["after"]
        if self.get("tried"):
            before = self.get("before", "size")
            return before, self.get("best", "size") or before
        results = [r for case in (self.get("cases") or ())[:1] for r in case["results"]]
        if len(results) > 1:
            return results[0]["file_size"], results[-1]["file_size"]
        size = self.get("size")
        return (size[0], size[1]) if isinstance(size, list) else None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Scores on some samples.

    Attributes:
        stage: the stage that measured them.
        what: what the samples are, in a few words.
        samples: their number.
        scores: the scores, as documents have them.
        task: what the model is for; empty if that isn't known.
        data: the data's name.
        confidence: coverage of the intervals.
        compared: what the model is compared with.
    """

    stage: Stage
    what: str
    samples: int
    scores: Sequence[Fields]
    task: str
    data: str
    confidence: float = 0.95
    compared: str = "original"

    @property
    def first(self) -> Fields | None:
        """The score that tells most: the metric that judges, else the first."""
        by_name = {score["metric"]: score for score in reversed(self.scores)}
        labeled = [name for name in by_name if name in METRICS and METRICS[name].needs == "labels"]
        key = judging(labeled) or judging([name for name in by_name if name in METRICS])
        return by_name.get(key or "", self.scores[0] if self.scores else None)


def stages_of(documents: Sequence[Fields]) -> list[Stage]:
    """Return the documents and the stages in them: the fields "stages" and "finetuning"."""
    found = []
    for document in documents:
        found.append(Stage(str(document["report"]), document))
        found.extend(_inner(document))
    return found


def _inner(document: Fields) -> Iterator[Stage]:
    for stage in document.get("stages") or ():
        inside = stage.get("document") or {}
        yield Stage(str(stage["stage"]), {**inside, **stage}, top=False)
        yield from _inner(inside)
    if document.get("finetuning"):
        yield Stage("training", document["finetuning"], top=False)


def estimate(value: Any) -> Estimate | None:
    """Return a value with its interval; what documents have as null is NaN."""
    if value is None:
        return None
    ends = (value["value"], value["low"], value["high"])
    return Estimate(*(nan if end is None else float(end) for end in ends))


def accuracies(stages: Sequence[Stage]) -> Iterator[Accuracy]:
    """Yield all scores of some stages."""
    for stage in stages:
        data = str(stage.get("data") or stage.get("options", "data") or "")
        for found, what, compared in (
            (stage.found if stage.get("scores") else None, "", "original"),
            (stage.get("evaluation"), "held-out", "original"),
            (stage.get("before") if stage.get("before", "scores") else None, "before training", "teacher"),
            (stage.get("after") if stage.get("after", "scores") else None, "after training", "teacher"),
        ):
            if found:
                scores = list(found["scores"].values())
                yield Accuracy(
                    stage, what, found["samples"], scores, found["task"] or "", data, found["confidence"], compared
                )
        close = stage.get("outcome", "fidelity")
        if close and not stage.get("evaluation"):
            own = {key: close[key] for key in ("metric", "output")}
            share = METRICS[close["metric"]].share if close["metric"] in METRICS else False
            scores = [own | {"share": share, "model": close["value"], "original": None, "difference": None}]
            if close["accuracy"]:
                scores.insert(0, close["accuracy"])
            judged = str(stage.get("outcome", "judged")).replace(" ", "-")
            yield Accuracy(stage, judged, close["samples"], scores, close["task"] or "", data)


def named(text: str, stage: Stage, stages: Sequence[Stage]) -> str:
    """Return a caption, with the stage's name unless it is that of the only document."""
    return text if stage.top and sum(s.top for s in stages) == 1 else f"{text} ({stage.name})"


def metric_title(score: Fields) -> str:
    """Return the title of a metric."""
    title = title_of(str(score["metric"]))
    return title if score.get("output") is None else f"{title}, {score['output']}"


def number(value: float, share: bool, sign: str = "") -> str:
    """Write a value, a share in percent; a difference of shares, with a sign, in points."""
    if not isfinite(value):
        return "-"
    if share:
        return f"{100 * value:{sign}z.1f} pt" if sign else percent(value)
    return f"{value:{sign}z.4g}"


def interval(found: Estimate, share: bool, sign: str = "") -> str:
    """Write an interval: "97.4 to 99.5"."""
    ends = (number(end, share, sign).removesuffix(" %").removesuffix(" pt") for end in (found.low, found.high))
    return " to ".join(ends)


def factor(found: Estimate) -> str:
    """Write a speed-up with its interval."""
    return f"{found.value:.2f}x ({found.low:.2f} to {found.high:.2f})"

"""The tables of `benchmarks.recovery`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks.common import Column, Report, Table
from benchmarks.recovery_cases import DEFAULT, PACKAGED, SHARES, SUBJECTS, Case, variants

_ALL = (*SUBJECTS, *PACKAGED)

Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""

Times = tuple[float, float]
"""Seconds, wall-clock and processor."""

_NOTES = (
    "Models are pruned to a share of their multiply-accumulates and repaired from unlabeled inputs. Accuracy is "
    "measured on other samples. *Allocation* decides how many channels each layer loses, *criterion* which ones. The "
    "allocation reconstruction measures the error of the outputs for every group of channels, with the layers that "
    "read them refitted, and spends the budget where that costs least. *Recovery* refits all weights by least squares "
    "(reconstruct), the mean and variance of each channel (bn), or only the mean (bias). *Gradients* goes on with "
    "`--repair-epochs 40` after least squares, *distilled* with the defaults of `finetune` for as many epochs: both "
    "without labels, on most of the same inputs (four fifths, nine tenths); the others choose the epoch.",
    "*Every part* is allocation reconstruction, criterion obs, recovery reconstruct: the defaults of `prune --data` "
    "where only channels leave. The first tables replace parts of it. Their points are relative to every part: -5 "
    "means that the replaced parts contribute 5 points over their replacement. *Inputs: noise* is `--data random`, for "
    "models without data.",
    "*Axes* says what may be made smaller: channels, also in another basis, the resolution of images (a Resize inside "
    "the model), the rank of layers (one becomes two with few channels between), or several, "
    "chosen by the error of the outputs on calibration inputs held back. *Blocks* are residual blocks that leave as a "
    "whole (`--remove-blocks auto`).",
    "*Leave one network out* takes, of all ways that were measured on every network, the one that loses least on the "
    "others, and says what it loses on the one left out, beside the defaults of `prune --data` (channels and "
    "resolution) and what would have been best there. Points are the mean over a network's test sets.",
    "Intervals are 95 %. *Change* is against the dense model on the same samples, in points. Times are wall-clock "
    "seconds, with processor seconds (of all threads) in brackets. Planning includes measuring, which cases share.",
    "The images for MobileNetV2, SqueezeNet and EfficientNet-Lite0 are no validation set: compare accuracies with the "
    "dense model's only.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a case.

    Attributes:
        case: the case.
        top1: accuracy and its interval, in percent, by test set.
        change: accuracy minus the dense model's on the same samples, with its interval, in points.
        agreement: share of predictions equal to the dense model's, in percent.
        macs: the share of MACs that is left.
        plan: duration of measuring and planning.
        repair: duration of repair.
        failure: code and cause of the error, if the case failed.
        resolution: height and width that images are resized to inside the model; empty if they aren't.
    """

    case: Case
    top1: Mapping[str, Interval]
    change: Mapping[str, Interval]
    agreement: Mapping[str, float]
    macs: float
    plan: Times
    repair: Times
    failure: str = ""
    resolution: str = ""

    @classmethod
    def failed(cls, case: Case, failure: str) -> Result:
        """Return the result of a case that could not be measured."""
        return cls(case, {}, {}, {}, 0.0, (0.0, 0.0), (0.0, 0.0), failure)


def report(results: Sequence[Result], settings: Mapping[str, Any]) -> Report:
    """Return a report: the contribution of each part, then all cases of each model and test set."""
    failed = [r for r in results if r.failure]
    done = {r.case: r for r in results if not r.failure}
    tables = [*_left_out(done), *_ablations(done), *_cases(results)]
    if failed:
        reasons: Sequence[Column[Result]] = (
            Column("case", lambda r: str(r.case), text=True),
            Column("error", lambda r: r.failure, text=True),
        )
        tables.append(Table.of("What could not be done", reasons, failed))
    return Report(
        name="recovery",
        title="Accuracy after pruning, and what is won back without labels or gradients",
        notes=_NOTES,
        tables=tables,
        settings=settings,
        results={"cases": [asdict(r) for r in results]},
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What would have been chosen without looking at a network, in points lost on it.

    Attributes:
        network: the network.
        chosen: the way that loses least on the other networks, on average.
        change: what it loses on this network.
        default: what the defaults lose.
        best: the way that loses least on this network, ...
        least: ... and what it loses.
    """

    network: str
    chosen: str
    change: float
    default: float
    best: str
    least: float


def _left_out(results: Mapping[Case, Result]) -> Iterator[Table]:
    """Yield one table: each way to half the MACs chosen on all networks but one, and judged on that one."""
    named = ((s.name, variants(s.name, SHARES[0]).items()) for s in _ALL)
    points = {model: {name: _points(results[c]) for name, c in ways if c in results} for model, ways in named}
    points = {model: own for model, own in points.items() if DEFAULT in own}
    if len(points) < 3:
        return
    common = [name for name in next(iter(points.values())) if all(name in own for own in points.values())]
    rows = []
    for model, own in points.items():
        others = [points[other] for other in points if other != model]
        chosen = max(common, key=lambda name: mean(other[name] for other in others))
        best = max(common, key=own.__getitem__)
        rows.append(LeftOut(model, chosen, own[chosen], own[DEFAULT], best, own[best]))
    columns: Sequence[Column[LeftOut]] = (
        Column("network", lambda r: r.network, text=True),
        Column("chosen on the others", lambda r: r.chosen, text=True),
        Column("points", lambda r: f"{r.change:+.1f}"),
        Column("the defaults", lambda r: f"{r.default:+.1f}"),
        Column("best on this one", lambda r: r.best, text=True),
        Column("points", lambda r: f"{r.least:+.1f}"),
    )
    yield Table.of(f"Leave one network out, at {SHARES[0]:.2f} of the MACs", columns, rows)


def _points(result: Result) -> float:
    """Return the change of accuracy, in points: the mean over test sets."""
    return mean(value for value, _, _ in result.change.values())


def _ablations(results: Mapping[Case, Result]) -> Iterator[Table]:
    """Yield a table for each model: the contribution of each part at the first share."""
    share = SHARES[0]
    for subject in _ALL:
        named = {name: results[c] for name, c in variants(subject.name, share).items() if c in results}
        whole, *others = named.values() or [None]
        if whole is None or whole.case != Case(subject.name, share) or not others:
            continue
        columns = [Column("instead", _name_of(named), text=True)]
        for data in whole.top1:
            columns += [Column(f"{data}, %", _value(data)), Column("points", _against(whole, data))]
        yield Table.of(
            f"What each part brings to {subject.name} at {share:.2f} of its MACs", columns, [*named.values()]
        )


def _name_of(named: Mapping[str, Result]) -> Callable[[Result], str]:
    names = {result.case: name for name, result in named.items()}
    return lambda result: names[result.case]


def _value(data: str) -> Callable[[Result], str]:
    return lambda result: f"{result.top1[data][0]:.1f}"


def _against(whole: Result, data: str) -> Callable[[Result], str]:
    return lambda result: "" if result is whole else f"{result.top1[data][0] - whole.top1[data][0]:+.1f}"


def _cases(results: Sequence[Result]) -> Iterator[Table]:
    for subject in _ALL:
        own = [r for r in results if r.case.model == subject.name]
        for data in dict.fromkeys(data for r in own for data in r.top1):
            judged = [r for r in own if data in r.top1]
            dense = judged[0].top1[data][0] - judged[0].change[data][0]
            yield Table.of(f"{subject.name} on {data}, dense {dense:.1f} %", _columns(data), judged)


def _columns(data: str) -> Sequence[Column[Result]]:
    """Return the columns of a table of accuracies on a test set."""

    def spread(values: Callable[[Result], Mapping[str, Interval]], sign: str) -> Callable[..., str]:
        def cell(result: Result) -> str:
            value, low, high = values(result)[data]
            return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

        return cell

    return (
        Column("MACs", lambda r: f"{r.macs:.2f}"),
        Column("allocation", lambda r: r.case.allocation, text=True),
        Column("criterion", lambda r: r.case.criterion, text=True),
        Column("recovery", lambda r: r.case.recovery, text=True),
        Column("inputs", lambda r: r.case.calibration, text=True),
        Column("axes", lambda r: r.case.smaller.replace(",", ", "), text=True),
        Column("resolution", lambda r: r.resolution, text=True),
        Column("top-1, %", spread(lambda r: r.top1, "")),
        Column("change, points", spread(lambda r: r.change, "+")),
        Column("agreement, %", lambda r: f"{r.agreement[data]:.1f}"),
        Column("plan, s", lambda r: _times(r.plan)),
        Column("repair, s", lambda r: _times(r.repair)),
    )


def _times(seconds: Times) -> str:
    wall, processor = seconds
    return f"{wall:.0f} ({processor:.0f})"

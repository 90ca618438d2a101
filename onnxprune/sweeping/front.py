"""What a sweep has found: rows, those that none beats, and the one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError, VerificationError
from onnxprune.evaluation import Estimate
from onnxprune.sweeping.space import plainest

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True, slots=True)
class Row:
    """A model that a sweep has made and measured.

    Attributes:
        number: the number of its trial.
        choice: its recipe.
        document: what the store keeps of it.
        latencies: its latency on other hardware, by tag.
    """

    number: int
    choice: Mapping[str, Any]
    document: Mapping[str, Any]
    latencies: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> Estimate:
        """The drop in accuracy against the file, on samples that choose."""
        return Estimate(*(float("nan") if value is None else float(value) for value in self.document["drop"]))

    @property
    def tag(self) -> str:
        """The hardware of the worker that made it."""
        return str(self.document.get("tag", ""))

    @property
    def costs(self) -> Mapping[str, float]:
        """Its costs by name."""
        found: Mapping[str, float] = self.document["costs"]
        return found

    def latency(self, tag: str | None = None) -> Mapping[str, Any] | None:
        """Return its latency on some hardware, or where trials are timed; None if that wasn't measured.

        It has "seconds", those of the file as "before", and its "share" of these with an interval.
        """
        own: Mapping[str, Any] | None = self.document.get("latency")
        if own is not None and tag in (None, own["tag"]):
            return own
        return None if tag is None else self.latencies.get(tag)

    def value(self, objective: str) -> float:
        """Return the value of an objective, which is to be small."""
        if objective == "accuracy":
            return self.loss.value
        if objective == "latency":
            own = self.latency()
            return float("inf") if own is None else float(own["share"][0])
        return float(self.costs[objective])


def rows_of(study: Study) -> list[Row]:
    """Return the models that were measured, by the number of the trial; each once.

    Raises:
        UsageError: the store holds something else (OP613).
    """
    try:
        return _rows(study)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("OP613", f"the store's trials can't be read: {error}") from error


def _rows(study: Study) -> list[Row]:
    from onnxprune.sweeping.store import optuna

    latencies: dict[int, dict[str, Any]] = {}
    for name, value in study.user_attrs.items():
        kind, _, rest = name.partition(":")
        if kind == "latency":
            number, _, tag = rest.partition(":")
            latencies.setdefault(int(number), {})[tag] = value
    found: dict[tuple[Any, ...], Row] = {}
    for trial in study.get_trials(deepcopy=False, states=(optuna().trial.TrialState.COMPLETE,)):
        if "row" in trial.user_attrs:
            row = Row(trial.number, trial.params, trial.user_attrs["row"], latencies.get(trial.number, {}))
            if not all(isinstance(value, int | float) for value in (row.loss.value, *row.costs.values())):
                raise ValueError(f"trial {trial.number} has no measures")
            found.setdefault((row.tag, *sorted(plainest(trial.params).items())), row)
    return list(found.values())


def front_of(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """Return the rows that no other one beats: is at least as good in all objectives, and better in one.

    They come with the least drop first; of equal ones, the first is taken.
    """
    values = {row.number: tuple(row.value(name) for name in objectives) for row in rows}
    best = list[Row]()
    for row in sorted(rows, key=lambda row: (values[row.number], row.number)):
        own = values[row.number]
        if all(map(isfinite, own)) and not any(
            all(a <= b for a, b in zip(values[other.number], own, strict=True)) for other in best
        ):
            best.append(row)
    return sorted(best, key=lambda row: (row.loss.value, row.number))


def chosen(rows: Sequence[Row], max_drop: float, by: str, tag: str | None = None) -> Row:
    """Return the cheapest row within a drop.

    Args:
        rows: the rows.
        max_drop: the largest drop, as it was measured.
        by: the cost that decides.
        tag: the hardware, if that is the latency.

    Raises:
        VerificationError: there is none (OP507).
    """

    def cost(row: Row) -> float:
        if by != "latency":
            return row.costs[by]
        own = row.latency(tag)
        return float("inf") if own is None else float(own["share"][0])

    within = [row for row in rows if row.loss.value <= max_drop and isfinite(cost(row))]
    if not within:
        where = f" with a latency on {tag}" if tag else ""
        hint = "allow a larger drop with `max_drop`, or do more trials"
        raise VerificationError("OP507", f"no model{where} loses at most {max_drop:.2%}", hint=hint)
    return min(within, key=lambda row: (cost(row), row.loss.value, row.number))

"""Limits on measured values, which decide the exit status of a run in CI.

A value decides by itself. Its interval says whether other samples might decide otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxprune.benchmarking.gate import Change
from onnxprune.benchmarking.result import Benchmark
from onnxprune.errors import BenchmarkError, DataError, RegressionError, VerificationError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.sensitivity.outputs import drop
from onnxprune.settings.evaluation import higher_is_better

Unit = Literal["share", "factor", "number", "bytes"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a measured value.

    Attributes:
        name: what is measured.
        bound: whether the limit is the least or the most that is allowed.
        limit: the limit, allowed itself.
        found: the value, with its interval.
        unit: how the value is written.
    """

    name: str
    bound: Literal["least", "most"]
    limit: float
    found: Estimate
    unit: Unit = "number"

    @property
    def held(self) -> bool:
        """Whether the value is within the limit; NaN isn't."""
        return self._within(self.found.value)

    @property
    def decided(self) -> bool:
        """Whether the whole interval is on the value's side of the limit."""
        return self._within(self.found.low) == self._within(self.found.high) == self.held

    def _within(self, value: float) -> bool:
        return value >= self.limit if self.bound == "least" else value <= self.limit

    @property
    def more(self) -> str:
        """What would narrow the interval."""
        return "more rounds" if self.unit == "factor" else "more samples"

    @property
    def allowed(self) -> str:
        """The limit in words."""
        return f"at {self.bound} {self.write(self.limit)}"

    @property
    def interval(self) -> str:
        """The interval in words; empty if the value has none."""
        low, high = self.found.low, self.found.high
        return "" if low == high == self.found.value else f"{self.write(low)} to {self.write(high)}"

    def write(self, value: float) -> str:
        """Write a value in the gate's unit."""
        forms = {"share": f"{value:z.2%}", "factor": f"{value:.2f}x", "bytes": f"{value:,.0f} bytes"}
        return forms.get(self.unit, f"{value:z.4g}")

    def __str__(self) -> str:
        """Return the value, its interval and the limit."""
        interval = f" (interval {self.interval})" if self.interval else ""
        return f"{self.name} is {self.write(self.found.value)}{interval}; must be {self.allowed}"


def quality_gates(
    evaluation: Evaluation,
    max_drop: float | None = None,
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
) -> tuple[Gate, ...]:
    """Return the gates of an evaluation.

    Args:
        evaluation: the evaluation; a drop needs one against an original.
        max_drop: the largest drop of the task's first metric in `METRICS` that was measured.
        least: the least value of metrics, by name. Of several outputs, each must reach it.
        most: the largest value of metrics, by name.

    Raises:
        DataError: a metric wasn't measured, or no drop can be (OP711).
    """
    found: list[Gate] = []
    if max_drop is not None:
        metric = evaluation.judging
        if metric is None:
            raise DataError("OP711", f"no drop can be measured: {evaluation.recognized}", where="max_drop")
        unit: Unit = "share" if evaluation[metric].share else "number"
        name = f"drop of {metric}" if evaluation[metric].difference is not None else f"1 - {metric}"
        name = name if higher_is_better(metric) else f"rise of {metric}"
        found.append(Gate(name, "most", max_drop, drop(evaluation, metric), unit))
    bounds: tuple[tuple[Literal["least", "most"], Mapping[str, float] | None], ...] = (("least", least), ("most", most))
    for bound, limits in bounds:
        for metric, limit in (limits or {}).items():
            evaluation[metric]
            for score in evaluation.scores:
                if score.metric == metric:
                    found.append(Gate(score.key, bound, limit, score.model, "share" if score.share else "number"))
    return tuple(found)


def speed_gates(found: Benchmark, least: float) -> tuple[Gate, ...]:
    """Return the gates of a benchmark: every other model must be faster than the first by a factor.

    Raises:
        BenchmarkError: there is a single model (OP805).
    """
    gates = tuple(
        Gate(f"speed-up of {r.model}, {case.provider}, batch {case.batch}", "least", least, r.speedup, "factor")
        for case in found.cases
        for r in case.results
        if r.speedup is not None
    )
    if not gates:
        raise BenchmarkError("OP805", "a speed-up needs a second model", hint="give the original first")
    return gates


def size_gates(found: Benchmark, most: float, absolute: bool) -> tuple[Gate, ...]:
    """Return the gates of the files of a benchmark: of every model but the first, or of the only one.

    Args:
        found: the benchmark.
        most: the largest size, in bytes or as a share of the first model's.
        absolute: whether it is in bytes.
    """
    first, *others = found.cases[0].results
    limit = most if absolute else most * first.file_size
    return tuple(
        Gate(f"size of {r.model}", "most", limit, Estimate(size, size, size), "bytes")
        for r in others or [first]
        for size in [float(r.file_size)]
    )


def regression_gates(changes: Sequence[Change], most: float) -> tuple[Gate, ...]:
    """Return the gates of a comparison with an earlier benchmark, whose values have no intervals."""
    return tuple(
        Gate(
            f"slowdown of {c.model}, {c.provider}, batch {c.batch}, by {c.figure}",
            *("most", most),
            Estimate(c.slower, c.slower, c.slower),
            "share",
        )
        for c in changes
    )


def require(gates: Sequence[Gate]) -> None:
    """Raise an error if a gate was missed.

    Raises:
        RegressionError: a model isn't as fast as is required (OP807), or is larger than allowed (OP808).
        VerificationError: a metric is beyond its limit (OP508).
    """
    missed = [gate for gate in gates if not gate.held]
    if not missed:
        return
    first = missed[0]
    more = f", and {len(missed) - 1} more" if len(missed) > 1 else ""
    hint = None if first.decided else f"the interval reaches the limit: {first.more} may decide otherwise"
    if first.unit == "factor":
        raise RegressionError("OP807", f"{first}{more}", hint=hint)
    if first.unit == "bytes":
        raise RegressionError("OP808", f"{first}{more}", hint=hint)
    raise VerificationError("OP508", f"{first}{more}", hint=hint)

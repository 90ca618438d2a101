"""The loop that ends in a plan: predict, measure for real, correct, until the target is met or out of reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.benchmarking.isolated import tells_layers
from onnxprune.benchmarking.profile import notes_on_use, profile
from onnxprune.benchmarking.rounds import take_turns, warm_up
from onnxprune.benchmarking.session import Opened
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.statistics import Seconds, ratio, summarize
from onnxprune.channels.values import Mask
from onnxprune.errors import PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.latency.model import NetworkModel
from onnxprune.latency.probe import Numbers, Probe, probe_states
from onnxprune.latency.rungs import Choice, State, choice, kept_importance, removal, total_value
from onnxprune.latency.search import deepest, search
from onnxprune.latency.sizes import Sizes
from onnxprune.latency.table import Table
from onnxprune.latency.work import tensors_of, works
from onnxprune.planning.budget import Constraints, Scores, Target, nothing_to_prune, ways_down
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import generate_inputs
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

Progress = Callable[[int, int], None]

_CLOSE = 0.96  # of the target: a plan that takes less gave away too much
_AIM = 0.985  # of the target: measurements scatter, and it is to be met from below
_TRIES = 8
_PATIENCE = 3  # tries that all miss, after which the model isn't trusted
_ROUNDS = 25  # short ones: what disturbs the machine then disturbs both networks
_SURE = 0.03  # of the interval's width, relative, with which a measurement is good enough
_TRUSTED = 0.1  # of the interval's width, relative, with which it may end the search
_REPEATS = 4  # times so long to measure, at most, to get there
_SECONDS = 0.8  # of measuring each network, or
_FADING = 0.3  # how much less a measurement counts than the next one, which was nearer to the target
_DOUBT = 0.01  # what a measurement may be off beyond its interval, relative
_STIFFNESS = 3e-4  # variance of logarithms of predictions from which on measurements tell a slope
_SLOPES = 0.25, 1.5
_RUNS = 500  # runs where they are short


@dataclass(frozen=True, slots=True)
class Options:
    """Where a latency is meant, and what may be kept between runs.

    Attributes:
        provider: the execution provider.
        threads: threads within an operator, None for ONNX Runtime's default.
        cache: the folder for tables of measured layers; None to keep nothing.
        seed: of inputs and of the states that are measured.
    """

    provider: Provider = field(default_factory=lambda: Provider(CPU))
    threads: int | None = None
    cache: Path | None = None
    seed: int = 0


def plan_for_latency(
    graph: ChannelGraph,
    scores: Scores,
    constraints: Constraints,
    target: Target,
    options: Options | None = None,
    *,
    errors: bool = False,
    progress: Progress | None = None,
) -> LatencyResult:
    """Choose what to remove so that the network takes a share of its time, as measured here and now.

    Args:
        graph: the traced model; latencies are those at its input shapes.
        scores: importance of the units of every group; NaN for those that must stay.
        constraints: limits.
        target: the latency to stay below.
        options: where it is measured.
        errors: whether scores are errors of the outputs that add up, not importances within a group.
        progress: told how many networks of how many are measured; the last few may not be needed.

    Returns:
        The plan that keeps most of those that were measured and met the target.

    Raises:
        PlanError: a setting is out of range (OP303), a pattern matches no node (OP304), nothing can be pruned (OP310),
            or the target is out of reach (OP301).
        UsageError: the provider isn't available (OP608).
        ModelError: ONNX Runtime can't run the model (OP122).
    """
    target.check()
    fixed, ways = ways_down(graph, scores, constraints)
    choices = [choice(graph, graph.groups[i], scores[i], steps, errors=errors) for i, steps in ways.items() if steps]
    if not choices:
        raise nothing_to_prune()
    return _Pursuit(graph, choices, options or Options(), fixed, progress or (lambda done, total: None)).run(
        target.value
    )


class _Pursuit:
    """The state of the loop: the model of the network's time, and what it was fitted to."""

    def __init__(
        self,
        graph: ChannelGraph,
        choices: Sequence[Choice],
        options: Options,
        fixed: Mask,
        progress: Progress,
    ) -> None:
        self.graph, self.choices, self.options, self.fixed = graph, choices, options, fixed
        self.progress = progress
        self.rungs = [len(own) for own in choices]
        self.settings = SessionSettings(options.provider, options.threads)
        self.feeds = generate_inputs(graph.proto, graph.shapes.inputs, options.seed)
        self.sizes = Sizes(graph, choices, self.fixed, tensors_of(graph.proto))
        self.works = works(graph.proto, graph.shapes, self.sizes)
        self.alone = False
        if options.provider.name != CPU or options.provider.device is not None:
            placed = profile(graph.proto, self.feeds, self.settings, seconds=0.0)
            notes_on_use("the model", options.provider, placed)
            self.alone = not tells_layers(placed, self.settings)
        table = Table(options.cache, self.settings)
        self.probe = Probe(self.works, self.sizes, table, self.feeds, self.settings, self._build, alone=self.alone)
        self.original = Opened(graph.proto, self.feeds, self.settings)
        self.whole = _seconds(self.original)
        self.states: list[State] = []
        self.seconds: list[Numbers] = []
        self.wholes: list[tuple[State, float]] = [(np.zeros(len(choices), dtype=np.int64), self.whole)]

    def run(self, target: float) -> LatencyResult:
        """Predict, measure, correct, until it is done."""
        probes = probe_states(self.rungs, self.options.seed)
        for number, state in enumerate(probes):
            self.progress(number, len(probes) + _TRIES)
            self._learn(state)
            if self.alone:
                self.wholes.append((state, _seconds(Opened(self._build(state), self.feeds, self.settings))))
        lowest = deepest(self.choices)
        tries: dict[tuple[int, ...], Try] = {}
        best: tuple[float, State, Try] | None = None
        for number in range(_TRIES):
            model = self._fit()
            state = self._next(model, tries, target)
            if tuple(state.tolist()) in tries:
                break
            self.progress(len(probes) + number, len(probes) + _TRIES)
            done = tries[tuple(state.tolist())] = self._try(model, state)
            share = done.measured.value
            worth = total_value(self.choices, state)
            if share <= target and (best is None or worth > best[0]):
                best = worth, state, done
            sure = done.measured.high - done.measured.low < _TRUSTED * share
            if sure and (_CLOSE * target <= share <= target or (share > target and (state == lowest).all())):
                break
            self._learn(state)
            if self.alone:
                self.wholes.append((state, share * self.whole))
        if best is None and tuple(lowest.tolist()) not in tries:  # nothing is out of reach that wasn't tried
            done = tries[tuple(lowest.tolist())] = self._try(self._fit(), lowest)
            best = (0.0, lowest, done) if done.measured.value <= target else None
        if best is None:
            least = min(t.measured.value for t in tries.values())
            cause = f"the latency can't be brought to {target:.3g} of the original's on {self.options.provider.short}"
            hint = (
                f"{least:.3g} was reached with these constraints (--max-ratio, --min-channels, --exclude, --round-to)"
            )
            raise PlanError("OP301", cause, hint=hint)
        return self._found(best[1], best[2], tuple(tries.values()))

    def _next(self, model: NetworkModel, tries: Mapping[tuple[int, ...], Try], target: float) -> State:
        """Return the state to try: that which the model finds, unless it isn't to be trusted or can't tell finely."""
        if len(tries) >= _PATIENCE and all(t.measured.value > target for t in tries.values()):
            return self._between(tries, target)
        share = _to_predict(model, [(np.array(s), t.measured) for s, t in tries.items()], _AIM * target)
        found = search(model, self.choices, share * model(np.zeros(len(self.choices), dtype=np.int64)))
        state = deepest(self.choices) if found is None else found
        return self._between(tries, target) if tuple(state.tolist()) in tries else state

    def _try(self, model: NetworkModel, state: State) -> Try:
        predicted = model(state) / model(np.zeros(len(self.choices), dtype=np.int64))
        return Try(predicted, self._measure(state))

    def _between(self, tries: Mapping[tuple[int, ...], Try], target: float) -> State:
        """Return the state half way between the slowest that met the target and the fastest that didn't."""
        shares = {key: done.measured.value for key, done in tries.items()}
        met = max((k for k in shares if shares[k] <= target), key=shares.__getitem__, default=None)
        missed = min((k for k in shares if shares[k] > target), key=shares.__getitem__, default=None)
        low = deepest(self.choices) if met is None else np.array(met)
        high = np.zeros(len(self.choices), dtype=np.int64) if missed is None else np.array(missed)
        return np.asarray((low + high + 1) // 2)

    def _learn(self, state: State) -> None:
        """Measure the layers of a state."""
        self.states.append(state)
        self.seconds.append(self.probe(state))

    def _fit(self) -> NetworkModel:
        seconds = np.stack(self.seconds)
        return NetworkModel(self.works, self.sizes, self.states, seconds, self.rungs, self.wholes)

    def _measure(self, state: State) -> Estimate:
        """Measure a pruned network against the original, taking turns; return its share of the original's time."""
        pruned = Opened(self._build(state), self.feeds, self.settings)
        subjects = [self.original, pruned]
        typical = [warm_up(subject, _SECONDS).typical for subject in subjects]
        seconds = min(_SECONDS, _RUNS * max(typical))
        original, own = list[Seconds](), list[Seconds]()
        for _ in range(_REPEATS):
            more = take_turns(subjects, typical, rounds=_ROUNDS, seconds=seconds)
            original += more[0]
            own += more[1]
            share = ratio(own, original, seed=self.options.seed)
            if share.high - share.low < _SURE * share.value:
                break
        self.seconds_of_original = summarize(original).median
        return share

    def _build(self, state: State) -> ModelProto:
        return rewrite(PrunedGraph(self.graph, removal(self.choices, state, self.fixed)))

    def _found(self, state: State, done: Try, tries: tuple[Try, ...]) -> LatencyResult:
        table = self.probe.table
        return LatencyResult(
            removed=removal(self.choices, state, self.fixed),
            provider=self.options.provider.short,
            original=self.seconds_of_original,
            predicted=done.predicted,
            measured=done.measured,
            importance=kept_importance(self.choices, state),
            tries=tries,
            layers_measured=table.measured,
            layers_known=table.reused,
        )


def _to_predict(model: NetworkModel, measured: Sequence[tuple[State, Estimate]], target: float) -> float:
    """Return the share that a model must predict for a target to be met, by what was measured where it predicted what.

    A line through the logarithms of both, on which the later and the surer measurements weigh more. Its slope is one,
    a constant factor, as long as little says otherwise; it is mostly below, for a search finds just those states that
    the model takes for faster than they are.
    """
    if not measured:
        return target
    whole = model(np.zeros_like(measured[0][0]))
    x = np.log([model(state) / whole for state, _ in measured])
    y = np.log([share.value for _, share in measured])
    width = np.array([np.log(share.high / share.low) for _, share in measured])
    weights = _FADING ** np.arange(len(y))[::-1] / (width**2 + _DOUBT**2)
    weights /= weights.sum()
    at, risen = x - weights @ x, y - weights @ y
    slope = (weights @ (at * risen) + _STIFFNESS) / (weights @ at**2 + _STIFFNESS)
    return float(np.exp(weights @ x + (np.log(target) - weights @ y) / np.clip(slope, *_SLOPES)))


def _seconds(opened: Opened) -> float:
    """Return what a run takes when nothing disturbs it: a disturbance only ever makes runs longer."""
    typical = warm_up(opened, _SECONDS).typical
    return float(np.quantile(opened.block(max(5, min(_RUNS, int(_SECONDS / typical)))), 0.1))


@dataclass(frozen=True, slots=True)
class Try:
    """A plan that was measured.

    Attributes:
        predicted: its latency as a share of the original's, by the model as it was then.
        measured: the share that was measured, with its interval.
    """

    predicted: float
    measured: Estimate


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """What became of a target on latency.

    Attributes:
        removed: for every unit whether it leaves, shape (units,).
        provider: the execution provider's short name.
        original: seconds of the original.
        predicted: the plan's latency as a share of the original's, by the first model, before anything was corrected.
        measured: the share that was measured.
        importance: the share of importance that layers still read, on average.
        tries: all that were measured.
        layers_measured: how many layers were measured for it.
        layers_known: how many the table knew.
    """

    removed: Mask
    provider: str
    original: float
    predicted: float
    measured: Estimate
    importance: float
    tries: tuple[Try, ...]
    layers_measured: int
    layers_known: int

    def fields(self) -> dict[str, Any]:
        """Describe it in JSON's types, without the units."""
        return {
            "provider": self.provider,
            "original_seconds": self.original,
            "predicted_share": self.predicted,
            "measured_share": {"value": self.measured.value, "low": self.measured.low, "high": self.measured.high},
            "importance_kept": self.importance,
            "tries": [{"predicted": t.predicted, "measured": t.measured.value} for t in self.tries],
            "layers": {"measured": self.layers_measured, "known": self.layers_known},
        }

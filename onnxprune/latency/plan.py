"""The planning loop: predict, measure, correct, until the target is met or found out of reach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.benchmarking.isolated import has_layer_times
from onnxprune.benchmarking.profile import notes_on_use, profile
from onnxprune.benchmarking.rounds import compare, summarize, warm_up
from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.channels.values import Mask
from onnxprune.errors import ModelError, PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.latency.model import NetworkModel
from onnxprune.latency.probe import Numbers, Probe, probe_configs
from onnxprune.latency.result import LatencyResult, LatencyTrial, Options
from onnxprune.latency.search import search
from onnxprune.latency.table import LatencyTable
from onnxprune.latency.widths import (
    CandidateWidths,
    Config,
    candidate_widths,
    full_width,
    kept_importance,
    narrowest,
    removal,
    total_value,
)
from onnxprune.latency.work import Sizes, tensors_of, works
from onnxprune.model.states import sized
from onnxprune.planning.budget import Scores, candidate_steps, nothing_to_prune
from onnxprune.progress import Progress, silent
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.load import BUSY, Load
from onnxprune.runtime.provider import CPU
from onnxprune.settings.planning import Constraints, PlanSettings, Target, Targets
from onnxprune.shapes import runnable_inputs
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

log = logging.getLogger(__name__)

_CLOSE = 0.96  # relative to the target: a faster plan removed too much
_AIM = 0.985  # relative to the target: a margin for the scatter of measurements
_TRIES = 8
_PATIENCE = 3  # misses in a row from the start, after which the model isn't trusted
_ROUNDS = 25  # many short ones, so that disturbances affect both networks
_SURE = 0.03  # relative width of the interval at which a measurement is precise enough
_TRUSTED = 0.1  # relative width of the interval at which a measurement may end the loop
_REPEATS = 4  # of a measurement, at most, to become precise enough
_SECONDS = 0.8  # of measuring each network
_RUNS = 500  # of measuring a fast network, at most
_FADING = 0.3  # weight of a measurement relative to the next one, which is closer to the target
_DOUBT = 0.01  # relative error of a measurement beyond its interval
_STIFFNESS = 3e-4  # variance of log predictions from which measurements determine a slope
_SLOPES = 0.25, 1.5
_TOLD = 0.97  # of the original's latency, below which the effect of cleaning is told


def plan_for_latency(
    graph: ChannelGraph,
    scores: Scores | Callable[[], Scores],
    constraints: Constraints,
    target: Targets,
    options: Options | None = None,
    *,
    errors: bool = False,
    at_least: Mask | None = None,
    original: ModelProto | Path | None = None,
    progress: Progress = silent,
) -> LatencyResult:
    """Choose the units to remove so that the measured latency meets a target.

    If the network meets it as it is, nothing is removed.

    Args:
        graph: the traced model; latencies are those at its input shapes.
        scores: importance of each group's units; NaN for units that must stay. A function is called if the network
            doesn't meet the target as it is.
        constraints: limits of the plan.
        target: the latency to reach, or several.
        options: how latency is measured.
        errors: whether scores are output errors, which add up, instead of importances within a group.
        at_least: units that are removed in any case, shape (units,).
        original: the model that latencies are relative to; the traced one by default.
        progress: called with the networks that are measured; the last few may not be needed.

    Returns:
        The plan of most value among those measured to meet the target.

    Raises:
        PlanError: a setting is out of range (OP303), a pattern matches no node (OP304), nothing can be pruned (OP310),
            or the target is out of reach (OP301).
        UsageError: the provider isn't available (OP608).
        ModelError: ONNX Runtime can't run the model (OP122).
    """
    targets = PlanSettings(target=target).timed
    planner = _Planner(graph, targets, options or Options(), progress, original)
    if at_least is None and not constraints.ratio_for and (found := planner.as_it_is()) is not None:
        return found
    scores = scores() if callable(scores) else scores
    fixed, ways = candidate_steps(graph, scores, constraints)
    least = fixed if at_least is None else at_least
    candidates = [
        candidate_widths(
            graph, group := graph.groups[i], scores[i], steps, errors=errors, least=int(least[group.units].sum())
        )
        for i, steps in ways.items()
        if steps
    ]
    planner.prepare(candidates, fixed)
    return planner.run()


class _Planner:
    """The planning loop, with the measurements that the model of the network's time is fitted to."""

    def __init__(
        self,
        graph: ChannelGraph,
        targets: Sequence[Target],
        options: Options,
        progress: Progress,
        original: ModelProto | Path | None,
    ) -> None:
        self.graph, self.targets, self.options, self.progress = graph, targets, options, progress
        progress("time the model", 0, None)
        self.settings = SessionSettings(options.provider, options.threads)
        self.feeds = runnable_inputs(graph.proto, graph.shapes.inputs, options.seed)
        self.alone = False
        if options.provider.name != CPU or options.provider.device is not None:
            placed = profile(graph.proto, self.feeds, self.settings, seconds=0.0)
            notes_on_use("the model", options.provider, placed)
            self.alone = not has_layer_times(placed, self.settings)
        self.load = Load()
        self.cleaned: Estimate | None = None
        self.seconds_of_original = 0.0
        self.whole_model = self._timed(rewrite(PrunedGraph(graph)))
        self.original = self._opened(original)
        self.base = self.cleaned or Estimate(1.0, 1.0, 1.0)
        if self.cleaned is None and any(target.absolute for target in targets):
            self.base = self._compare(self.whole_model)
        self.target = min(t.value / self.seconds_of_original if t.absolute else t.value for t in targets)

    def prepare(self, candidates: Sequence[CandidateWidths], fixed: Mask) -> None:
        """Set what can be removed.

        Args:
            candidates: the candidate widths of each group.
            fixed: units that are removed in any case.
        """
        self.candidates, self.fixed = candidates, fixed
        self.counts = [len(own) for own in candidates]
        self.sizes = Sizes(self.graph, candidates, fixed, tensors_of(self.graph.proto))
        self.works = works(self.graph.proto, self.graph.shapes, self.sizes)
        self.table = LatencyTable(self.options.cache, self.settings)
        self.probe = Probe(self.works, self.sizes, self.table, self._fed, self.settings, self._build, alone=self.alone)
        self.start = full_width(candidates)
        self.reduced = bool(removal(candidates, self.start, fixed).any())
        self.first = self._timed(self._build(self.start)) if self.reduced else self.whole_model
        self.whole = _seconds(self.first)
        self.configs: list[Config] = []
        self.seconds: list[Numbers] = []
        self.wholes: list[tuple[Config, float]] = [(self.start, self.whole)]

    def _opened(self, original: ModelProto | Path | None) -> TimedSession:
        """Open the model that latencies are relative to; if it isn't the traced one, compare that with it."""
        if original is None:
            return self.whole_model
        try:
            self.original = TimedSession(original, self.feeds, self.settings)
        except ModelError as error:
            log.warning("latencies are relative to the cleaned model, as the file can't be timed: %s", error.cause)
            return self.whole_model
        self.cleaned = self._compare(self.whole_model)
        if self.cleaned.high < _TOLD:
            log.info("cleaning alone makes the model %.3g times as fast", 1 / self.cleaned.value)
        return self.original

    def as_it_is(self) -> LatencyResult | None:
        """Return the plan that removes nothing, if it meets all targets."""
        if self.base.value > self.target:
            return None
        nothing = np.zeros(self.graph.unit_count, dtype=bool)
        return self._result(nothing, LatencyTrial(self.base.value, self.base))

    def run(self) -> LatencyResult:
        """Predict, measure and correct until all targets are met, or out of reach."""
        target = self.target
        if self.reduced:
            self.base = self._compare(self.first)
        if self.base.value <= target:
            return self._found(self.start, LatencyTrial(self.base.value, self.base), ())
        if not self.candidates:
            raise nothing_to_prune()
        if self.load.share() > BUSY:
            log.warning(
                "other processes take %.0f%% of the processor's time: times of layers that they disturb count for this"
                " plan only, and are measured again later",
                100 * self.load.share(),
            )
        probes = probe_configs(self.counts, self.options.seed)
        for number, config in enumerate(probes):
            self.progress("measure latency", number, len(probes) + _TRIES)
            self._learn(config)
            if self.alone:
                self.wholes.append((config, _seconds(self._timed(self._build(config)))))
        lowest = narrowest(self.candidates)
        tries: dict[tuple[int, ...], LatencyTrial] = {}
        best: tuple[float, Config, LatencyTrial] | None = None
        for number in range(_TRIES):
            model = self._fit()
            config = self._next(model, tries, target)
            if tuple(config.tolist()) in tries:
                break
            self.progress("measure latency", len(probes) + number, len(probes) + _TRIES)
            done = tries[tuple(config.tolist())] = self._try(model, config)
            share = done.measured.value
            worth = total_value(self.candidates, config)
            if share <= target and (best is None or worth > best[0]):
                best = worth, config, done
            sure = done.measured.high - done.measured.low < _TRUSTED * share
            if sure and (_CLOSE * target <= share <= target or (share > target and (config == lowest).all())):
                break
            self._learn(config)
            if self.alone:
                self.wholes.append((config, share * self.whole / self.base.value))
        if best is None and tuple(lowest.tolist()) not in tries:  # try it before giving up
            done = tries[tuple(lowest.tolist())] = self._try(self._fit(), lowest)
            best = (0.0, lowest, done) if done.measured.value <= target else None
        if best is None:
            least = min(t.measured.value for t in tries.values())
            limits = " and ".join(t.text for t in self.targets)
            of = "" if all(t.absolute for t in self.targets) else " of the original's"
            cause = f"the latency can't be brought to {limits}{of} on {self.options.provider.short}"
            reached = f"{100 * least:.3g}%" if of else f"{1e3 * least * self.seconds_of_original:.3g} ms"
            hint = f"{reached} was reached with the constraints (`max_ratio`, `min_channels`, `exclude`, `round_to`)"
            raise PlanError("OP301", cause, hint=hint)
        return self._found(best[1], best[2], tuple(tries.values()))

    def _next(self, model: NetworkModel, tries: Mapping[tuple[int, ...], LatencyTrial], target: float) -> Config:
        """Return the configuration to try: the model's, or one between tries if those contradict it or it was tried."""
        if len(tries) >= _PATIENCE and all(t.measured.value > target for t in tries.values()):
            return self._between(tries, target)
        base = self.base.value
        known = [(np.array(s), Estimate(*(v / base for v in astuple(t.measured)))) for s, t in tries.items()]
        share = _to_predict(model, known, _AIM * target / base)
        found = search(model, self.candidates, share * model(self.start))
        config = narrowest(self.candidates) if found is None else found
        return self._between(tries, target) if tuple(config.tolist()) in tries else config

    def _try(self, model: NetworkModel, config: Config) -> LatencyTrial:
        predicted = self.base.value * model(config) / model(self.start)
        return LatencyTrial(predicted, self._measure(config))

    def _between(self, tries: Mapping[tuple[int, ...], LatencyTrial], target: float) -> Config:
        """Return the configuration halfway between the slowest that met the target and the fastest that missed it."""
        shares = {key: done.measured.value for key, done in tries.items()}
        met = max((k for k in shares if shares[k] <= target), key=shares.__getitem__, default=None)
        missed = min((k for k in shares if shares[k] > target), key=shares.__getitem__, default=None)
        low = narrowest(self.candidates) if met is None else np.array(met)
        high = self.start if missed is None else np.array(missed)
        return np.asarray((low + high + 1) // 2)

    def _learn(self, config: Config) -> None:
        """Measure the layers of a configuration."""
        self.configs.append(config)
        self.seconds.append(self.probe(config))

    def _fit(self) -> NetworkModel:
        seconds = np.stack(self.seconds)
        return NetworkModel(self.works, self.sizes, self.configs, seconds, self.counts, self.wholes)

    def _measure(self, config: Config) -> Estimate:
        """Return a pruned network's time relative to the original's, from interleaved rounds."""
        return self._compare(self._timed(self._build(config)))

    def _compare(self, network: TimedSession) -> Estimate:
        """Return a network's time relative to the original's, from interleaved rounds."""
        subjects = [self.original, network]
        typical = [warm_up(subject, _SECONDS).typical for subject in subjects]
        seconds = min(_SECONDS, _RUNS * max(typical))
        pace: dict[str, Any] = {"rounds": _ROUNDS, "seconds": seconds, "sure": _SURE, "repeats": _REPEATS}
        # The speed-up of the original over the network is the network's relative time.
        share, _, original = compare(network, self.original, typical[::-1], **pace, seed=self.options.seed)
        self.seconds_of_original = self.seconds_of_original or summarize(original).median
        return share

    def _timed(self, proto: ModelProto) -> TimedSession:
        return TimedSession(proto, self._fed(proto), self.settings)

    def _fed(self, proto: ModelProto) -> Feeds:
        """Return inputs for the original or a pruned network: their states may have other sizes."""
        return sized(proto, [state.input for state in self.graph.states], self.feeds)

    def _build(self, config: Config) -> ModelProto:
        return rewrite(PrunedGraph(self.graph, removal(self.candidates, config, self.fixed)))

    def _found(self, config: Config, done: LatencyTrial, tries: tuple[LatencyTrial, ...]) -> LatencyResult:
        return replace(
            self._result(removal(self.candidates, config, self.fixed), done),
            importance=kept_importance(self.candidates, config),
            tries=tries,
            layers_measured=self.table.measured,
            layers_known=self.table.reused,
        )

    def _result(self, removed: Mask, done: LatencyTrial) -> LatencyResult:
        return LatencyResult(
            removed=removed,
            provider=self.options.provider.short,
            original=self.seconds_of_original or _seconds(self.whole_model),
            cleaned=self.cleaned,
            predicted=done.predicted,
            measured=done.measured,
            importance=1.0,
            tries=(),
            layers_measured=0,
            layers_known=0,
            load=self.load.share(),
        )


def _to_predict(model: NetworkModel, measured: Sequence[tuple[Config, Estimate]], target: float) -> float:
    """Return the relative time that the model must predict for a target to be met, corrected by measurements.

    The correction is a line through the logarithms of predicted and measured times, weighted toward later and more
    precise measurements. Its slope is near one, a constant factor, unless the measurements say otherwise; it is usually
    lower, since the search favors configurations whose time the model underestimates.
    """
    if not measured:
        return target
    whole = model(np.zeros_like(measured[0][0]))
    x = np.log([model(config) / whole for config, _ in measured])
    y = np.log([share.value for _, share in measured])
    width = np.array([np.log(share.high / share.low) for _, share in measured])
    weights = _FADING ** np.arange(len(y))[::-1] / (width**2 + _DOUBT**2)
    weights /= weights.sum()
    dx, dy = x - weights @ x, y - weights @ y
    slope = (weights @ (dx * dy) + _STIFFNESS) / (weights @ dx**2 + _STIFFNESS)
    return float(np.exp(weights @ x + (np.log(target) - weights @ y) / np.clip(slope, *_SLOPES)))


def _seconds(opened: TimedSession) -> float:
    """Return the seconds of an undisturbed run: a low quantile, since disturbances only make runs longer."""
    typical = warm_up(opened, _SECONDS).typical
    return float(np.quantile(opened.block(max(5, min(_RUNS, int(_SECONDS / typical)))), 0.1))

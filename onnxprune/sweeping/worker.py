"""A worker: takes recipes from the store one after the other, makes and measures their models, and tells the store."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import DataError, OnnxPruneError, UsageError
from onnxprune.evaluation import Estimate
from onnxprune.model.file import Model, load, save
from onnxprune.progress import Progress, silent, time_left, within
from onnxprune.sweeping.candidate import Bench, Candidate
from onnxprune.sweeping.front import Row, front_of, rows_of
from onnxprune.sweeping.machine import turn
from onnxprune.sweeping.space import Space, plainest
from onnxprune.sweeping.store import Beats, Spec, optuna
from onnxprune.workflow.recipe import write_recipe

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

BEAT = 20.0
"""Seconds between two signs of life."""

_MISSED = 5  # beats without which a worker is dead
_TRIES = 3  # of a recipe whose workers die
_POLL = 1.0  # seconds

Sampler = Callable[[int], "BaseSampler"]
"""Returns what proposes recipes, given a random seed."""


def tpe(seed: int) -> BaseSampler:
    """Return the tree-structured Parzen estimator for several objectives.

    Ozaki et al., Multiobjective tree-structured Parzen estimator for computationally expensive optimization problems,
    GECCO 2020.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions call `multivariate` experimental
        found: BaseSampler = optuna().samplers.TPESampler(seed=seed, multivariate=True)
    return found


@dataclass(slots=True)
class Worker:
    """A worker of a sweep.

    Attributes:
        study: the sweep in its store.
        spec: what it says.
        bench: the model and its data.
        provider: the execution provider that latency is measured on; None if none is.
        tag: this machine's hardware.
        folder: where models of the front are kept; None for nowhere.
        sampler: what proposes recipes.
        progress: called with phases and their parts.
    """

    study: Study
    spec: Spec
    bench: Bench
    provider: str | None = None
    tag: str = ""
    folder: Path | None = None
    sampler: Sampler = tpe
    progress: Progress = silent

    def run(self, seconds: float = float("inf")) -> None:
        """Work until all trials are done or the time is over, and measure latency on the front where that is missing.

        Raises:
            OnnxPruneError: the data or the settings are wrong, so that no trial can work.
        """
        name, end = f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:8]}", time.monotonic() + seconds
        beats, times = Beats(_MISSED * BEAT), list[float]()
        makes = self.spec.tag in ("", self.tag)
        with _alive(self.study, name):
            while time.monotonic() < end:
                self._bury(beats)
                trials = _counted(self.study)
                done = sum(trial.state.is_finished() for trial in trials)
                if done >= self.spec.trials:
                    break
                if not makes:
                    self._time_front()
                if not makes or len(trials) >= self.spec.trials:
                    self.progress("wait for other workers", done, self.spec.trials)
                    time.sleep(_POLL)
                    continue
                began = time.monotonic()
                self._next(name, done, times, 1 + len(trials) - done)
                times.append(time.monotonic() - began)
        self._time_front()

    def _next(self, name: str, done: int, times: Sequence[float], workers: int) -> None:
        """Do one trial."""
        study, states = self.study, optuna().trial.TrialState
        number = len(study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        study.sampler = self.sampler(seed)
        trial = study.ask(fixed_distributions=distributions(self.spec.space))
        try:
            trial.set_user_attr("worker", name)
            if sum(other.number < trial.number for other in _counted(study)) >= self.spec.trials:
                study.tell(trial, state=states.FAIL)  # others were faster
                return
            left = time_left(float(np.mean(times)) * (self.spec.trials - done) / workers) if times else ""
            said = f"trial {done + 1} of {self.spec.trials}{left}"
            values, why = self._tried(trial, within(self.progress, said))
            if values is None:
                trial.set_user_attr("why", why)
                study.tell(trial, state=states.PRUNED)
            else:
                study.tell(trial, values)
                self._tidy()
        except BaseException as error:
            if _is_finished(error):  # it was taken for dead, and the recipe was given to another worker
                log.warning("trial %d was done by another worker meanwhile", trial.number)
                return
            with suppress(Exception):
                study.tell(trial, state=states.FAIL)
                if isinstance(error, KeyboardInterrupt):
                    study.enqueue_trial(trial.params)
            raise

    def _tried(self, trial: Trial, progress: Progress) -> tuple[list[float] | None, str]:
        """Return the values of the objectives, or why there are none."""
        point, objectives = plainest(trial.params), self.spec.objectives
        timed, began = "latency" in objectives, time.monotonic()
        known = rows_of(self.study)
        same = next((row for row in known if plainest(row.choice) == point and row.tag == self.tag), None)
        if same is not None:
            trial.set_user_attr("row", same.document)
            return [same.value(name) for name in objectives], ""
        try:
            with _together(timed):
                made = self.bench.make(trial.params, progress)
                limit = self._hopeless(made, known)
                loss, samples = self.bench.loss(made, limit, progress)
            if not isfinite(loss.value):
                return None, "no drop can be measured"
            if loss.low > limit:
                return None, f"the drop is surely above {limit:.1%}, by {samples} samples"
            speed = self._timed(made.model) if timed else None
        except (DataError, UsageError):
            raise
        except OnnxPruneError as error:
            return None, f"{error.code}: {error.cause}"
        document = row_of(made, loss, time.monotonic() - began, self.tag)
        if speed is not None:
            document["latency"] = speed
        trial.set_user_attr("row", document)
        row = Row(trial.number, dict(trial.params), document)
        if self.folder is not None and front_of([*known, row], objectives).count(row):
            self._keep(row, made)
        return [row.value(name) for name in objectives], ""

    def _hopeless(self, made: Candidate, known: Sequence[Row]) -> float:
        """Return the drop from which on a model is surely worse than one that is known, or loses too much."""
        others = [name for name in self.spec.objectives if name != "accuracy"]
        if "latency" in others:
            return self.spec.max_drop
        better = (row for row in known if all(row.value(name) <= made.costs[name] for name in others))
        return min([self.spec.max_drop, *(row.loss.high for row in better)])

    def _timed(self, model: Model) -> dict[str, Any]:
        assert self.provider is not None
        self.progress("wait for a quiet machine", 0, None)
        with turn(alone=True):
            speed, untimed = self.bench.speed(model, self.provider)
        if speed is None:
            raise UsageError("OP608", f"no latency can be measured: {untimed}", where=self.provider)
        share = speed.speedup.inverse
        return {
            "tag": self.tag,
            "seconds": speed.after,
            "before": speed.before,
            "share": [share.value, share.low, share.high],
        }

    def _time_front(self) -> None:
        """Measure the latency of the front's models on this hardware, where that is missing."""
        if self.provider is None:
            return
        for row in front_of(rows_of(self.study), self.spec.objectives):
            if row.latency(self.tag) is None:
                self.progress(f"time model {row.number}", 0, None)
                model = self._kept(row) or self.bench.make(row.choice, self.progress).model
                self.study.set_user_attr(f"latency:{row.number}:{self.tag}", self._timed(model))

    def _keep(self, row: Row, made: Candidate) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{row.number:04}.onnx"
        save(made.model, path, force=True)
        if made.result.kept:
            text = write_recipe(path.with_suffix(".toml"), Path(self.spec.model[0]), path, made.settings, made.result)
            path.with_suffix(".toml").write_text(text, encoding="utf-8")

    def _kept(self, row: Row) -> Model | None:
        path = None if self.folder is None else self.folder / f"{row.number:04}.onnx"
        if path is None or not path.is_file():
            return None
        found = load(path)
        return found if found.sha256 == row.document["sha256"] else None

    def _tidy(self) -> None:
        """Remove the models that have left the front."""
        if self.folder is None:
            return
        rows = rows_of(self.study)
        best = {row.number for row in front_of(rows, self.spec.objectives)}
        for row in rows:
            if row.number not in best:
                for suffix in (".onnx", ".toml"):
                    (self.folder / f"{row.number:04}{suffix}").unlink(missing_ok=True)

    def _bury(self, beats: Beats) -> None:
        """Fail the trials of workers that have died, and put their recipes back."""
        study, state = self.study, optuna().trial.TrialState
        running = study.get_trials(deepcopy=False, states=(state.RUNNING,))
        attrs = study.user_attrs if running else {}
        for trial in running:
            worker = trial.user_attrs.get("worker", f"of trial {trial.number}")
            if not beats.dead(worker, attrs.get(f"beat:{worker}")):
                continue
            try:
                study.tell(trial.number, state=state.FAIL)
            except Exception as error:
                if not _is_finished(error):
                    raise
                continue  # another worker did it
            tries = 1 + trial.user_attrs.get("tries", 0)
            log.warning("the worker of trial %d has died", trial.number)
            if tries < _TRIES:
                study.enqueue_trial(trial.params, user_attrs={"tries": tries})


def row_of(made: Candidate, loss: Estimate, seconds: float, tag: str) -> dict[str, Any]:
    """Return what a store keeps of a model."""
    return {
        "drop": [loss.value, loss.low, loss.high],
        "costs": dict(made.costs),
        "proved": made.proved,
        "sha256": made.model.sha256,
        "told": made.told,
        "seconds": seconds,
        "tag": tag,
    }


def distributions(space: Space) -> dict[str, Any]:
    """Return the axes of a space as Optuna has them."""
    kinds = optuna().distributions
    return {
        axis.name: kinds.CategoricalDistribution(axis.choices)
        if axis.choices
        else kinds.IntDistribution(axis.low, axis.high)
        for axis in space
    }


def _counted(study: Study) -> list[FrozenTrial]:
    """Return the trials that count: those that were done or stopped early, and those under way."""
    states = optuna().trial.TrialState
    return study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.RUNNING))


def _is_finished(error: BaseException) -> bool:
    """Whether an error says that a trial can't be changed, as it is finished."""
    return type(error).__name__ == "UpdateFinishedTrialError" or "Cannot tell a" in str(error)


@contextmanager
def _together(timed: bool) -> Iterator[None]:
    """Leave the machine to others while they measure time, if the sweep does."""
    if not timed:
        yield
        return
    with turn(alone=False):
        yield


@contextmanager
def _alive(study: Study, name: str) -> Iterator[None]:
    """Give signs of life in another thread."""
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while True:
            number += 1
            with suppress(Exception):  # the worker itself meets a store that is lost
                study.set_user_attr(f"beat:{name}", number)
            if stop.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(BEAT)

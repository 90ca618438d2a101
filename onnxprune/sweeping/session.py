"""Begin a sweep, join one, read what it has found, and take a model of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.file import load
from onnxprune.progress import Progress, silent
from onnxprune.runtime.provider import parse_provider
from onnxprune.sensitivity import curve_of, entry_of
from onnxprune.settings import DataSettings, PickSettings, ShrinkSettings, SweepSettings, build
from onnxprune.settings.declare import given
from onnxprune.settings.reading import either, plain, read
from onnxprune.sweeping.candidate import Bench, Candidate, bench
from onnxprune.sweeping.front import Row, chosen, front_of, rows_of
from onnxprune.sweeping.space import first_points
from onnxprune.sweeping.store import Spec, create, file_of, join, open_store, same_sweep
from onnxprune.sweeping.worker import Sampler, Worker, tpe
from onnxprune.workflow.recipe import digest

_COMMON = ("effort", "threads", "seed", "custom_ops")
_FILES = ("data", "labels", "tokenizer", "alphabet", "preprocess")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep has found.

    Attributes:
        spec: the sweep.
        rows: the models that were measured.
        front: those that no other one beats, the least drop first.
        counts: number of trials by state: complete, pruned (stopped early, or no such model), failed, running.
    """

    spec: Spec
    rows: tuple[Row, ...]
    front: tuple[Row, ...]
    counts: Mapping[str, int]

    def __repr__(self) -> str:
        """Return the numbers of models and of those on the front."""
        return f"Sweep({len(self.rows)} models, {len(self.front)} on the front)"


@dataclass(frozen=True, slots=True)
class Picked:
    """A model that was taken from a sweep, made and proved again.

    Attributes:
        model: the file that it was made of.
        row: what the sweep had measured of it.
        candidate: the model, with its recipe.
        same: whether its bytes are those that the sweep had made.
        evaluation: the model against the file, on samples that chose nothing.
        drop: its drop in accuracy there.
        metric: the metric of that.
    """

    model: Path
    row: Row
    candidate: Candidate
    same: bool
    evaluation: Evaluation | None
    drop: Estimate | None
    metric: str


def sweep(
    model: str | os.PathLike[str] | None = None,
    settings: SweepSettings | None = None,
    *,
    progress: Progress = silent,
    sampler: Sampler = tpe,
    **options: Any,
) -> Sweep:
    """Look for the best trade-offs of a model, or work for a sweep that has begun.

    Args:
        model: the model's file; None for the one that the store names.
        settings: the settings; `options` are an alternative.
        progress: called with phases and their parts.
        sampler: what proposes recipes.
        **options: fields of `SweepSettings` and `DataSettings`: store, join, data, trials, objective, ...

    Raises:
        UsageError: Optuna or what the store needs isn't installed (OP605), the store can't be used (OP613), or the
            model or the data are others than the store's (OP613).
        PlanError: a setting isn't allowed (OP302, OP303).
        ModelError: the model can't be read or run.
        DataError: the data can't be read or don't fit.

    Examples:
        >>> import onnxprune as op
        >>> op.sweep("models/digits_resnet.onnx", store="x.sweep")
        Traceback (most recent call last):
        ...
        onnxprune.errors.UsageError: error[OP604]: there are no inputs to measure accuracy with
          help: give some with `data`
    """
    settings = either(SweepSettings, settings, options)
    store = settings.join or settings.store
    if store is None:
        raise UsageError("OP602", "nothing says where trials are kept", hint="name a file with `store`")
    if settings.join is None:
        return _begin(store, model, settings, progress, sampler)
    study, spec = join(open_store(store, create=False))
    path, samples = _checked(spec, model, settings.samples)
    shrink = _shrink(samples, spec.settings)
    with bench(path, shrink, tuple(map(curve_of, spec.curves)), progress) as opened:
        _work(study, spec, opened, settings, store, progress, sampler)
    return found(store)


def _begin(store: str, model: Any, settings: SweepSettings, progress: Progress, sampler: Sampler) -> Sweep:
    """Explore a model, describe the sweep in the store, and work for it."""
    if model is None:
        raise UsageError("OP602", "a new sweep needs a model", hint="name its file, or join a sweep with `join`")
    samples = settings.samples
    if samples.data is None:
        raise UsageError("OP604", "there are no inputs to measure accuracy with", hint="give some with `data`")
    samples = _written(samples)
    with _opened(store) as storage:
        return _begin_in(storage, store, model, samples, settings, progress, sampler)


@contextmanager
def _opened(store: str) -> Iterator[Any]:
    """Open a store; if the sweep can't begin, no new file is left."""
    file = file_of(store)
    fresh = file is not None and not file.exists()
    storage = open_store(store, create=True)
    try:
        yield storage
    except BaseException:
        if file is not None and fresh and _known(storage) is None:
            file.unlink(missing_ok=True)
        raise


def _begin_in(
    storage: Any,
    store: str,
    model: Any,
    samples: DataSettings,
    settings: SweepSettings,
    progress: Progress,
    sampler: Sampler,
) -> Sweep:
    path, data = Path(os.path.abspath(model)), os.fspath(samples.data)
    common = {name: value for name, value in given(settings).items() if name in _COMMON}
    common |= {name: value for name, value in plain(samples).items() if name != "data"}
    timed = "latency" in settings.objective
    tag = _tag(settings, "cpu" if timed else settings.provider)
    sizes = (load(path).sha256, digest(Path(data)) if Path(data).exists() else "")
    spec = Spec(
        model=(str(path), sizes[0]),
        data=(data, sizes[1]),
        settings=common,
        objectives=settings.objective,
        space=(),
        curves=(),
        metric="",
        costs={},
        trials=settings.trials,
        max_drop=settings.max_drop,
        seed=settings.seed,
        tag=tag if timed else "",
    )
    if (known := _known(storage)) is not None:
        same_sweep(known, spec)
    curves = () if known is None else tuple(map(curve_of, known.curves))
    with bench(path, _shrink(samples, common), curves, progress) as opened:
        if known is None:
            space = opened.explore(progress)
            points = first_points(space, opened.pipeline.analysis, opened.curves)
            entries = [entry_of(curve, opened.pipeline.analysis.graph) for curve in opened.curves]
            spec = replace(spec, space=space, curves=entries, metric=opened.metric, costs=opened.costs)
        else:
            points = []
            names = ("space", "curves", "metric", "costs")
            spec = replace(spec, **{name: getattr(known, name) for name in names})
        study = create(storage, spec, points)
        _work(study, spec, opened, settings, store, progress, sampler)
    return found(store)


def _written(samples: DataSettings) -> DataSettings:
    """Return how data are read as text, with absolute paths, for workers elsewhere to read them alike.

    Raises:
        UsageError: something can't be written as text (OP604).
    """
    values = given(samples)
    for name, value in values.items():
        if isinstance(value, os.PathLike) or (name in _FILES and isinstance(value, str) and Path(value).exists()):
            values[name] = os.path.abspath(value)
    found = build(DataSettings, values)
    if others := values.keys() - plain(found).keys():
        cause = "workers open the data for themselves, and this is no file and no name"
        raise UsageError("OP604", cause, where=min(others))
    return found


def _known(storage: Any) -> Spec | None:
    """Return the sweep that a store has already; None if there is none."""
    try:
        return join(storage)[1]
    except UsageError as error:
        if error.hint == "begin one with `store`":
            return None
        raise


def _work(
    study: Any,
    spec: Spec,
    opened: Bench,
    settings: SweepSettings,
    store: str,
    progress: Progress,
    sampler: Sampler,
) -> None:
    provider = settings.provider or ("cpu" if spec.tag else None)
    tag = _tag(settings, provider)
    if provider is not None:
        parse_provider(provider)  # refuses an unknown one before the work
    if spec.tag not in ("", tag) and settings.provider is None:
        cause = f"the sweep measures latency on {spec.tag}, and this worker's hardware is {tag}"
        hint = "name this machine's hardware with `provider` and `tag`: the best models are then timed there, too"
        raise UsageError("OP602", cause, hint=hint)
    file = file_of(store)
    beside = None if file is None else file.with_name(f"{file.name}.models")
    folder = beside if settings.keep_models is None else Path(settings.keep_models)
    Worker(study, spec, opened, provider, tag, folder, sampler, progress).run(settings.seconds)


def _tag(settings: SweepSettings, provider: str | None) -> str:
    return settings.tag or (parse_provider(provider).short if provider else "")


def _shrink(samples: DataSettings, common: Mapping[str, Any]) -> ShrinkSettings:
    """Return what all recipes have in common as settings of `shrink`."""
    own = read(ShrinkSettings, {n: v for n, v in common.items()})
    return build(ShrinkSettings, {**own, "data": samples.data})


def _checked(spec: Spec, model: Any, samples: DataSettings) -> tuple[Path, DataSettings]:
    """Return the model's file and the data of a worker, which must be those of the store.

    Raises:
        UsageError: they have other contents, or aren't here (OP613).
    """
    path = Path(os.path.abspath(model)) if model is not None else Path(spec.model[0])
    data = samples.data if samples.data is not None else spec.data[0]
    for name, file, wanted in (("model", path, spec.model[1]), ("data", Path(os.fspath(data)), spec.data[1])):
        if wanted and not file.exists():
            hint = f"name this machine's copy: {'the file is an argument' if name == 'model' else 'set `data`'}"
            raise UsageError("OP613", f"the sweep's {name} isn't here", where=str(file), hint=hint)
        if wanted and (load(file).sha256 if name == "model" else digest(file)) != wanted:
            raise UsageError("OP613", f"the sweep is of another {name}: the contents differ", where=str(file))
    return path, replace(samples, data=os.fspath(data))


def found(store: str) -> Sweep:
    """Return what a sweep has found so far.

    Raises:
        UsageError: there is no such sweep (OP613), or a package is missing (OP605).
    """
    study, spec = join(open_store(store, create=False))
    rows = rows_of(study)
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    names = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "running"}
    counts = {shown: states.count(name) for name, shown in names.items()}
    return Sweep(spec, tuple(rows), tuple(front_of(rows, spec.objectives)), counts)


def pick(store: str, settings: PickSettings | None = None, *, progress: Progress = silent, **options: Any) -> Picked:
    """Return the cheapest model of a sweep within a drop, made, proved and judged again.

    Args:
        store: the store.
        settings: which model; `options` are an alternative.
        progress: called with phases and their parts.
        **options: fields of `PickSettings`: max_drop, minimize, latency_on, model, data.

    Raises:
        UsageError: the store, the model or the data can't be used (OP613).
        VerificationError: no model is within the drop (OP507), or it can't be proved (OP501).
    """
    settings = either(PickSettings, settings, options)
    sweep = found(store)
    spec = sweep.spec
    default = "latency" if settings.latency_on else next(name for name in spec.objectives if name != "accuracy")
    by = settings.minimize or default
    tag = settings.latency_on or (spec.tag if by == "latency" else None)
    row = chosen(sweep.front, settings.max_drop, by, tag)
    path, samples = _checked(spec, settings.model, DataSettings(data=settings.data))
    with bench(path, _shrink(samples, spec.settings), tuple(map(curve_of, spec.curves)), progress) as opened:
        made = opened.make(row.choice, progress)
        evaluation, loss = opened.judged(made, progress)
        same = made.model.sha256 == row.document["sha256"]
        return Picked(path, row, made, same, evaluation, loss, opened.metric)

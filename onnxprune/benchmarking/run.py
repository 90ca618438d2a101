"""The benchmark: every model on every provider at every batch size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.benchmarking.inputs import Arrays, check_same_inputs, make_inputs
from onnxprune.benchmarking.isolated import isolated, tells_layers
from onnxprune.benchmarking.layers import TimedLayer, layers
from onnxprune.benchmarking.paid import LayerChange, compare_layers
from onnxprune.benchmarking.profile import Profile, notes_on_use, profile
from onnxprune.benchmarking.result import Benchmark, Case, Operator, Result
from onnxprune.benchmarking.rounds import take_turns, warm_up
from onnxprune.benchmarking.session import Feeds, Opened
from onnxprune.benchmarking.settings import BenchmarkSettings, SessionSettings
from onnxprune.benchmarking.statistics import ratio, summarize
from onnxprune.benchmarking.worker import Worker
from onnxprune.cost.terms import is_weight
from onnxprune.model.file import Model, file_size
from onnxprune.normalize import normalize
from onnxprune.runtime.environment import environment
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.shapes import concretize

Progress = Callable[[str, float], None]
Models = Mapping[str, Model]

_MEMORY_RUNS = 3  # runs after which a model has taken all the memory that it needs


def benchmark(
    models: Models,
    settings: BenchmarkSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure models side by side.

    Args:
        models: loaded models by name; the others are compared with the first.
        settings: how to measure.
        shapes: sizes for inputs with symbolic dimensions.
        inputs: an array for each input; generated ones by default.
        progress: is called with what is under way and the share of it that is done.

    Raises:
        BenchmarkError: a setting is out of range (OP801), the models take different inputs (OP803), or a process
            ended (OP802).
        UsageError: a provider isn't available, doesn't start or runs nothing (OP608); a shape doesn't fit (OP603).
        ModelError: ONNX Runtime can't load or run a model (OP122).
    """
    settings = settings or BenchmarkSettings()
    settings.check()
    check_same_inputs([(name, model.proto) for name, model in models.items()])
    where, cases = environment(), []
    first = next(iter(models.values()))
    for provider in settings.providers:
        for batch in settings.batches:
            feeds = make_inputs(first.proto, batch, shapes=shapes, given=inputs, seed=settings.seed)
            cases.append(_case(models, provider, feeds, settings, progress or (lambda what, share: None)))
    return Benchmark(where, settings, tuple(cases))


def session_settings(provider: Provider, settings: BenchmarkSettings) -> SessionSettings:
    """Return what sessions on a provider are opened with."""
    return SessionSettings(provider, settings.threads, settings.level, settings.arena)


def _case(models: Models, provider: Provider, feeds: Arrays, settings: BenchmarkSettings, progress: Progress) -> Case:
    """Measure all models on one provider and at one batch size."""
    opening = session_settings(provider, settings)
    profiles: dict[str, Profile] = {}
    if settings.profile or provider.name != CPU:
        progress(f"{provider.short}: profile", 0.0)
        profiles = {
            name: profile(normalize(model.proto), feeds, opening, seconds=settings.seconds / 4)
            for name, model in models.items()
        }
    notes: list[str] = []
    for name, found in profiles.items():
        notes += notes_on_use(name, provider, found, accept=settings.fallback)
    results = _measure(models, feeds, opening, settings, profiles, progress)
    notes += [f"{r.model}: the median hadn't settled when warming up ended" for r in results if not r.settled]
    changes: tuple[LayerChange, ...] = ()
    if settings.profile and len(models) > 1:
        pair = list(models)[:2]
        if not all(tells_layers(profiles[name], opening) for name in pair):
            progress(f"{provider.short}: profile layers", 0.0)
            profiles |= {name: isolated(normalize(models[name].proto), feeds, opening) for name in pair}
            notes.append(f"the profile of {provider.short} doesn't tell layers apart: each was run by itself")
        changes = compare_layers(*((_layers(models[name], feeds), profiles[name]) for name in pair))
    shapes = {name: array.shape for name, array in feeds.items()}
    return Case(provider.short, _samples(feeds), shapes, results, changes, tuple(notes))


def _measure(
    models: Models,
    feeds: Feeds,
    opening: SessionSettings,
    settings: BenchmarkSettings,
    profiles: Mapping[str, Profile],
    progress: Progress,
) -> tuple[Result, ...]:
    what = opening.provider.short
    with ExitStack() as stack:
        subjects: dict[str, Opened | Worker] = {}
        for name, model in models.items():
            progress(f"{what}: load", len(subjects) / len(models))
            source = model.path or model.proto
            subjects[name] = (
                stack.enter_context(Worker(source, feeds, opening))
                if settings.isolate
                else Opened(source, feeds, opening)
            )
        memory = {name: _peak_memory(subjects[name], model, feeds, opening) for name, model in models.items()}
        progress(f"{what}: warm up", 0.0)
        warm = {name: warm_up(subject, settings.warm_up) for name, subject in subjects.items()}
        rounds = take_turns(
            list(subjects.values()),
            [w.typical for w in warm.values()],
            rounds=settings.rounds,
            seconds=settings.seconds,
            progress=lambda share: progress(f"{what}: measure", share),
        )
        results: list[Result] = []
        for (name, subject), own in zip(subjects.items(), rounds, strict=True):
            latency = summarize(own)
            speedup = ratio(rounds[0], own, confidence=settings.confidence, seed=settings.seed) if results else None
            found = profiles.get(name)
            results.append(
                Result(
                    model=name,
                    weights=_weights(models[name]),
                    file_size=file_size(models[name]),
                    load=subject.load,
                    first=subject.first,
                    latency=latency,
                    throughput=_samples(feeds) / latency.median,
                    speedup=speedup,
                    settled=warm[name].settled,
                    peak_memory=memory[name],
                    copies=subject.copies(),
                    placement=() if found is None else found.placement(),
                    provider_options=subject.provider_options(),
                    operators=_operators(found) if found is not None and settings.profile else (),
                )
            )
        return tuple(results)


def _peak_memory(subject: Opened | Worker, model: Model, feeds: Feeds, opening: SessionSettings) -> int | None:
    """Return a model's peak of memory, for which it needs a process that runs nothing else."""
    if isinstance(subject, Worker):
        subject.block(_MEMORY_RUNS)
        return subject.peak_memory()
    with Worker(model.path or model.proto, feeds, opening) as alone:
        return _peak_memory(alone, model, feeds, opening)


def _layers(model: Model, feeds: Feeds) -> list[TimedLayer]:
    proto = normalize(model.proto)
    return layers(proto, concretize(proto, {name: array.shape for name, array in feeds.items()}))


def _weights(model: Model) -> str:
    """Name the type that most elements of the weights have."""
    elements = Counter[str]()
    for tensor in model.proto.graph.initializer:
        if is_weight(tensor):
            elements[tensor_dtype_to_np_dtype(tensor.data_type).name] += prod(tensor.dims)
    return max(elements, key=elements.__getitem__, default="")


def _operators(found: Profile) -> tuple[Operator, ...]:
    kinds = (Operator(op, count, seconds) for op, (count, seconds) in found.by_operator().items())
    return tuple(sorted(kinds, key=lambda o: -o.seconds))


def _samples(feeds: Feeds) -> int:
    """Count the samples in a run, by the longest first axis of inputs of two axes or more."""
    return max((len(array) for array in feeds.values() if array.ndim > 1), default=1)

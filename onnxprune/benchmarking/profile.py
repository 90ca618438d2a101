"""ONNX Runtime's profiles, read per kernel, with the layer that each kernel belongs to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnxprune.benchmarking.layers import tag, tag_of, untagged
from onnxprune.benchmarking.rounds import Seconds
from onnxprune.benchmarking.session import Feeds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.errors import ModelError, UsageError
from onnxprune.model import session as _runtime
from onnxprune.runtime.provider import Provider

_SUFFIX = "_kernel_time"
_IGNORED = 3  # first runs, which allocate memory


@dataclass(frozen=True, slots=True)
class Kernel:
    """A node as ONNX Runtime runs it.

    Attributes:
        name: its name.
        op: its operator, possibly a fused one.
        domain: the operator's domain; empty if the optimized graph can't be saved.
        provider: the execution provider that runs it.
        layer: the number of its layer (see `layers`), None for nodes inserted between layers.
        seconds: its time per run.
        spread: the range of the middle half of the runs, in seconds.
    """

    name: str
    op: str
    domain: str
    provider: str
    layer: int | None
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """The part of a model that a provider runs.

    Attributes:
        provider: its name.
        nodes: its share of the nodes after fusion, 0 to 1.
        time: its share of the nodes' time, 0 to 1.
    """

    provider: str
    nodes: float
    time: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's time by kernel.

    Attributes:
        kernels: the kernels in the order of their runs.
        total: seconds of a whole run, including the overhead of profiling.
    """

    kernels: tuple[Kernel, ...]
    total: float

    def placement(self) -> tuple[Placement, ...]:
        """Return the providers' shares, largest share of time first."""
        nodes, time = defaultdict[str, int](int), defaultdict[str, float](float)
        for kernel in self.kernels:
            nodes[kernel.provider] += 1
            time[kernel.provider] += kernel.seconds
        whole = sum(time.values()) or 1.0
        found = (Placement(p, nodes[p] / len(self.kernels), time[p] / whole) for p in nodes)
        return tuple(sorted(found, key=lambda p: -p.time))

    def by_layer(self) -> dict[int | None, list[Kernel]]:
        """Return the kernels by layer; None holds those that belong to no layer."""
        found: dict[int | None, list[Kernel]] = {}
        for kernel in self.kernels:
            found.setdefault(kernel.layer, []).append(kernel)
        return found

    def by_operator(self) -> dict[str, tuple[int, float]]:
        """Return the number of kernels of each operator and their seconds."""
        found: dict[str, tuple[int, float]] = {}
        for kernel in self.kernels:
            count, seconds = found.get(kernel.op, (0, 0.0))
            found[kernel.op] = count + 1, seconds + kernel.seconds
        return found


def profile(proto: ModelProto, feeds: Feeds, settings: SessionSettings, *, seconds: float, most: int = 200) -> Profile:
    """Profile a model.

    Profiling adds time to each kernel, so shares are more accurate than sums. On GPUs, whose kernels run
    asynchronously, times are those of launching kernels; the placement is right nevertheless.

    Args:
        proto: the model.
        feeds: an array for each input.
        settings: the session's settings.
        seconds: approximate time to run it.
        most: maximum number of runs.

    Raises:
        UsageError: the provider isn't available (OP608).
        ModelError: ONNX Runtime can't load or run the model (OP122).
    """
    tagged = tag(proto)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        written = Path(folder, "optimized.onnx")
        try:
            opened = _session(tagged, settings, Path(folder), written)
        except ModelError:  # providers that compile the graph can't save the optimized one
            opened = _session(tagged, settings, Path(folder), None)
        spent, runs = 0.0, 0
        while runs <= _IGNORED or (spent < seconds and runs < most):
            start = perf_counter()
            _runtime.run(opened, feeds)
            spent, runs = spent + perf_counter() - start, runs + 1
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
        return read(events, _graph(written))


def read(events: Iterable[Mapping[str, Any]], graph: Mapping[str, tuple[str, int | None]]) -> Profile:
    """Build a profile from ONNX Runtime's events.

    Args:
        events: the events, times in microseconds.
        graph: the domain and layer of nodes of the optimized graph, as far as known.
    """
    totals: list[float] = []
    times: dict[str, list[float]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    end = -1.0
    for event in sorted(events, key=lambda e: (e.get("ts", 0), -e.get("dur", 0))):
        if event.get("name") == "model_run":
            totals.append(event["dur"] * 1e-6)
            end = -1.0
        elif totals and event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and event["ts"] >= end:
            # An event that begins before the last node's end is a node of its subgraph, and counted with it.
            name, end = event["name"].removesuffix(_SUFFIX), event["ts"] + event["dur"]
            about.setdefault(name, event["args"])
            own = times.setdefault(name, [])
            own.extend([0.0] * (len(totals) - len(own)))
            own[-1] += event["dur"] * 1e-6
    kernels = []
    for name, args in about.items():
        domain, layer = graph.get(name, ("", tag_of([name])))
        op, provider = str(args.get("op_name", "")), str(args.get("provider", ""))
        runs = times[name]
        kernels.append(Kernel(untagged(name), op, domain, provider, layer, _typical(runs), spread_of(runs[_IGNORED:])))
    return Profile(tuple(kernels), _typical(totals))


def _session(tagged: ModelProto, settings: SessionSettings, folder: Path, written: Path | None) -> Any:
    def configure(options: Any) -> None:
        settings.configure(options)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        if written is not None:
            options.optimized_model_filepath = str(written)

    return _runtime.session(tagged, providers=settings.chain(), threads=settings.threads, configure=configure)


def _graph(written: Path) -> dict[str, tuple[str, int | None]]:
    """Return the domain and layer of each node of the optimized graph; an inserted node has its neighbors' layer."""
    if not written.exists():
        return {}
    nodes = onnx.load(written, load_external_data=False).graph.node
    found = {}
    for node in nodes:
        layers = map(tag_of, ([node.name], node.output, node.input))
        found[node.name] = node.domain, next((layer for layer in layers if layer is not None), None)
    return found


def _typical(times: list[float]) -> float:
    """Return the mean of the fastest three quarters: times in whole microseconds are too coarse for a median."""
    ordered = np.sort(times[_IGNORED:] or times)
    return float(ordered[: max(1, len(ordered) * 3 // 4)].mean()) if len(ordered) else 0.0


def spread_of(times: Sequence[float] | Seconds) -> float:
    """Return the range of the middle half of some times; 0 for none."""
    low, high = np.quantile(times, [0.25, 0.75]) if len(times) else (0.0, 0.0)
    return float(high - low)


def notes_on_use(name: str, provider: Provider, found: Profile, *, accept: bool = False) -> list[str]:
    """Return notes on nodes that other providers run.

    Args:
        name: the model's name.
        provider: the requested provider.
        found: the model's profile.
        accept: whether to accept a provider that runs no node.

    Raises:
        UsageError: it runs no node, and that isn't accepted (OP608).
    """
    own = next((p for p in found.placement() if p.provider == provider.name), None)
    others = ", ".join(p.provider for p in found.placement() if p.provider != provider.name)
    if own is None:
        cause = f"{provider.name} runs no node of {name}: {others} runs all of them"
        if accept:
            return [cause]
        raise UsageError("OP608", cause, hint="omit the provider; see the command `doctor`")
    if not others:
        return []
    return [
        f"{name}: {provider.name} runs {own.nodes:.0%} of the nodes ({own.time:.0%} of the time), {others} the rest"
    ]

"""What only another execution provider than the CPU's can show: whichever of them the installed ONNX Runtime starts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from onnxprune import load
from onnxprune.benchmarking import benchmark, parse_provider
from onnxprune.benchmarking.inputs import make_inputs
from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.latency import Options, plan_for_latency
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.doctor import try_provider
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.settings.benchmarking import BenchmarkSettings
from onnxprune.settings.planning import Constraints, Target
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.latency.networks import residual
from tests.toolbox import Net, inputs_of, run_once

_HOST = ("CPUExecutionProvider", "AzureExecutionProvider")
_OTHERS = [name for name in import_onnxruntime().get_available_providers() if name not in _HOST]
_NONE = pytest.param("", marks=pytest.mark.skip(reason="needs an ONNX Runtime with another provider than the CPU's"))

pytestmark = pytest.mark.gpu
provider = pytest.mark.parametrize("name", _OTHERS or [_NONE])


@cache
def _starts(name: str) -> bool:
    return try_provider(name).works


@pytest.fixture(autouse=True)
def _working(name: str) -> None:
    if not _starts(name):
        pytest.skip(f"{name} doesn't start here")


@provider
def test_runs_there(name: str) -> None:
    there = parse_provider(name)
    settings = BenchmarkSettings(providers=(there, parse_provider("cpu")), batches=(1, 8), seconds=0.2)
    cases = benchmark({"net": load(_dynamic())}, settings).cases
    assert [(c.provider, c.batch) for c in cases] == [(p, b) for p in (there.short, "cpu") for b in (1, 8)]
    (found,) = cases[0].results
    assert found.placement[0].provider == name and (found.copies is not None) == (there.device is not None)


@provider
def test_layers_are_timed(name: str) -> None:
    """From its profile if that has layer times, else one by one."""
    models = {"one": load(_dynamic()), "two": load(_dynamic())}
    settings = BenchmarkSettings(providers=(parse_provider(name),), seconds=0.2, profile=True)
    (case,) = benchmark(models, settings).cases
    assert all(min(c.seconds) > 0 for c in case.layers if c.op == "Conv")


@provider
def test_computes_what_the_cpu_does(name: str) -> None:
    model = load(_dynamic())
    feeds = make_inputs(model.proto, 2)
    there = parse_provider(name)
    if name == "CUDAExecutionProvider":
        there = there.with_option("use_tf32", "0")
    opened = TimedSession(model.proto, feeds, SessionSettings(there))
    assert name != "CUDAExecutionProvider" or "use_tf32" in opened.provider_options()
    (value,) = opened.session.run(None, dict(feeds))
    (wanted,) = run_once(model.proto, feeds).values()
    np.testing.assert_allclose(value, wanted, atol=1e-3)


@provider
def test_plans_for_it(name: str) -> None:
    graph = residual(64, 56)
    rng = np.random.default_rng(0)
    scores = [rng.uniform(0.5, 1.5, len(group.units)) for group in graph.groups]
    options = Options(parse_provider(name))
    found = plan_for_latency(graph, scores, replace(Constraints(), max_ratio=0.95), Target("latency", 0.9), options)
    assert found.provider == options.provider.short and found.measured.value <= 0.9
    assert run_once(rewrite(PrunedGraph(graph, found.removed)), inputs_of(graph))


def _dynamic() -> bytes:
    net = Net()
    x = net.input((1, 3, 64, 64), "x", symbols={0: "batch"})
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 64, 3))
    net.output(net.conv(x, 4, 1), symbols={0: "batch"})
    return net.model().SerializeToString()

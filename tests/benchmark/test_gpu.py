"""What only a GPU can show. Needs a CUDA device and onnxruntime-gpu."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune import load
from onnxprune._runtime import import_onnxruntime
from onnxprune.benchmark import Settings, benchmark, parse_provider
from onnxprune.benchmark.inputs import make_inputs
from onnxprune.benchmark.session import Opened
from onnxprune.benchmark.settings import SessionSettings
from onnxprune.budget import Guards, Target
from onnxprune.doctor import try_provider
from onnxprune.kept import Kept
from onnxprune.latency import Options, plan_for_latency
from onnxprune.rewrite import rewrite
from tests.latency.networks import residual
from tests.toolbox import inputs_of, run_once

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers()
        or not try_provider("CUDAExecutionProvider").works,
        reason="needs a CUDA device and onnxruntime-gpu",
    ),
]


def test_runs_on_the_device() -> None:
    settings = Settings(providers=(parse_provider("cuda"), parse_provider("cpu")), batches=(1, 8), seconds=0.2)
    cases = benchmark({"net": load(_dynamic())}, settings).cases
    assert [(c.provider, c.batch) for c in cases] == [("cuda", 1), ("cuda", 8), ("cpu", 1), ("cpu", 8)]
    (on_device,) = cases[0].results
    assert on_device.placement[0].provider == "CUDAExecutionProvider" and on_device.copies is not None
    assert "use_tf32" in on_device.provider_options


def test_computes_what_the_cpu_does() -> None:
    model = load(_dynamic())
    feeds = make_inputs(model.proto, 2)
    cuda = parse_provider("cuda").with_option("use_tf32", "0")
    opened = Opened(model.proto, feeds, SessionSettings(cuda))
    (value,) = (v.numpy() for v in opened._binding.get_outputs())
    (wanted,) = run_once(model.proto, feeds).values()
    np.testing.assert_allclose(value, wanted, atol=1e-3)


def test_plans_for_the_device() -> None:
    graph = residual(64, 56)
    rng = np.random.default_rng(0)
    scores = [rng.uniform(0.5, 1.5, len(group.units)) for group in graph.groups]
    options = Options(parse_provider("cuda"))
    found = plan_for_latency(graph, scores, replace(Guards(), max_ratio=0.95), Target("latency", 0.9), options)
    assert found.provider == "cuda" and found.measured.value <= 0.9
    assert run_once(rewrite(Kept(graph, found.removed)), inputs_of(graph))


def _dynamic() -> bytes:
    from tests.toolbox import Net

    net = Net()
    x = net.input((1, 3, 64, 64), "x", symbols={0: "batch"})
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 64, 3))
    net.output(net.conv(x, 4, 1), symbols={0: "batch"})
    return net.model().SerializeToString()

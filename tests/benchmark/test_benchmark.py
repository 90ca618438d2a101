"""The benchmark on real models: what it measures, and that nothing runs elsewhere unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune import PlanSettings, analyze, load, prune, save
from onnxprune.benchmarking import Provider, benchmark, parse_provider
from onnxprune.benchmarking.inputs import make_inputs
from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.worker import TimedProcess
from onnxprune.errors import BenchmarkError, ModelError, UsageError
from onnxprune.model.file import Model
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.settings.benchmarking import BenchmarkSettings
from tests.toolbox import Net

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"
CPU = Provider("CPUExecutionProvider")
AZURE = Provider("AzureExecutionProvider")  # comes with most builds, and runs only nodes of its own
needs_azure = pytest.mark.skipif(
    AZURE.name not in import_onnxruntime().get_available_providers(), reason=f"needs {AZURE.name}"
)
QUICK = BenchmarkSettings(seconds=0.05, rounds=5, threads=1)


def chain(width: int) -> Model:
    net = Net()
    x = net.input((1, 3, 32, 32), "x", symbols={0: "batch"})
    for _ in range(4):
        x = net.op("Relu", net.conv(x, width, 3))
    net.output(net.conv(x, 4, 1), symbols={0: "batch"})
    return load(net.model())


@pytest.fixture(scope="module")
def pair() -> dict[str, Model]:
    return {"wide": chain(64), "narrow": chain(16)}


class TestBenchmark:
    def test_side_by_side(self, pair: dict[str, Model]) -> None:
        (case,) = benchmark(pair, QUICK).cases
        wide, narrow = case.results
        assert wide.speedup is None and narrow.speedup is not None
        assert narrow.speedup.value > 2.0  # a sixteenth of the work
        assert wide.latency.median / narrow.latency.median == pytest.approx(narrow.speedup.value, rel=0.3)
        assert wide.throughput == pytest.approx(1 / wide.latency.median)
        assert wide.weights == "float32"
        assert wide.load > 0 and wide.first >= wide.latency.best
        assert wide.peak_memory is None or wide.peak_memory > 1e5
        assert case.shapes == {"x": (1, 3, 32, 32)}

    def test_a_model_against_itself(self) -> None:
        (case,) = benchmark({"one": chain(32), "two": chain(32)}, replace(QUICK, seconds=0.5, rounds=10)).cases
        assert case.results[1].speedup is not None
        assert case.results[1].speedup.value == pytest.approx(1.0, abs=0.15)

    def test_isolated(self, pair: dict[str, Model]) -> None:
        (case,) = benchmark(pair, replace(QUICK, isolate=True)).cases
        assert case.results[1].speedup is not None and case.results[1].speedup.value > 2.0

    def test_batches(self, pair: dict[str, Model]) -> None:
        one, eight = benchmark({"wide": pair["wide"]}, replace(QUICK, batches=(1, 8))).cases
        assert (one.batch, eight.batch) == (1, 8)
        assert eight.results[0].latency.median > 3 * one.results[0].latency.median

    def test_file_size(self) -> None:
        (case,) = benchmark({"digits": load(DIGITS)}, QUICK).cases
        assert case.results[0].file_size == DIGITS.stat().st_size

    def test_profile(self, tmp_path: Path) -> None:
        analysis = analyze(DIGITS)
        pruned = prune(analysis, op.plan(analysis, PlanSettings(ratio=0.5)), check=False).proto
        save(pruned, tmp_path / "small.onnx")
        models = {"dense": load(DIGITS), "small": load(tmp_path / "small.onnx")}
        (case,) = benchmark(models, replace(QUICK, profile=True)).cases
        convs = [n for n in load(DIGITS).proto.graph.node if n.op_type == "Conv"]
        layers = {c.name: c for c in case.layers}
        assert {n.name for n in convs} <= set(layers)
        assert all(layers[n.name].seconds[0] > 0 for n in convs)
        assert layers[convs[3].name].macs[1] < layers[convs[3].name].macs[0]
        assert all(bool(c.reason) == (c.paid is False) for c in case.layers)
        spent = sum(o.seconds for o in case.results[0].operators)
        assert spent == pytest.approx(sum(c.seconds[0] for c in case.layers), rel=0.01)

    def test_a_profile_without_layer_times(self, pair: dict[str, Model]) -> None:
        """As on a device, where kernels only start in the profile: layers are run alone, which a note says."""
        on_device = replace(QUICK, profile=True, providers=(replace(CPU, device="cpu"),))
        (case,) = benchmark(pair, on_device).cases
        own = [c for c in case.layers if c.op == "Conv"]
        assert len(own) == 5 and all(c.seconds[0] > c.seconds[1] > 0 for c in own[1:4])
        assert any("each layer was run by itself" in note for note in case.notes)
        (profiled,) = benchmark(pair, replace(QUICK, profile=True)).cases
        assert not profiled.notes

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("seconds", 0.0), ("rounds", 4), ("threads", 0), ("confidence", 1.0), ("batches", ()), ("level", "most")],
    )
    def test_settings_out_of_range(self, setting: str, value: object) -> None:
        with pytest.raises(BenchmarkError, match=setting) as caught:
            replace(QUICK, **{setting: value})  # type: ignore[arg-type]
        assert caught.value.code == "OP801"

    def test_models_of_different_inputs(self, pair: dict[str, Model]) -> None:
        with pytest.raises(BenchmarkError) as caught:
            benchmark({"digits": load(DIGITS), **pair}, QUICK)
        assert caught.value.code == "OP803"


class TestProviders:
    def test_names(self) -> None:
        assert parse_provider("cpu") == CPU == parse_provider("CPUExecutionProvider")
        assert parse_provider("cuda").device == "cuda" and parse_provider("cpu").device is None
        assert parse_provider("TensorRT").chain()[-1] == ("CPUExecutionProvider", {})
        assert parse_provider("cuda").with_option("device_id", "2").device_id == 2

    def test_providers_with_threads_of_their_own(self) -> None:
        openvino = Provider("OpenVINOExecutionProvider", {"device_type": "CPU"})
        assert openvino.chain(3)[0][1] == {"num_of_threads": "3", "device_type": "CPU"}
        assert openvino.with_option("num_of_threads", "1").chain(3)[0][1]["num_of_threads"] == "1"
        assert openvino.chain()[0][1] == {"device_type": "CPU"} and CPU.chain(3) == [("CPUExecutionProvider", {})]

    def test_an_unknown_name(self) -> None:
        with pytest.raises(UsageError, match="cuda") as caught:
            parse_provider("cdua")
        assert caught.value.code == "OP608"

    def test_one_that_is_not_there(self, pair: dict[str, Model]) -> None:
        with pytest.raises(UsageError, match="VitisAI") as caught:
            benchmark(pair, replace(QUICK, providers=(parse_provider("vitisai"),)))
        assert caught.value.code == "OP608"

    @needs_azure
    def test_one_that_runs_nothing(self, pair: dict[str, Model]) -> None:
        with pytest.raises(UsageError, match="runs no node of wide") as caught:
            benchmark(pair, replace(QUICK, providers=(AZURE,)))
        assert caught.value.code == "OP608"

    @needs_azure
    def test_one_that_runs_nothing_may_be_accepted(self, pair: dict[str, Model]) -> None:
        (case,) = benchmark(pair, replace(QUICK, providers=(AZURE,), fallback=True)).cases
        assert case.results[0].placement[0].provider == "CPUExecutionProvider"
        assert case.results[0].placement[0].nodes == 1.0
        assert any("runs no node" in note for note in case.notes)


class TestSession:
    def test_bound_to_a_device(self, pair: dict[str, Model]) -> None:
        """IOBinding as on a GPU, on the memory of the host."""
        feeds = make_inputs(pair["wide"].proto, 2)
        opened = TimedSession(pair["wide"].proto, feeds, SessionSettings(replace(CPU, device="cpu"), threads=1))
        assert opened.block(4).shape == (4,)
        there, back = opened.copies() or (0.0, 0.0)
        assert there > 0 and back > 0
        plain = TimedSession(pair["wide"].proto, feeds, SessionSettings(CPU, threads=1))
        assert plain.copies() is None
        (bound,) = (value.numpy() for value in opened._binding.get_outputs())
        np.testing.assert_allclose(bound, plain.session.run(None, feeds)[0], atol=1e-5)

    def test_settings_arrive(self, pair: dict[str, Model]) -> None:
        feeds = make_inputs(pair["wide"].proto, 1)
        opened = TimedSession(pair["wide"].proto, feeds, SessionSettings(CPU, threads=1, level="basic", arena=False))
        options = opened.session.get_session_options()
        assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
        assert not options.enable_cpu_mem_arena and options.intra_op_num_threads == 1

    def test_inputs_that_the_model_refuses(self, pair: dict[str, Model]) -> None:
        feeds = {"x": np.zeros((1, 5, 8, 8), np.float32)}
        for kind in (TimedSession, TimedProcess):
            with pytest.raises(ModelError) as caught:
                kind(pair["wide"].proto, feeds, SessionSettings(CPU))
            assert caught.value.code == "OP122"


class TestWorker:
    def test_names_of_inputs_are_free(self) -> None:
        """Those of the parameters of whatever carries the arrays, too."""
        net = Net()
        names = ("file", "allow_pickle", "arr_0", "a/../b")
        net.output(net.op("Sum", *(net.input((1, 4), name) for name in names)))
        model = net.model()
        with TimedProcess(model, make_inputs(model, None), SessionSettings(CPU, threads=1)) as worker:
            assert worker.block(3).shape == (3,)

    def test_runs_in_another_process(self, pair: dict[str, Model]) -> None:
        feeds = make_inputs(pair["wide"].proto, 1)
        with TimedProcess(pair["wide"].proto, feeds, SessionSettings(CPU, threads=1)) as worker:
            times = worker.block(5)
            assert times.shape == (5,) and (times > 0).all()
            assert worker.first > 0 and worker.load > 0
            assert worker.copies() is None

    def test_one_that_dies(self, pair: dict[str, Model]) -> None:
        feeds = make_inputs(pair["wide"].proto, 1)
        with TimedProcess(pair["wide"].proto, feeds, SessionSettings(CPU)) as worker:
            worker._process.kill()
            with pytest.raises(BenchmarkError) as caught:
                worker.block(1)
        assert caught.value.code == "OP802"

    def test_provider_that_is_not_there(self, pair: dict[str, Model]) -> None:
        feeds = make_inputs(pair["wide"].proto, 1)
        with pytest.raises(UsageError) as caught:
            TimedProcess(pair["wide"].proto, feeds, SessionSettings(Provider("NoSuchExecutionProvider")))
        assert caught.value.code == "OP608"


class TestInputs:
    def test_samples_are_repeated(self, pair: dict[str, Model]) -> None:
        given = {"x": np.arange(2 * 3, dtype=np.float32).reshape(2, 3, 1, 1) * np.ones((1, 1, 4, 4), np.float32)}
        found = make_inputs(pair["wide"].proto, 5, given=given)["x"]
        np.testing.assert_array_equal(found, given["x"][[0, 1, 0, 1, 0]])
        np.testing.assert_array_equal(make_inputs(pair["wide"].proto, None, given=given)["x"], given["x"])

    def test_a_batch_size_that_the_model_is_not_made_for(self) -> None:
        net = Net()
        net.output(net.conv(net.input((1, 3, 8, 8), "x"), 4))
        with pytest.raises(UsageError) as caught:
            make_inputs(net.model(), 8)
        assert caught.value.code == "OP603"

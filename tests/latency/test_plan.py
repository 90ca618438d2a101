"""The loop on real networks, measured here; the cache of layers; layers by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from onnxprune.benchmarking import isolated as isolated_module
from onnxprune.benchmarking.isolated import isolated
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.cli import cli
from onnxprune.errors import PlanError, UsageError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.latency import Options, plan as plan_module, plan_for_latency
from onnxprune.latency.model import NetworkModel
from onnxprune.latency.probe import Probe
from onnxprune.latency.table import LatencyTable, LayerTime, cache_folder
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.provider import Provider
from onnxprune.settings.planning import Constraints, Target
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.latency.networks import chain, residual
from tests.toolbox import inputs_of, run_once

CPU = Provider("CPUExecutionProvider")
HERE = SessionSettings(CPU, threads=1)
DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


def scores_of(graph: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 1.5, len(group.units)) for group in graph.groups]


class TestPlan:
    @pytest.mark.slow
    def test_is_predicted_well(self) -> None:
        graph = residual(48, 32)
        found = plan_for_latency(
            graph, scores_of(graph), Constraints(), Target("latency", 0.5), Options(CPU, threads=1)
        )
        assert 0.45 < found.measured.value <= 0.5
        assert found.tries[0].predicted == pytest.approx(found.tries[0].measured.value, rel=0.2)

    def test_half_the_latency(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan_module, "_SECONDS", 0.1)
        monkeypatch.setattr(plan_module, "_REPEATS", 1)
        monkeypatch.setattr(LayerTime, "noisy", False)  # whatever else this machine does
        graph = residual()
        seen: list[tuple[str, int, int | None]] = []
        options = Options(CPU, threads=1, cache=tmp_path)
        found = plan_for_latency(
            graph, scores_of(graph), Constraints(), Target("latency", 0.5), options, progress=lambda *p: seen.append(p)
        )
        assert found.measured.value <= 0.5
        assert found.layers_measured > 0 and 0 < found.importance < 1
        phases = [phase for phase, *_ in seen]
        assert list(dict.fromkeys(phases)) == ["time the model", "measure latency"]
        assert seen[1:] == sorted(seen[1:]) and found.tries
        pruned = rewrite(PrunedGraph(graph, found.removed))
        assert run_once(pruned, inputs_of(graph))

        again = plan_for_latency(graph, scores_of(graph), Constraints(), Target("latency", 0.5), options)
        assert again.layers_measured < 0.5 * found.layers_measured  # but for the plans themselves, all is known

    def test_out_of_reach(self) -> None:
        graph = residual()
        constraints = Constraints(max_ratio=0.3)
        with pytest.raises(PlanError, match=r"can't be brought to 5%") as caught:
            plan_for_latency(graph, scores_of(graph), constraints, Target("latency", 0.05), Options(CPU, threads=1))
        assert caught.value.code == "OP301" and "was reached" in str(caught.value.hint)

    @pytest.mark.parametrize("skew", [0.8, 1.25])
    def test_a_wrong_prediction_is_corrected(self, skew: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine on which the whole is slower, or faster, than its layers say."""
        truth: list[float] = []

        def layers(self: Any, config: np.ndarray) -> np.ndarray:
            return np.array([2e-6 + 1e-11 * w.macs(self._sizes, config) for w in self._works])

        def fit(self: Any) -> NetworkModel:
            return NetworkModel(self.works, self.sizes, self.configs, np.stack(self.seconds), self.counts)

        def measure(self: Any, config: np.ndarray) -> Estimate:
            model = self._fit()
            truth.append(skew * model(config) / model(np.zeros_like(config)))
            self.seconds_of_original = 1.0
            return Estimate(truth[-1], truth[-1], truth[-1])

        monkeypatch.setattr(plan_module._Planner, "_measure", measure)
        monkeypatch.setattr(plan_module._Planner, "_fit", fit)
        monkeypatch.setattr(Probe, "__call__", layers)
        graph = chain()
        found = plan_for_latency(
            graph, scores_of(graph), Constraints(round_to=4), Target("latency", 0.6), Options(CPU, 1)
        )
        assert 0.95 * 0.6 <= found.measured.value <= 0.6
        assert abs(truth[0] / 0.6 - 1) > 0.1, "the first plan misses, or there was nothing to correct"

    @pytest.mark.parametrize("reach", [0.3, 0.7])
    def test_a_model_that_is_far_off(self, reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """No target is out of reach before the narrowest configuration, here the only fast one, was tried."""
        seen: list[np.ndarray] = []

        def measure(self: Any, config: np.ndarray) -> Estimate:
            depth = config.sum() / (np.array(self.counts) - 1).sum()
            share = 1 - (1 - reach) * max(0.0, depth - 0.9) / 0.1
            seen.append(config)
            self.seconds_of_original = 1.0
            return Estimate(share, share, share)

        monkeypatch.setattr(plan_module._Planner, "_measure", measure)
        monkeypatch.setattr(Probe, "__call__", lambda self, config: np.full(len(self._works), 1e-5))
        graph = chain()
        args = graph, scores_of(graph), Constraints(round_to=4), Target("latency", 0.5), Options(CPU, 1)
        if reach < 0.5:
            assert plan_for_latency(*args).measured.value <= 0.5
        else:
            with pytest.raises(PlanError, match="can't be brought") as caught:
                plan_for_latency(*args)
            assert f"{reach:.0%} was reached" in str(caught.value.hint)
            assert seen[-1].tolist() == max(seen, key=np.sum).tolist()

    def test_measurements_correct_the_prediction(self) -> None:
        """One measurement gives a factor; several give a slope, where a factor would miss."""

        def model(config: np.ndarray) -> float:  # what it predicts is in the config; 100 is the original
            return 100.0 - float(config[0])

        def measured(*predicted: float) -> list[tuple[np.ndarray, Estimate]]:
            truth = [share**0.5 for share in predicted]
            configs = [np.array([round(100 * (1 - share))]) for share in predicted]
            return [(config, Estimate(t, t, t)) for config, t in zip(configs, truth, strict=True)]

        required = plan_module._to_predict
        assert required(model, [], 0.5) == 0.5
        assert required(model, measured(0.5), 0.6) == pytest.approx(0.5 * 0.6 / 0.5**0.5)
        assert required(model, measured(0.8, 0.5), 0.6) == pytest.approx(0.36, rel=0.03)
        assert required(model, measured(0.5), 0.6) != pytest.approx(0.36, rel=0.03)

    def test_nothing_to_prune(self) -> None:
        graph = residual()
        with pytest.raises(PlanError) as caught:
            plan_for_latency(graph, scores_of(graph), Constraints(exclude=("*",)), Target("latency", 0.5))
        assert caught.value.code == "OP310"


def test_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a GPU goes, on the memory of the host: layers by themselves, inputs and outputs bound."""
    monkeypatch.setattr(plan_module, "_SECONDS", 0.1)
    monkeypatch.setattr(plan_module, "_REPEATS", 1)
    monkeypatch.setattr(isolated_module, "_WARM_UP", 0.01)
    graph = chain(layers=4)
    options = Options(Provider("CPUExecutionProvider", device="cpu"), threads=1)
    found = plan_for_latency(graph, scores_of(graph), Constraints(round_to=16), Target("latency", 0.7), options)
    assert found.measured.value <= 0.7 and found.layers_measured > 0


class TestTable:
    def kept(self, folder: Path | None, load: float = 0.0, spread: float = 0.0, **seconds: float) -> LatencyTable:
        LatencyTable(folder, HERE).update({name: (time, spread) for name, time in seconds.items()}, load)
        return LatencyTable(folder, HERE)

    def test_is_kept(self, tmp_path: Path) -> None:
        assert self.kept(tmp_path, a=1e-3)["a"] == 1e-3

    def test_other_settings_have_another(self, tmp_path: Path) -> None:
        self.kept(tmp_path, a=1e-3)
        for other in (SessionSettings(CPU, threads=2), SessionSettings(CPU.with_option("x", "1"), threads=1)):
            assert "a" not in LatencyTable(tmp_path, other)

    @pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"format": 4, "key": 0, "times": {}}'])
    def test_a_damaged_file_counts_for_nothing(self, tmp_path: Path, text: str) -> None:
        self.kept(tmp_path, a=1e-3)
        (path,) = tmp_path.iterdir()
        path.write_text(text)
        assert "a" not in LatencyTable(tmp_path, HERE)

    def test_a_disturbed_measurement_does_not_count(self, tmp_path: Path) -> None:
        for seconds in (9.0, 1.1, 1.0, 1.2, 1.0, 1.1):
            table = self.kept(tmp_path, a=seconds)
        assert table["a"] == 1.1

    @pytest.mark.parametrize("noise", [{"load": 0.5}, {"spread": 4e-4}])
    def test_noisy_times_are_measured_again(self, tmp_path: Path, noise: dict[str, float]) -> None:
        """The run that measured them uses them, as there is nothing better; later ones repeat them."""
        table = LatencyTable(tmp_path, HERE)
        table.update({"a": (1e-3, noise.get("spread", 0.0))}, noise.get("load", 0.0))
        assert "a" in table and table["a"] == 1e-3
        assert "a" not in LatencyTable(tmp_path, HERE), "the next run doesn't trust it"
        table = self.kept(tmp_path, a=5e-4)
        assert "a" in table and table["a"] == 5e-4, "and forgets it once there is a better one"
        table = self.kept(tmp_path, a=2e-4, **noise)  # type: ignore[arg-type]
        assert table["a"] == 5e-4

    def test_entries_carry_spread_load_and_date(self, tmp_path: Path) -> None:
        self.kept(tmp_path, load=0.125, spread=1e-5, a=1e-3)
        (path,) = tmp_path.iterdir()
        ((seconds, spread, load, date),) = json.loads(path.read_text())["times"]["a"]
        assert (seconds, spread, load) == (1e-3, 1e-5, 0.125) and date > 1.7e9

    def test_times_that_can_not_be_are_left_out(self, tmp_path: Path) -> None:
        self.kept(tmp_path, a=1e-3, b=2e-3)
        (path,) = tmp_path.iterdir()
        document = json.loads(path.read_text())
        document["times"]["a"] = [[-1.0, 0, 0, 0]]
        path.write_text(json.dumps(document))
        table = LatencyTable(tmp_path, HERE)
        assert "a" not in table and "b" in table

    def test_without_a_folder(self, tmp_path: Path) -> None:
        self.kept(None, a=1.0)
        blocked = tmp_path / "file"
        blocked.write_text("")
        self.kept(blocked / "below", a=1.0)  # nowhere to write: no error

    def test_where_it_is(self) -> None:
        assert cache_folder({"ONNXPRUNE_CACHE": "/x"}) == Path("/x")
        assert "onnxprune" in cache_folder({}).parts


class TestCache:
    """`onnxprune cache`, on a table of this machine, one of another, one of an older version, and a stranger's file."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        LatencyTable(tmp_path, HERE).update({"a": (1e-3, 0.0), "b": (1e-3, 1.0)})
        (own,) = tmp_path.iterdir()
        document = json.loads(own.read_text())
        document["key"]["onnxruntime"] = "0.1 (CPU build)"
        (tmp_path / f"{'0' * 24}.json").write_text(json.dumps(document))
        (tmp_path / f"{'1' * 24}.json").write_text('{"format": 3, "key": {}, "seconds": {}}')
        (tmp_path / "mine.json").write_text("{}")
        return tmp_path

    def invoke(self, folder: Path, *args: str, status: int = 0) -> str:
        result = CliRunner(env={"ONNXPRUNE_CACHE": str(folder)}).invoke(cli, ["cache", *args])
        assert result.exit_code == status, result.output
        return result.output

    def test_show(self, folder: Path) -> None:
        found = json.loads(self.invoke(folder, "show", "--format", "json"))["tables"]
        assert [(t["layers"], t["noisy"], t["stale"]) for t in found] == [(2, 1, True), (0, 0, True), (2, 1, False)]
        text = self.invoke(folder, "show")
        assert "3 tables" in text and "0.1 (CPU build)" in text and "another version" in text

    @pytest.mark.parametrize(("args", "left"), [(["clear"], 0), (["clear", "--stale"], 1)])
    def test_clear(self, folder: Path, args: list[str], left: int) -> None:
        assert f"deleted {3 - left} tables" in self.invoke(folder, *args)
        assert len(list(folder.glob("?" * 24 + ".json"))) == left
        assert (folder / "mine.json").exists(), "what isn't a table stays"

    def test_nothing(self, tmp_path: Path) -> None:
        assert "0 tables" in self.invoke(tmp_path / "none", "show") and "deleted 0" in self.invoke(tmp_path, "clear")

    def test_refusals(self, tmp_path: Path) -> None:
        assert "error[OP302]" in self.invoke(tmp_path, "show", "--stale", status=2)
        assert "error[OP602]" in self.invoke(tmp_path, "drop", status=2)


def test_layers_by_themselves() -> None:
    """What takes most of the time in the network also does by itself; on a device that is all there is to go by."""
    graph = residual(48, 32)
    found = {k.name: k.seconds for k in isolated(graph.proto, inputs_of(graph), HERE).kernels}
    names = {"stem", "a1", "a2", "b1", "b2", "left", "right", "joint", "head"}
    assert set(found) == names
    assert min(found[n] for n in ("a1", "a2", "b1", "b2")) > max(found[n] for n in ("left", "head"))


class TestCommand:
    def invoke(self, *args: object, status: int = 0) -> Any:
        result = CliRunner(env={"ONNXPRUNE_CACHE": ""}).invoke(cli, [str(a) for a in args])
        assert result.exit_code == status, result.output
        return result

    def test_prune(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        args = ("prune", DIGITS, "-o", tmp_path / "small.onnx", "--target", "latency=95%", "--threads", "1")
        result = self.invoke(*args)
        for text in ("latency  on cpu", "predicted", "measured", "rewriting proved"):
            assert text in result.stdout

    @pytest.mark.parametrize(
        ("code", "args"),
        [
            ("OP302", ["--target", "macs=0.5", "--no-cache"]),
            ("OP608", ["--target", "macs=0.5", "--provider", "cdua"]),
            ("OP302", ["--target", "latency=0.5", "--allocation", "global"]),
            ("OP608", ["--target", "latency=0.5", "--provider", "cdua"]),
            ("OP608", ["--target", "latency=0.5", "--provider", "vitisai"]),
            ("OP303", ["--target", "latency=1.5"]),
        ],
    )
    def test_refusals(self, code: str, args: list[str], tmp_path: Path) -> None:
        result = self.invoke("prune", DIGITS, "-o", tmp_path / "o.onnx", *args, status=2)
        assert f"error[{code}]" in result.stderr


def test_a_provider_that_runs_nothing_is_refused() -> None:
    graph = residual()
    options = Options(Provider("AzureExecutionProvider"), threads=1)
    with pytest.raises(UsageError) as caught:
        plan_for_latency(graph, scores_of(graph), Constraints(), Target("latency", 0.5), options)
    assert caught.value.code == "OP608"

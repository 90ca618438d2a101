"""`prune_model` gives the same bytes as the command `prune`; results are checked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, helper

import onnxprune as op
from onnxprune.data import open_data
from onnxprune.workflow import pruning
from tests.cli.support import DIGITS, invoke, refused

HALF = op.Target("macs", 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "digits.npz", 128)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("few") / "digits.npz", 24)


def written(path: Path, samples: int) -> Path:
    with np.load(DIGITS.with_name("digits_test.npz"), allow_pickle=False) as arrays:
        np.savez(path, image=arrays["images"][:samples], labels=arrays["labels"][:samples])
    return path


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--target", "macs=50%"], {"target": HALF}),
        (["--ratio", "0.3", "--exclude", "/stem*", "--seed", "3"], {"ratio": 0.3, "exclude": ["/stem*"], "seed": 3}),
        (["--target", "macs=40%", "--data", "DATA", "--limit", "24"], {"target": op.Target("macs", 0.4), "limit": 24}),
        (
            ["--target", "macs=50%", "--data", "DATA", "--recover", "bn", "--allocation", "uniform"],
            {"target": HALF, "recover": "bn", "allocation": "uniform"},
        ),
        (
            ["--max-drop", "5%", "--data", "DATA", "--allocation", "uniform", "--limit", "16"],
            {"max_drop": 0.05, "allocation": "uniform", "limit": 16},
        ),
        (
            ["--target", "macs=50%", "--data", "DATA", "--allocation", "uniform", "--finetune", "1"],
            {"target": HALF, "allocation": "uniform", "finetune": 1},
        ),
    ],
)
def test_shrink_equals_the_command(flags: list[str], options: dict[str, Any], data: Path, tmp_path: Path) -> None:
    command, library = tmp_path / "command.onnx", tmp_path / "library.onnx"
    invoke("prune", DIGITS, "-o", command, "-q", *[str(data) if f == "DATA" else f for f in flags])
    found = op.prune_model(DIGITS, **options, **({"data": data} if "DATA" in flags else {}))
    op.save(found.model, library)
    assert library.read_bytes() == command.read_bytes()
    assert found.pruned.verification is not None and found.pruned.verification.passed
    assert bool(found.repairs) == ("DATA" in flags)


def test_a_dataset_is_accepted(data: Path) -> None:
    opened = open_data(data, op.load(DIGITS).proto)
    first = op.prune_model(DIGITS, target=HALF, allocation="uniform", data=data)
    again = op.prune_model(DIGITS, target=HALF, allocation="uniform", data=opened)
    assert first.model.proto.SerializeToString() == again.model.proto.SerializeToString()


def test_single_steps_equal_shrink(few: Path) -> None:
    whole = op.prune_model(DIGITS, target=HALF, data=few)
    plan = op.plan(DIGITS, target=HALF, data=few)
    pruned = op.prune(DIGITS, plan)
    op.repair(pruned, few)
    assert pruned.proto.SerializeToString() == whole.model.proto.SerializeToString()
    assert plan.settings["allocation"] == "reconstruction", "the default with data"
    assert op.plan(DIGITS, target=HALF).settings["allocation"] == "uniform", "and without"


def test_progress(few: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    op.prune_model(DIGITS, target=HALF, data=few, progress=lambda *at: seen.append(at))
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == [
        "load",
        "trace",
        "open the data",
        "score and plan",
        "measure sensitivity",
        "rewrite and verify",
        "repair",
    ]
    assert all(total is None or 0 <= done <= total for _, done, total in seen)


class TestGraphsurgeon:
    def test_in_and_out(self) -> None:
        graph = op.as_graphsurgeon(DIGITS)
        assert isinstance(graph, gs.Graph)
        small = op.prune_model(graph, target=HALF)
        again = small.to_graphsurgeon()
        assert [t.name for t in again.inputs] == ["image"] and [t.name for t in again.outputs] == ["logits"]
        assert op.verify(graph, again, small.plan).proved
        assert not op.verify(graph, graph, small.plan).proved, "the original isn't its pruned version"
        assert op.prune(graph, small.plan).to_graphsurgeon().nodes == again.nodes

    def test_every_function_takes_one(self, data: Path, tmp_path: Path) -> None:
        graph = op.as_graphsurgeon(DIGITS)
        assert len(op.analyze(graph).graph.groups) == 8
        assert op.plan(graph, ratio=0.5).removed
        samples = open_data(data, op.load(graph).proto)
        assert op.evaluate(graph, samples, metrics=["top1"])["top1"].model.value > 0.9
        settings = op.TrainSettings(epochs=1, batch=32)
        assert op.finetune(graph, samples, settings=settings, teacher=graph).history
        timed = op.benchmark({"graph": graph}, op.BenchmarkSettings(seconds=0.01, rounds=5, warm_up=0.01))
        assert timed.cases[0].results[0].model == "graph"
        op.save(graph, tmp_path / "graph.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "graph.onnx"), full_check=True)

    def test_user_transformations(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "passes.py").write_text(
            "def rename(graph):\n    graph.outputs[0].name = 'scores'\n"
            "def nothing(graph):\n    return 3\n"
            "def fails(graph):\n    raise KeyError('x')\n"
        )
        monkeypatch.chdir(tmp_path)
        out = tmp_path / "out.onnx"
        invoke("prune", DIGITS, "-o", out, "--ratio", "0.5", "--transform", "passes:rename", "-q")
        assert onnx.load(out).graph.output[0].name == "scores"
        invoke("plan", DIGITS, "-o", tmp_path / "p.json", "--ratio", "0.5", "--transform", "passes:rename", "-q")
        refused("OP306", "prune", DIGITS, "-o", out, "--force", "--plan", tmp_path / "p.json")
        invoke("prune", DIGITS, "-o", out, "--force", "--plan", tmp_path / "p.json", "--transform", "passes:rename")
        for name in ("nothing", "fails", "absent"):
            refused("OP710", "plan", DIGITS, "-o", "-", "--ratio", "0.5", "--transform", f"passes:{name}")


class TestChecks:
    """Rewrites broken on purpose are detected, and nothing is written."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def put(breaking: Any) -> None:
            right = pruning.rewrite

            def wrong(kept: Any) -> ModelProto:
                proto = right(kept)
                breaking(proto)
                return proto

            monkeypatch.setattr(pruning, "rewrite", wrong)

        return put

    @pytest.mark.parametrize("verify", [[], ["--no-verify"]])
    def test_an_invalid_model(self, broken: Any, tmp_path: Path, verify: list[str]) -> None:
        def attribute(proto: ModelProto) -> None:
            node = next(n for n in proto.graph.node if n.op_type == "Relu")
            node.attribute.append(helper.make_attribute("slope", 0.5))

        broken(attribute)
        assert "slope" in refused("OP403", "prune", DIGITS, "-o", tmp_path / "o.onnx", "--ratio", "0.5", *verify)
        assert not list(tmp_path.iterdir())

    def test_a_tensor_of_another_shape(self, broken: Any, tmp_path: Path) -> None:
        def shape(proto: ModelProto) -> None:
            node = next(n for n in proto.graph.node if n.op_type == "Gemm")
            weight = next(t for t in proto.graph.initializer if t.name == node.input[1])
            weight.dims[0], bias = (
                weight.dims[0] // 2,
                next(t for t in proto.graph.initializer if t.name == node.input[2]),
            )
            weight.raw_data = weight.raw_data[: len(weight.raw_data) // 2]
            bias.dims[0] //= 2
            bias.raw_data = bias.raw_data[: len(bias.raw_data) // 2]
            proto.graph.output[0].type.tensor_type.shape.dim[1].Clear()

        broken(shape)
        message = refused("OP404", "prune", DIGITS, "-o", tmp_path / "o.onnx", "--ratio", "0.5")
        assert "as predicted" in message and not list(tmp_path.iterdir())

    def test_a_model_that_was_invalid_before(self, tmp_path: Path) -> None:
        """Errors that onnx also finds in the original are ignored."""
        proto = onnx.load(DIGITS)
        for value in proto.graph.value_info:
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[1].dim_value = 7
        relu = next(n for n in proto.graph.node if n.op_type == "Relu")
        proto.graph.value_info.append(helper.make_tensor_value_info(relu.output[0], 1, [None, 7, None, None]))
        with pytest.raises(onnx.shape_inference.InferenceError):
            onnx.checker.check_model(proto, full_check=True)
        assert op.prune_model(proto, ratio=0.5).pruned.verification is not None


def test_what_is_assumed_of_data_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "onnxprune"):
        op.prune_model(DIGITS, target=op.Target("macs", 0.5), data="random", limit=16)
    assert sum("the inputs are noise" in record.getMessage() for record in caplog.records) == 1

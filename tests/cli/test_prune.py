"""`onnxprune prune`: output, written files, and accepted models and inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune.cli.prune
import onnxprune.workflow.outcome
from onnxprune import workflow
from onnxprune.workflow import pruning
from tests.cli.support import DIGITS, document, invoke, refused
from tests.report.network import PARAMS, network
from tests.toolbox import Net


class TestPrune:
    def test_a_trained_model(self, out: Path) -> None:
        found = document("prune", DIGITS, "-o", out, "--target", "macs=50%")
        assert found["cost"]["after"]["macs"] <= 0.5 * found["cost"]["before"]["macs"]
        assert found["proved"] and found["verification"]["error"] <= found["verification"]["tolerance"]
        assert found["verification"]["outputs"][0]["change"] > 0
        assert found["file_size"] == {"before": DIGITS.stat().st_size, "after": out.stat().st_size}
        pruned = onnx.load(out)
        onnx.checker.check_model(pruned, full_check=True)
        sizes = sum(int(np.prod(t.dims)) for t in pruned.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        assert sizes == found["cost"]["after"]["params"]
        assert {p.key: p.value for p in pruned.metadata_props}["onnxprune.plan"] == found["plan_digest"]

    def test_table(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5")
        for text in ("parameters", "MACs", "file"):
            assert text in result.stdout
        proof, _, end = " ".join(result.stdout.split()).partition(", allowed 0.0001 ")
        assert "rewriting proved: error " in proof
        assert re.match(r".*as fast.* on cpu; file [\d.]+ % smaller: .* accuracy not kept: .* 64 generated inputs", end)
        assert end.endswith("To keep it, give inputs with --data; labels are optional.")
        assert result.stderr == f"wrote {out}\n"
        for text in ("seed 0", "OP202", "onnxprune explain"):
            assert text not in result.stdout
            assert text in invoke("prune", model, "-o", out, "--ratio", "0.5", "-v", "--force").stdout

    def test_the_summary_is_measured_only_if_it_is_shown(
        self, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = document("prune", model, "-o", out, "--ratio", "0.5")["outcome"]
        assert found["judged"] == "generated" and found["speed"]["provider"] == "cpu" and not found["unchanged"]
        monkeypatch.setattr(workflow.outcome, "outcome", None)
        assert document("prune", model, "-o", out, "--ratio", "0.5", "--force", "--no-summary")["outcome"] is None
        shown = invoke("prune", model, "-o", out, "--ratio", "0.5", "--force", "--no-summary").stdout
        assert shown.splitlines()[-1].strip().startswith("rewriting proved: error ")
        assert invoke("prune", model, "-o", out, "--ratio", "0.5", "--force", "-q").output == ""

    def test_with_data_the_answers_are_compared(self, out: Path, tmp_path: Path) -> None:
        images = np.load(DIGITS.with_name("digits_train.npz"))["images"]
        np.savez(tmp_path / "few.npz", images=images[:40])
        done = invoke("prune", DIGITS, "-o", out, "--ratio", "0.3", "--data", tmp_path / "few.npz").stdout
        said = " ".join(done.split())
        assert re.search(r"answers kept: same top class as the original on .* of 40 samples that calibrated it$", said)
        done = invoke("prune", DIGITS, "-o", out, "--ratio", "0", "--force").stdout
        assert done.rstrip().endswith("answers kept: nothing was removed, so the model computes the same")

    def test_inputs_are_never_overwritten(self, model: Path, plan: Path, out: Path) -> None:
        before = model.read_bytes()
        out.symlink_to(model)
        for path in (model, out):
            text = refused("OP116", "prune", model, "-o", path, "--ratio", "0.5", "--force")
            assert "not even --force" in text and model.read_bytes() == before
        refused("OP116", "plan", model, "-o", model, "--ratio", "0.5", "--force")
        refused("OP116", "prune", model, "-o", plan, "--plan", plan, "--force")
        refused("OP116", "benchmark", model, "-o", model, "--force")
        assert model.read_bytes() == before
        out.unlink()
        invoke("prune", model, "-o", out, "--ratio", "0.5")
        invoke("prune", model, "-o", out, "--ratio", "0.25", "--force")  # a file that isn't read

    def test_quiet(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "-q")
        assert (result.stdout, result.stderr) == ("", "")
        assert out.exists()

    def test_the_plan_is_applied(self, model: Path, plan: Path, out: Path, tmp_path: Path) -> None:
        found = document("prune", model, "-o", out, "--plan", plan)
        again = tmp_path / "again.onnx"
        invoke("prune", model, "-o", again, "--ratio", "0.5")
        assert out.read_bytes() == again.read_bytes()
        assert found["cost"]["after"] == json.loads(plan.read_text())["cost"]["after"]

    @pytest.mark.parametrize(
        ("planning", "rest"),
        [
            (["--ratio", "0.5", "--criterion", "random", "--seed", "3"], []),
            (["--target", "macs=60%"], ["--data", "DATA", "--recover", "bn"]),
            (["--ratio", "0.3"], ["--data", "DATA", "--finetune", "1"]),
        ],
    )
    def test_the_saved_plan_gives_the_same_bytes(
        self, model: Path, out: Path, tmp_path: Path, planning: list[str], rest: list[str]
    ) -> None:
        images = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
        np.savez(data := tmp_path / "d.npz", image=images, labels=np.arange(32) % 10)
        rest = [str(data) if word == "DATA" else word for word in rest]
        saved, again = tmp_path / "saved.json", tmp_path / "again.onnx"
        noted = invoke("prune", model, "-o", out, *planning, *rest, "--save-plan", saved).stderr
        assert f"wrote {out} and {saved}" in noted
        seed = planning[-2:] if "--seed" in planning else []
        invoke("prune", model, "-o", again, "--plan", saved, *rest, *seed, "-q")
        assert again.read_bytes() == out.read_bytes()
        assert document("verify", model, again, "--plan", saved)["proved"]

    def test_other_formats(self, model: Path, out: Path) -> None:
        args = ("prune", model, "-o", out, "--force", "--ratio", "0.5")
        (suite,) = fromstring(invoke(*args, "--format", "junit", "-q").stdout)
        assert [case.get("name") for case in suite.iter("testcase")] == ["rewriting", "prune"]
        (suite,) = fromstring(invoke(*args, "--no-verify", "--format", "junit").stdout)
        assert [case.get("name") for case in suite.iter("testcase")] == ["prune"]
        (suite,) = fromstring(invoke(*args[:-1], "3", "--format", "junit", status=2).stdout)
        assert [error.get("type") for error in suite.iter("error")] == ["OP303"]
        assert "| MACs |" in invoke(*args, "--format", "markdown").stdout
        refused("OP302", "plan", model, "-o", "-", "--ratio", "0.5", "--format", "markdown")

    def test_a_plan_overwrites_nothing(self, model: Path, out: Path, plan: Path) -> None:
        refused("OP116", "prune", model, "-o", out, "--ratio", "0.5", "--save-plan", plan)
        refused("OP116", "prune", model, "-o", out, "--ratio", "0.5", "--save-plan", model, "--force")
        refused("OP302", "prune", model, "-o", out, "--ratio", "0.5", "--save-plan", out)
        assert not out.exists()

    def test_costs_are_counted_not_believed(self, model: Path, plan: Path, out: Path) -> None:
        forged = json.loads(plan.read_text())
        forged["cost"]["after"]["params"] = 1
        plan.write_text(json.dumps(forged))
        found = document("prune", model, "-o", out, "--plan", plan)
        assert 1 < found["cost"]["after"]["params"] < PARAMS

    def test_nothing_is_written_when_the_proof_fails(
        self, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(kept: Any) -> onnx.ModelProto:
            pruned = right(kept)
            bias = next(t for t in pruned.graph.initializer if t.name == "left_b")
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "left_b"))
            return pruned

        right = pruning.rewrite
        monkeypatch.setattr(pruning, "rewrite", wrong)
        before = set(tmp_path.iterdir())
        refused("OP501", "prune", model, "-o", out, "--ratio", "0.5", status=1)
        assert set(tmp_path.iterdir()) == before
        assert invoke("prune", model, "-o", out, "--ratio", "0.5", "--tolerance", "1").exit_code == 0

    def test_no_verify(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "--no-verify")
        assert "not proved" in result.stdout
        assert out.exists()

    def test_existing_files_are_kept(self, model: Path, out: Path) -> None:
        out.write_text("precious")
        refused("OP116", "prune", model, "-o", out, "--ratio", "0.5")
        assert out.read_text() == "precious"
        invoke("prune", model, "-o", out, "--ratio", "0.5", "--force")
        onnx.checker.check_model(onnx.load(out))

    def test_outputs_are_refused_before_the_work(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxprune.cli.prune, "read_model", None)
        refused("OP116", "prune", model, "-o", model, "--ratio", "0.5")
        refused("OP116", "prune", model, "-o", tmp_path, "--ratio", "0.5", "--force")
        refused("OP117", "prune", model, "-o", tmp_path / "no" / "o.onnx", "--ratio", "0.5")

    def test_external_data_stays_external(self, tmp_path: Path, out: Path) -> None:
        model = tmp_path / "big.onnx"
        onnx.save(network(), model, save_as_external_data=True, location="big.data", size_threshold=0)
        found = document("prune", model, "-o", out, "--ratio", "0.5")
        data = out.with_name("out.onnx.data")
        assert found["file_size"]["after"] == out.stat().st_size + data.stat().st_size
        out.unlink()
        assert str(data) in refused("OP116", "prune", model, "-o", out, "--ratio", "0.5")
        assert not out.exists()


class TestInput:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        path = tmp_path / "image.npy"
        np.save(path, np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
        return path

    @pytest.mark.parametrize("name", ["", "image="])
    def test_given(self, model: Path, out: Path, image: Path, name: str) -> None:
        found = document("prune", model, "-o", out, "--ratio", "0.5", "--input", f"{name}{image}")
        assert found["verification"]["seed"] is None
        assert found["counted_at"] == {"image": [2, 3, 8, 8]}

    @pytest.mark.parametrize(
        ("array", "cause"),
        [
            (np.zeros((1, 3, 8, 8)), "takes float32, the file holds float64"),
            (np.zeros((1, 3, 9, 8), np.float32), "takes Nx3x8x8, the file holds 1x3x9x8"),
            (np.zeros((3, 8, 8), np.float32), "the file holds 3x8x8"),
            (np.array([{}]), "not a .npy file of numbers"),
        ],
    )
    def test_arrays_that_do_not_fit(self, model: Path, out: Path, tmp_path: Path, array: Any, cause: str) -> None:
        path = tmp_path / "x.npy"
        np.save(path, array, allow_pickle=True)
        assert cause in refused("OP604", "prune", model, "-o", out, "--ratio", "0.5", "--input", path)
        assert not out.exists()

    def test_files_that_are_not_arrays(self, model: Path, out: Path, tmp_path: Path) -> None:
        args = ("prune", model, "-o", out, "--ratio", "0.5", "--input")
        refused("OP604", *args, model)
        refused("OP604", *args, tmp_path / "absent.npy")
        refused("OP604", *args, tmp_path)
        huge = tmp_path / "huge.npy"
        with huge.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
        refused("OP604", *args, huge)

    def test_names(self, model: Path, out: Path, image: Path) -> None:
        args = ("prune", model, "-o", out, "--ratio", "0.5")
        assert "its inputs are: image" in refused("OP604", *args, "--input", f"imag={image}")
        refused("OP604", *args, "--input", image, "--input", f"image={image}")
        refused("OP302", *args, "--input", image, "--input-shape", "3,3,8,8")

    def test_several_inputs_need_names(self, tmp_path: Path, image: Path) -> None:
        net = Net()
        a, b = (net.input((2, 3, 8, 8), name) for name in "ab")
        net.output(net.conv(net.op("Add", net.conv(a, 8), net.conv(b, 8)), 4))
        model, out = tmp_path / "two.onnx", tmp_path / "o.onnx"
        onnx.save(net.model(), model)
        args = ("prune", model, "-o", out, "--ratio", "0.5", "--input")
        assert "2 inputs" in refused("OP604", *args, image)
        assert "no array for input 'b'" in refused("OP604", *args, f"a={image}")
        invoke(*args, f"a={image}", "--input", f"b={image}")

    def test_an_uninformative_input(self, model: Path, out: Path, tmp_path: Path) -> None:
        proto = network()
        for tensor in proto.graph.initializer:  # only the input's values reach the output
            if tensor.name.endswith("_b"):
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
        onnx.save(proto, model)
        zeros = tmp_path / "zeros.npy"
        np.save(zeros, np.zeros((1, 3, 8, 8), np.float32))
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "--input", zeros)
        assert result.stderr.startswith("warning: no output changes")
        assert "warning" not in invoke("prune", model, "-o", out, "--ratio", "0.5", "--force").stderr

    def test_shapes(self, model: Path) -> None:
        assert document("inspect", model, "--input-shape", "5,3,8,8")["counted_at"] == {"image": [5, 3, 8, 8]}
        assert document("inspect", model, "--input-shape", "image:5,3,8,8")["counted_at"] == {"image": [5, 3, 8, 8]}
        refused("OP603", "inspect", model, "--input-shape", "imag:5,3,8,8")
        refused("OP603", "inspect", model, "--input-shape", "5,4,8,8")
        refused("OP603", "inspect", model, "--input-shape", "5,3,8,8", "--input-shape", "6,3,8,8")
        refused("OP602", "inspect", model, "--input-shape", "image:5x3")

    def test_the_sizes_of_a_plan_are_kept(self, model: Path, out: Path, tmp_path: Path) -> None:
        plan = tmp_path / "p.json"
        invoke("plan", model, "-o", plan, "--ratio", "0.5", "--input-shape", "7,3,8,8")
        assert document("prune", model, "-o", out, "--plan", plan)["counted_at"] == {"image": [7, 3, 8, 8]}


def test_unknown_operators_are_no_failure(tmp_path: Path) -> None:
    net = Net(domains={"my.domain": 1})
    x = net.conv(net.input((1, 3, 8, 8)), 8, 3, name="stem")
    net.output(net.conv(x, 4, name="head"))
    proto = net.model()
    node = helper.make_node("Secret", ["stem_out0"], ["secret"], name="secret", domain="my.domain")
    proto.graph.node.insert(1, node)
    proto.graph.node[2].input[0] = "secret"
    path = tmp_path / "secret.onnx"
    onnx.save(proto, path)
    codes = [pin["code"] for pin in document("explain", path)["pins"]]
    assert "OP203" in codes or "OP213" in codes
    refused("OP310", "prune", path, "-o", tmp_path / "o.onnx", "--ratio", "0.5")

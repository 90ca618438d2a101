"""What misled people who tried the tool for the first time, and blocked them: each has a test here or named here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from tests.cli.support import DIGITS, document, invoke, refused
from tests.report.network import network
from tests.toolbox import run_once

MODELS = DIGITS.parent
_TARGET = ("--target", "macs=30%", "--threads", "1")

ELSEWHERE = {
    "the proof reads as if accuracy were kept": [
        "tests.report.test_outcome:test_without_data_it_is_said_loudly_however_close_the_outputs_are",
        "tests.workflow.test_outcome:test_samples_that_the_network_may_have_been_trained_on",
    ],
    "a drop is measured on labels or inputs that are wrong": [
        "tests.test_search:test_labels_that_look_shifted_are_refused",
        "tests.test_search:test_inputs_that_the_original_sees_nothing_in_are_refused",
        "tests.test_search:test_what_samples_cannot_tell_is_said",
        "tests.test_search:test_parts_share_no_samples",
    ],
    "a latency that cleaning meets costs channels": [
        "tests.latency.test_targets:TestLatency.test_cleaning_alone_is_enough",
    ],
    "figures are cut at 80 columns": [
        "tests.report.test_widths:test_no_number_is_lost",
        "tests.report.test_widths:test_names_lose_what_they_share",
    ],
    "a repaired model is called wrong": [
        "tests.workflow.test_verifying:test_digits_from_the_readme",
        "tests.cli.test_findings:test_verify_proves_a_repaired_model_and_says_what_it_did_not_measure",
    ],
    "a search tries hopeless models to the end": [
        "tests.test_search:test_hopeless_models_are_seen_on_some_samples",
        "tests.cli.test_live:TestInterrupted.test_prune_resumes",
    ],
    "there is no quantization": [
        "tests.quantization.test_quantizing:test_a_form_that_pays_is_kept_and_right",
        "tests.quantization.test_quantizing:test_a_form_that_does_not_pay_is_left_out",
    ],
    "there is no gate on accuracy": [
        "tests.workflow.test_gates:TestCommand.test_exit_status",
        "tests.workflow.test_gates:TestCommand.test_junit",
    ],
    "labels go with one of two outputs": ["tests.test_search:test_features_beside_scores"],
    "unknown lengths are taken for the size of an image": [
        "tests.data.test_arrays:test_caches_and_token_types_without_an_array_are_zeros"
    ],
    "nothing says how long it takes": [
        "tests.cli.test_live:test_a_line_a_minute_without_a_terminal",
        "tests.cli.test_live:test_phases_are_counted",
    ],
    "times of a busy machine are believed later": ["tests.latency.test_plan:TestTable"],
    "detectors get a mean squared error only": ["tests.evaluate.test_boxes:TestRawDetectors"],
}


@pytest.mark.parametrize("named", sorted({name for names in ELSEWHERE.values() for name in names}))
def test_the_tests_named_here_exist(named: str) -> None:
    module, _, path = named.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)


def accuracy(path: Path) -> float:
    """The share of the test digits, which the network wasn't trained on, that ONNX Runtime gets right."""
    with np.load(MODELS / "digits_test.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"image": images})[0].argmax(axis=1) == labels).mean())


class TestFirstCommand:
    """The first command that a new user runs: it used to say "proved right" of a network that was right on 13 %."""

    def test_with_data_the_result_is_good(self, tmp_path: Path) -> None:
        result = invoke("prune", DIGITS, "-o", tmp_path / "s.onnx", *_TARGET, "--data", MODELS / "digits_train.npz")
        assert accuracy(tmp_path / "s.onnx") > 0.97
        assert "rewriting proved" in result.stdout and "then repaired" in result.stdout
        assert "answers kept: same top class as the original" in result.stdout
        assert "if it was trained on them, expect a larger drop on new ones" in result.stderr

    def test_without_data_it_is_bad_and_said_to_be(self, tmp_path: Path) -> None:
        result = invoke("prune", DIGITS, "-o", tmp_path / "s.onnx", *_TARGET)
        assert accuracy(tmp_path / "s.onnx") < 0.5
        assert "accuracy not kept" in result.stdout and "give inputs with --data" in " ".join(result.stdout.split())
        assert "right" not in result.stdout and "holds / locks" not in result.stdout


def test_verify_proves_a_repaired_model_and_says_what_it_did_not_measure(tmp_path: Path) -> None:
    small, plan = tmp_path / "s.onnx", tmp_path / "p.json"
    invoke("prune", DIGITS, "-o", small, *_TARGET, "--data", MODELS / "digits_train.npz", "--save-plan", plan)
    found = invoke("verify", DIGITS, small, "--plan", plan)
    assert "rewriting proved" in found.stdout and "NOT" not in found.stdout
    assert "isn't part of the proof: --data measures it" in found.stderr
    measured = invoke("verify", DIGITS, small, "--data", MODELS / "digits_test.npz")
    assert "agreement" in measured.stdout and "isn't part of the proof" not in measured.stderr


def test_verify_says_why_a_plan_is_not_for_the_file(tmp_path: Path) -> None:
    """Of a model that was changed before it was pruned, only outputs can be compared with the file."""
    other, small = tmp_path / "other.onnx", tmp_path / "s.onnx"
    proto = onnx.load(DIGITS)
    proto.doc_string = "changed"
    onnx.save(proto, other)
    invoke("prune", other, "-o", small, "--ratio", "0.5")
    found = invoke("verify", DIGITS, small, status=1)
    text = " ".join(found.stdout.split())
    assert "was made from another one, or from this one after it was trimmed, transformed or changed" in text
    assert "only the interface and the outputs are compared" in text and "proved" not in text.replace("is proved", "")


class TestTwoOutputs:
    """A network with features and scores, and labels: the output is found, or named in the same way everywhere."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        proto = network()
        features = next(node.output[0] for node in proto.graph.node if node.name == "flat")
        proto.graph.output.insert(0, helper.make_tensor_value_info(features, TensorProto.FLOAT, ["N", 8]))
        rng = np.random.default_rng(0)
        images = (rng.standard_normal((120, 3, 8, 8)) + 3 * rng.standard_normal((120, 3, 1, 1))).astype(np.float32)
        scores = next(value for name, value in run_once(proto, {"image": images}).items() if name != features)
        np.savez(tmp_path / "data.npz", image=images, labels=scores.argmax(axis=1))
        onnx.save(proto, tmp_path / "two.onnx")
        return tmp_path / "two.onnx", tmp_path / "data.npz"

    def test_the_one_of_the_labels_is_found(self, files: tuple[Path, Path], out: Path) -> None:
        path, data = files
        scores = document("evaluate", path, "--data", data)["scores"]
        assert next(s for s in scores.values() if s["metric"] == "top1")["model"]["value"] == 1
        invoke("prune", path, "-o", out, "--max-drop", "30%", "--data", data)
        assert out.exists()

    @pytest.mark.parametrize(
        "command", ["evaluate", "prune", "sensitivity", "finetune", "plan", "quantize", "sparsify", "verify"]
    )
    def test_every_command_with_data_takes_its_name(self, command: str) -> None:
        assert "--output-name" in invoke(command, "--help").stdout

    def test_a_wrong_name_is_refused_before_the_work(self, files: tuple[Path, Path], out: Path) -> None:
        path, data = files
        args = ("prune", path, "-o", out, "--max-drop", "30%", "--data", data, "--output-name", "nosuch")
        assert "the model has no output 'nosuch'" in refused("OP711", *args)


class TestCache:
    """A decoder whose cache has a symbolic length: 224, the size of an image, was beyond its table of positions."""

    _TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    decoder (int64[1,t] ids, float[1,past,8] cache) => (float[1,t,10] logits, float[1,total,8] grown)
    <int64 zero = {0}, int64 one = {1}> {
        e = Gather(words, ids)
        before = Shape<start = 1, end = 2>(cache)
        new = Shape<start = 1, end = 2>(ids)
        after = Add(before, new)
        from = Squeeze(before)
        to = Squeeze(after)
        places = Range(from, to, one)
        p = Gather(positions, places)
        x = Add(e, p)
        h = MatMul(x, up)
        r = Relu(h)
        y = MatMul(r, down)
        grown = Concat<axis = 1>(cache, y)
        mean = ReduceMean<axes = [1]>(grown)
        z = Add(y, mean)
        logits = MatMul(z, head)
    }"""

    @pytest.fixture
    def decoder(self, tmp_path: Path) -> Path:
        proto = parser.parse_model(self._TEXT)
        rng = np.random.default_rng(0)
        shapes = {"words": (10, 8), "positions": (32, 8), "up": (8, 32), "down": (32, 8), "head": (8, 10)}
        for name, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        onnx.checker.check_model(proto)
        onnx.save(proto, tmp_path / "decoder.onnx")
        return tmp_path / "decoder.onnx"

    def test_without_data(self, decoder: Path, out: Path) -> None:
        invoke("prune", decoder, "-o", out, "--ratio", "0.5")
        assert {t.name: list(t.dims) for t in onnx.load(out).graph.initializer}["up"] == [4, 16]

    def test_data_tell_the_lengths(self, decoder: Path, out: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        ids, cache = rng.integers(0, 10, (8, 6)), rng.standard_normal((8, 10, 8)).astype(np.float32)
        np.savez(tmp_path / "d.npz", ids=ids, cache=cache)
        plan = tmp_path / "p.json"
        invoke("prune", decoder, "-o", out, "--ratio", "0.5", "--data", tmp_path / "d.npz", "--save-plan", plan)
        found = json.loads(plan.read_text())["inputs"]
        assert [found["ids"][-1], found["cache"][-2]] == [6, 10]
        feeds = {"ids": ids[:1], "cache": cache[:1]}
        before, after = (run_once(onnx.load(path), feeds)["logits"] for path in (decoder, out))
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert 0 < error < 0.9, "repaired on these lengths; half of the units, unrepaired, leave more"

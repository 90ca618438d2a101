"""Sparse models as files: their zeros by loops over the stored weights, their outputs by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

import onnxprune as op
from onnxprune.errors import PlanError
from onnxprune.model.metadata import sparse_weights
from onnxprune.sensitivity import Curve, Point
from onnxprune.settings.sparsity import Pattern
from onnxprune.sparsity import network
from onnxprune.sparsity.budget import by_magnitude, spend
from onnxprune.sparsity.runtimes import RUNTIMES, eligibility
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.inputs import batches_of
from onnxprune.workflow.sparsifying import Sparsified
from onnxprune.workflow.verifying import require_equal
from tests.cli.support import document, invoke, refused
from tests.sparsity.support import DIGITS, MODELS, TEST, TRAIN, arrays


def convolutions(model: ModelProto) -> dict[str, np.ndarray]:
    """Return the weights of ordinary convolutions, output channels first, by name."""
    stored = arrays(model)
    return {n.input[1]: stored[n.input[1]] for n in model.graph.node if n.op_type == "Conv"}


class TestPattern:
    def test_two_of_four_channels_stay_at_every_tap(self, pairs: Sparsified) -> None:
        checked = 0
        for name, weight in convolutions(pairs.model.proto).items():
            if weight.shape[1] % 4 == 0:
                for o, y, x in np.ndindex(weight.shape[0], *weight.shape[2:]):
                    for first in range(0, weight.shape[1], 4):
                        assert np.count_nonzero(weight[o, first : first + 4, y, x]) <= 2
                checked += 1
            else:
                assert name not in sparse_weights(pairs.model.proto)
        assert checked >= 10 and pairs.zeros == pytest.approx(0.5, abs=1e-3)
        dense = convolutions(onnx.load(DIGITS))  # the control
        assert all(np.count_nonzero(weight) > 0.9 * weight.size for weight in dense.values())

    def test_layers_that_do_not_fit_stay_dense_with_a_reason(self, pairs: Sparsified) -> None:
        assert {(left.node, left.reason) for left in pairs.dense} == {
            ("/stem/conv/Conv", "its 1 input channels aren't a multiple of 4"),
            ("/depthwise/conv/Conv", "its 1 input channels of a group aren't a multiple of 4"),
        }

    def test_the_share_of_zeros_is_what_was_asked_for(self) -> None:
        found = op.sparsify(DIGITS, sparsity=0.8, data=TRAIN, limit=32, threads=1)
        weights = [
            weight for name, weight in arrays(found.model.proto).items() if name in sparse_weights(found.model.proto)
        ]
        zeros, size = sum((w == 0).sum() for w in weights), sum(w.size for w in weights)
        assert zeros / size == pytest.approx(0.8, abs=2e-3) and len(weights) == len(found.layers) == 14
        shares = [layer.zeros / layer.size for layer in found.layers]
        assert max(shares) - min(shares) > 0.1  # the budget isn't uniform
        before, after = found.sizes["zlib"]
        assert after < 0.35 * before and found.sizes["file"][1] < 1.05 * found.sizes["file"][0]
        assert found.judged == "held out" and found.evaluation is not None
        assert found.evaluation["agreement"].model.value > 0.95

    def test_blocks_are_zero_as_a_whole(self) -> None:
        found = op.sparsify(DIGITS, pattern="block-4x2", sparsity=0.5)
        proto = found.model.proto
        for name, weight in convolutions(proto).items():
            if name in sparse_weights(proto):
                cells = (weight != 0).reshape(weight.shape[0] // 4, 4, weight.shape[1] // 2, 2, -1)
                some, every = cells.any(axis=(1, 3)), cells.all(axis=(1, 3))
                assert np.array_equal(some, every)


class TestWithoutData:
    def test_a_layer_whose_budget_is_nothing_stays_dense(self) -> None:
        """One large weight makes the others of its layer score lowest; the other layer keeps everything."""
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, even)  y = MatMul (a, odd) }"""
        model = parser.parse_model(text)
        even, odd = np.eye(4, dtype=np.float32) + 1, np.eye(4, dtype=np.float32) * 1e-3
        odd[0, 0] = 100
        for name, weight in (("even", even), ("odd", odd + 1e-3)):
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
        found = op.sparsify(model, sparsity=0.4)
        assert found.layers[0].zeros == 0 and found.layers[1].zeros in (12, 13)
        assert sparse_weights(found.model.proto) == {"odd": "unstructured"}
        require_equal(op.verify(model, found.model.proto))

    def test_weights_that_stay_are_untouched(self) -> None:
        found = op.sparsify(DIGITS, sparsity=0.6)
        assert found.method == "magnitude" and found.samples == 0 and found.judged == "generated"
        before, after = arrays(onnx.load(DIGITS)), arrays(found.model.proto)
        for layer in found.layers:
            own, old = after[layer.weight], before[layer.weight]
            kept = own != 0
            assert np.array_equal(own[kept], old[kept]) and np.abs(old[kept]).min() >= np.abs(old[~kept]).max()

    def test_an_allocation_can_be_uniform(self) -> None:
        found = op.sparsify(DIGITS, sparsity=0.6, allocation="uniform")
        assert all(abs(layer.zeros - 0.6 * layer.size) <= 1 for layer in found.layers)
        default = op.sparsify(DIGITS, sparsity=0.6).layers  # the control
        assert any(abs(layer.zeros - 0.6 * layer.size) > 0.1 * layer.size for layer in default)

    def test_layer_shares_are_those_of_lamp(self) -> None:
        rng = np.random.default_rng(0)
        layers = [rng.normal(size=(1, 8, 20)) * s for s in (1.0, 0.01)]
        shares = by_magnitude(layers, 0.7)
        every = []
        for i, layer in enumerate(layers):
            squares = sorted(float(w) ** 2 for w in layer.ravel())
            every += [(w / sum(squares[k:]), i) for k, w in enumerate(squares)]
        gone = sorted(every)[: round(0.7 * 320)]
        wanted = [sum(layer == i for _, layer in gone) / 160 for i in range(2)]
        np.testing.assert_allclose(shares, wanted)
        assert abs(shares[0] - shares[1]) < 0.2  # the scale of a layer doesn't count


def test_the_budget_is_spent_where_it_adds_least() -> None:
    """Compared with every split of the budget between two layers, one of which is ten times as sensitive."""
    sizes = [1000, 3000]
    points = [tuple(Point(p, s * (p / 100) ** 3) for p in (25, 50, 75, 95)) for s in (10.0, 1.0)]
    curves = [Curve(i, tuple(range(100)), own) for i, own in enumerate(points)]
    shares = spend(curves, sizes, 0.6)
    assert np.dot(shares, sizes) == pytest.approx(0.6 * 4000)

    def error(first: float) -> float:
        second = (0.6 * 4000 - first * 1000) / 3000
        return 10 * first**3 + second**3

    best = min((error(f), f) for f in np.linspace(0, 0.98, 99))
    assert error(shares[0]) < 1.05 * best[0] and shares[0] < shares[1]


@pytest.mark.slow
def test_the_budget_and_solving_help() -> None:
    """At 90 % zeros, what data chooses and solves is far nearer to the original than magnitude."""
    options: dict[str, Any] = {"sparsity": 0.9, "data": TRAIN, "limit": 64, "threads": 1}
    values = []
    for method, recover in (("alternating", "reconstruct"), ("magnitude", "none")):
        evaluation = op.sparsify(DIGITS, method=method, recover=recover, **options).evaluation
        assert evaluation is not None
        values.append(evaluation["mse"].model.value)
    assert values[0] < 0.5 * values[1]


class TestRuntimes:
    def test_verdicts(self) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 256, 4, 4] x, float[n, 64] z) => (float[n, 256, 4, 4] y, float[n, 64] v) {
            a = Conv (x, wide)
            y = Conv <group = 256> (a, deep)
            v = MatMul (z, product)
        }"""
        model = parser.parse_model(text)
        shapes = {"wide": (256, 256, 1, 1), "deep": (256, 1, 1, 1), "product": (64, 64)}
        for name, shape in shapes.items():
            weight = np.ones(shape, np.float32)
            weight.reshape(-1)[::2] = 0
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
        for i, node in enumerate(model.graph.node):
            node.name = ("wide", "deep", "product")[i]
        found: dict[tuple[str, str, str], str] = {}
        for pattern in ("2:4", "unstructured"):
            noted = json.dumps(dict.fromkeys(shapes, pattern))
            del model.metadata_props[:]
            model.metadata_props.add(key="onnxprune.sparse", value=noted)
            found |= {(e.node, e.runtime, pattern): e.use for e in eligibility(model)}
        assert {use for (_, runtime, _), use in found.items() if runtime == "ONNX Runtime"} == {"no"}
        assert found["wide", "TensorRT", "2:4"] == "likely" and found["wide", "TensorRT", "unstructured"] == "no"
        assert found["deep", "TensorRT", "2:4"] == "no" and found["product", "TensorRT", "2:4"] == "perhaps"
        assert found["wide", "OpenVINO (CPU)", "2:4"] == "no" and found["product", "OpenVINO (CPU)", "2:4"] == "perhaps"
        assert found["product", "Core ML", "2:4"] == "likely" and found["wide", "Core ML", "unstructured"] == "perhaps"

    def test_every_fact_has_a_source_in_the_guide(self) -> None:
        guide = (MODELS.parent / "docs" / "guides" / "sparse.md").read_text()
        words = " ".join(guide.split())
        for facts in RUNTIMES:
            assert facts.name in words and facts.source in words and facts.what in words


class TestCommand:
    def test_it_writes_what_it_says(self, tmp_path: Path) -> None:
        out = tmp_path / "s.onnx"
        told = document(
            "sparsify", DIGITS, "-o", out, "--pattern", "2:4", "--data", TEST, "--limit", 40, "--threads", 1
        )
        assert told["pattern"] == "2:4" and told["method"] == "alternating" and told["samples"] == 40
        stored = arrays(onnx.load(out))
        for layer in told["sparse_layers"]:
            assert (
                layer["zeros"] == int((stored[layer["weight"]] == 0).sum())
                and layer["size"] == stored[layer["weight"]].size
            )
            assert layer["runtimes"]["ONNX Runtime"]["use"] == "no"
        assert told["sizes"]["file"]["after"] == out.stat().st_size
        assert "OP116" in refused("OP116", "sparsify", DIGITS, "-o", out)

    def test_what_it_prints(self, tmp_path: Path) -> None:
        shown = invoke("sparsify", DIGITS, "-o", tmp_path / "s.onnx", "--sparsity", "60%").stdout
        assert "ONNX Runtime runs zeros no faster" in shown and "accuracy isn't considered" in shown
        assert "60.0 % of" in shown and "compressed by zlib" in shown

    def test_a_pattern_and_the_share_that_it_has_anyway(self, tmp_path: Path) -> None:
        files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
        for file, more in zip(files, ([], ["--sparsity", "50%"]), strict=True):
            invoke("sparsify", DIGITS, "-o", file, "--pattern", "2:4", *more)
        assert files[0].read_bytes() == files[1].read_bytes()

    @pytest.mark.parametrize(
        ("code", "args"),
        [
            ("OP303", ["--pattern", "3:2"]),
            ("OP303", ["--sparsity", "100%"]),
            ("OP302", ["--pattern", "2:4", "--sparsity", "80%"]),
            ("OP302", ["--method", "obs"]),
            ("OP304", ["--keep", "nosuch*"]),
            ("OP310", ["--pattern", "block-1x999"]),
            ("OP712", ["--data", "one.npz"]),
        ],
    )
    def test_wrong_ones_write_nothing(self, tmp_path: Path, code: str, args: list[str]) -> None:
        one = tmp_path / "one.npz"
        np.savez(one, images=np.zeros((1, 1, 8, 8), np.float32))
        given = [str(one) if arg == "one.npz" else arg for arg in args]
        refused(code, "sparsify", DIGITS, "-o", tmp_path / "s.onnx", *given)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz"]

    def test_a_failed_check_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = network.solve

        def wrong(*args: Any) -> Any:
            found = right(*args)
            found[found == 0] = 0.5
            return found

        monkeypatch.setattr(network, "solve", wrong)
        refused("OP511", "sparsify", DIGITS, "-o", tmp_path / "s.onnx", "--pattern", "2:4", status=1)
        assert not list(tmp_path.iterdir())


def test_layers_behind_what_cannot_run_stay_dense() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
    g (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul (x, first)
        b = other.Unknown (a)
        y = MatMul (b, second)
    }"""
    model = parser.parse_model(text)
    for name in ("first", "second"):
        model.graph.initializer.append(
            numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 8)).astype("f"), name)
        )
    data = [{"x": np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)}]
    graph = op.analyze(model).graph
    batches = batches_of(lambda: data, graph)
    found = network.sparsify(PrunedGraph(graph), Way("alternating", Pattern(), True), 0.5, batches)
    assert [layer.weight for layer in found.layers] == ["first"]
    assert [left.reason for left in found.dense] == ["ONNX Runtime can't run it, or a node in front of it"]
    with pytest.raises(PlanError, match="fits no layer"):
        network.sparsify(PrunedGraph(graph), Way("alternating", Pattern.read("5:16"), True), 0.5, batches)

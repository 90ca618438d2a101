"""Weights that share values: codebooks, which weight takes which value, and what the model then computes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.errors import DataError, ModelError, PlanError, VerificationError
from onnxprune.packing.clusters import Book, cluster, codebook, round_columns
from onnxprune.packing.direct import with_codebooks
from tests.cli.support import DIGITS, document, invoke, refused

TRAIN = DIGITS.with_name("digits_train.npz")
DATA: dict[str, Any] = {"data": TRAIN, "limit": 64, "threads": 1}


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def outputs(model: ModelProto, images: np.ndarray) -> np.ndarray:
    """Run a model by ONNX Runtime alone."""
    found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(found.run(None, {found.get_inputs()[0].name: images})[0])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS.with_name("digits_test.npz")) as found:
        return np.asarray(found["images"])[:200]


class TestCodebook:
    def test_is_that_of_scikit_learn(self) -> None:
        cluster_ = pytest.importorskip("sklearn.cluster")
        rng = np.random.default_rng(0)
        x, h = rng.normal(size=2000), rng.uniform(0.1, 3, 2000)
        book = codebook(x, h, 8, 0.0, rng)
        start = np.linspace(*np.quantile(x, [0.002, 0.998]), 8)[:, None]
        other = cluster_.KMeans(8, init=start, n_init=1, tol=0, max_iter=30).fit(x[:, None], sample_weight=h)
        np.testing.assert_allclose(book.values, np.sort(other.cluster_centers_[:, 0]), rtol=0.02, atol=0.005)
        plain = cluster_.KMeans(8, init=start, n_init=1, tol=0, max_iter=30).fit(x[:, None])
        assert np.abs(book.values - np.sort(plain.cluster_centers_[:, 0])).max() > 0.01  # the control: weights count

    def test_keeps_zeros_and_few_values(self) -> None:
        rng = np.random.default_rng(0)
        x = np.where(rng.random(1000) < 0.8, 0, rng.normal(size=1000))
        book = codebook(x, np.ones(1000), 16, 0.0, rng)
        assert len(book.values) <= 16 and (book.values == 0).sum() == 1
        few = rng.choice([1.0, -2.0, 0.5], 500)
        np.testing.assert_array_equal(codebook(few, np.ones(500), 4, 0.0, rng).values, [-2, 0.5, 1])


class TestRounding:
    def rounding(self, seed: int, intercept: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, Book]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
        x[:, -1] = intercept
        matrix = rng.normal(size=(1, 3, 6))
        matrix[0, 1, 2] = 0
        matrix[..., -1] *= intercept
        book = Book(np.array([-1.0, 0.0, 1.0]), np.zeros(3))
        return x, matrix, round_columns(matrix, (x.T @ x)[None], book, intercept=intercept), book

    def test_columns_that_follow_make_up(self) -> None:
        """Outputs are nearer than with the nearest values, and not far from the best of all choices."""
        losses = []
        for seed, intercept in product(range(20), (True, False)):
            x, matrix, found, book = self.rounding(seed, intercept)
            assert set(np.unique(found[..., :-1])) <= {-1.0, 0.0, 1.0} and found[0, 1, 2] == 0

            for o in range(3):
                nearest = np.where(matrix[0, o, :-1] == 0, 0, book.rounded(matrix[0, o, :-1]))
                every = (np.array(row, float) for row in product(*[(-1, 0, 1)] * 5))
                allowed = [row for row in every if o != 1 or row[2] == 0]
                rows = np.array([nearest, found[0, o, :-1], *allowed]) - matrix[0, o, :-1]
                error = rows @ x[:, :-1].T
                loss = ((error - intercept * error.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
                losses.append((loss[0], loss[1], loss[2:].min()))
        nearest_, own, best_ = np.array(losses).T.sum(axis=1)
        assert own < 0.75 * nearest_ and own < 2 * best_
        assert (np.array(losses)[:, 1] >= np.array(losses)[:, 2] - 1e-9).all()  # the control: best is the best

    def test_the_intercept_takes_what_remains(self) -> None:
        x, matrix, found, _ = self.rounding(0, True)
        left = x @ (found - matrix)[0].T
        assert np.abs(left.mean(axis=0)).max() < 0.1 * np.abs(left).max()
        assert (found[..., -1] != matrix[..., -1]).all()
        _, before, after, _ = self.rounding(0, False)
        np.testing.assert_array_equal(after[..., -1], before[..., -1])


def test_tensors_have_few_values_and_inputs_help(images: np.ndarray) -> None:
    original = op.analyze(DIGITS).graph.proto
    wanted = outputs(original, images)
    errors = {}
    for name, batches in (("plain", None), ("trained", lambda: [{"image": images[i : i + 50]} for i in (0, 50)])):
        model = ModelProto()
        model.CopyFrom(original)
        books = cluster(model, 4, batches)
        before, after = weights(original), weights(model)
        assert [b.tensor for b in books if b.trained] == [b.tensor for b in books if name == "trained"]
        assert len(books) == 13 and all(len(np.unique(after[b.tensor])) <= 4 for b in books)
        for name_, array in after.items():  # others change only as the intercepts of layers
            assert array.shape == before[name_].shape
            assert name == "trained" or name_ in {b.tensor for b in books} or (array == before[name_]).all()
        errors[name] = float(((outputs(model, images[100:]) - wanted[100:]) ** 2).mean())
    assert errors["trained"] < 0.5 * errors["plain"]


def test_inputs_of_any_size_are_fitted_to() -> None:
    """Dead inputs, tiny and huge ones, and ones that aren't finite, which leave a layer to its weights alone."""
    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])
    tensors = [numpy_helper.from_array(rng.normal(size=(40, 16)).astype(np.float32), "w")]
    tensors.append(numpy_helper.from_array(np.zeros(16, np.float32), "b"))
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm")], "g", [x], [y], tensors)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for size in (0.0, 1e-12, 1e-6, 1.0, 1e12, np.inf):
        model = op.analyze(whole).graph.proto
        feeds = (rng.normal(size=(64, 40)) * np.where(np.arange(40) < 20, 1, size)).astype(np.float32)
        feeds = np.full((64, 40), size, np.float32) if size in (0.0, np.inf) else feeds
        (book,) = cluster(model, 8, lambda feeds=feeds: [{"x": feeds}])
        found = weights(model)["w"]
        assert np.isfinite(found).all() and len(np.unique(found)) <= 8 and book.trained == (size != np.inf)


def test_zeros_stay_zeros(tmp_path: Path, images: np.ndarray) -> None:
    model = op.load(DIGITS).proto
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 4 and array.size > 1000:
            cut = np.where(np.abs(array) < np.quantile(np.abs(array), 0.6), 0, array).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))
    op.pack(model, tmp_path / "m.onnxpack", clusters=16, **DATA)
    op.unpack(tmp_path / "m.onnxpack", tmp_path / "m.onnx")
    before, after = weights(op.analyze(model).graph.proto), weights(onnx.load(tmp_path / "m.onnx"))
    sparse = {n for n, a in before.items() if (a == 0).mean() > 0.5 and a.size > 1000}
    assert len(sparse) >= 5 and all((after[n][before[n] == 0] == 0).all() for n in sparse)
    assert all(len(np.unique(after[n])) <= 16 for n in sparse)


@pytest.mark.parametrize("opset", [13, 21])
def test_codebooks_in_standard_operators_compute_the_same(opset: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32, 4, 4])
    tensors = [
        numpy_helper.from_array(rng.choice([0, 0.1, -0.7, 3], (32, 3, 3, 3)).astype(np.float32), "a"),
        numpy_helper.from_array(rng.choice(np.arange(40) / 7, (8, 32, 3, 3)).astype(np.float32), "b"),
        numpy_helper.from_array(rng.normal(size=(32, 8, 3, 3)).astype(np.float32), "dense"),
        numpy_helper.from_array(rng.normal(size=8).astype(np.float32), "a/index"),  # a name that is taken
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "one", pads=[1] * 4),
        helper.make_node("Conv", ["h", "b", "a/index"], ["i"], "two", pads=[1] * 4),
        helper.make_node("Conv", ["i", "dense"], ["y"], "three"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found = with_codebooks(model)
    onnx.checker.check_model(found, full_check=True)
    feeds = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(outputs(found, feeds), outputs(model, feeds))
    kinds = [t.data_type for t in found.graph.initializer if t.name.rstrip("_").endswith("/index") and t.dims[1:]]
    assert kinds == [TensorProto.UINT4 if opset == 21 else TensorProto.UINT8, TensorProto.UINT8]
    assert found.ByteSize() < 0.6 * model.ByteSize()
    # ONNX Runtime computes the weights when it loads the model
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    onnxruntime.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert not {"Gather", "Cast"} & {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}


def test_what_is_lost_is_judged_on_other_samples(tmp_path: Path, images: np.ndarray) -> None:
    found = op.pack(DIGITS, tmp_path / "a.onnxpack", clusters=16, max_drop=0.02, **DATA)
    assert found.samples == (64, 1606) or found.samples[1] > 500
    assert found.evaluation is not None and found.evaluation["agreement"].model.value > 0.98
    assert found.size[1] < found.size[0] / 6
    op.unpack(tmp_path / "a.onnxpack", tmp_path / "a.onnx")
    mine, right = outputs(onnx.load(tmp_path / "a.onnx"), images), outputs(onnx.load(DIGITS), images)
    assert (mine.argmax(1) == right.argmax(1)).mean() > 0.97 and (mine != right).any()
    direct = op.pack(DIGITS, tmp_path / "b.onnx", clusters=16, direct=True, **DATA)
    np.testing.assert_allclose(outputs(onnx.load(tmp_path / "b.onnx"), images), mine, rtol=1e-4, atol=1e-4)
    assert found.size[1] < direct.size[1] < direct.size[0] / 3 and not direct.streams
    with pytest.raises(VerificationError, match="OP510"):
        op.pack(DIGITS, tmp_path / "c.onnxpack", clusters=2, max_drop=0.01, **DATA)
    assert not (tmp_path / "c.onnxpack").exists()


def test_settings_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    for options in ({"direct": True}, {"data": TRAIN}, {"keep": ("*",)}):
        with pytest.raises(PlanError, match="`clusters`"):
            op.pack(DIGITS, tmp_path / "m", **options)
    with pytest.raises(PlanError, match="`data`"):
        op.pack(DIGITS, tmp_path / "m", clusters=16, max_drop=0.1)
    with pytest.raises(ModelError, match="OP135"):
        op.pack(DIGITS, tmp_path / "m", clusters=16, keep=("*",))
    with pytest.raises(DataError, match="OP712"):
        op.pack(DIGITS, tmp_path / "m", clusters=16, data=op.open_data(TRAIN, op.load(DIGITS).proto).subset([0]))
    assert not list(tmp_path.iterdir())


def test_commands(tmp_path: Path) -> None:
    packed, back = tmp_path / "m.onnxpack", tmp_path / "m.onnx"
    report = document("pack", DIGITS, "-o", packed)
    assert report["file_size"] == {"before": DIGITS.stat().st_size, "after": packed.stat().st_size}
    assert report["clusters"] == [] and report["evaluation"] is None
    told = document("unpack", packed, "-o", back)
    assert told["files"] == [str(back)] and back.read_bytes() == DIGITS.read_bytes()
    assert "--force" in refused("OP116", "unpack", packed, "-o", back)
    assert "--max-size" in refused("OP134", "unpack", packed, "-o", tmp_path / "n.onnx", "--max-size", 1000)
    refused("OP116", "pack", packed, "-o", packed, "--force")
    refused("OP103", "pack", packed, "-o", tmp_path / "n")
    assert "nothing says what that loses" in invoke("pack", DIGITS, "-o", tmp_path / "c", "--clusters", 8).stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "m.onnx", "m.onnxpack"]

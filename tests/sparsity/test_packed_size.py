"""A budget on the packed file: its bytes are those of the file that `pack` writes, whatever meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

import onnxprune as op
from onnxprune.errors import PlanError
from onnxprune.workflow.packed_size import Forecast
from onnxprune.workflow.sparsifying import Sparsified
from onnxprune.workflow.verifying import require_equal
from tests.cli.support import document, refused
from tests.sparsity.support import DIGITS, TRAIN, arrays

FILE = DIGITS.stat().st_size


def packed(result: Sparsified, folder: Path) -> int:
    """Return the bytes of the packed file."""
    path = folder / "packed.onnxpack"
    op.pack(result.model.proto, path, force=True)
    return path.stat().st_size


def test_the_packed_file_has_no_more_bytes_than_allowed_and_hardly_fewer(tmp_path: Path) -> None:
    found = op.sparsify(DIGITS, packed_size="20%")
    size = packed(found, tmp_path)
    assert found.limit == 0.2 * FILE and found.sizes["packed"][1] == size
    assert 0.96 * found.limit < size <= found.limit
    assert found.pruned is None and not found.tried  # no inputs tell whether channels pay
    fewer = op.sparsify(DIGITS, sparsity=found.zeros - 0.02)  # the control
    assert packed(fewer, tmp_path) > found.limit


def test_a_file_that_is_small_enough_keeps_all_weights() -> None:
    found = op.sparsify(DIGITS, packed_size=f"{FILE}B")
    assert found.zeros == 0 and found.sizes["packed"][1] < FILE


def test_where_zeros_are_costs_their_entropy() -> None:
    """Half of 8000 weights of 4 bytes: 16,000 bytes fewer, and a bit for each weight."""
    forecast = Forecast(40_000, 4.0, np.array([8000.0]), 1, lambda share: np.array([share]))
    assert forecast(0.5) == pytest.approx(40_000 - 16_000 + 1000)
    blocks = Forecast(40_000, 4.0, np.array([8000.0]), 4, lambda share: np.array([share]))
    assert blocks(0.5) == pytest.approx(40_000 - 16_000 + 250)
    zeros = forecast.zeros(25_000)
    assert zeros == pytest.approx(0.5, abs=1e-3) and forecast(zeros) <= 25_000 and forecast.zeros(40_000) == 0
    with pytest.raises(PlanError, match="are allowed"):
        forecast.zeros(8000)


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("OP303", ["--packed-size", "25"]),
        ("OP303", ["--packed-size", "25apples"]),
        ("OP302", ["--packed-size", "25%", "--sparsity", "80%"]),
        ("OP302", ["--packed-size", "25%", "--pattern", "2:4"]),
        ("OP302", ["--no-channels"]),
        ("OP301", ["--packed-size", "3kB"]),
    ],
)
def test_wrong_ones_write_nothing(tmp_path: Path, code: str, args: list[str]) -> None:
    message = refused(code, "sparsify", DIGITS, "-o", tmp_path / "s.onnx", *args)
    assert "packed_size" not in message and not list(tmp_path.iterdir())


def redundant() -> Any:
    """Return a network of two products whose 64 hidden units are 8 ones, each eight times, with a little noise."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 32] x) => (float[n, 16] y) { a = MatMul (x, first)  b = Relu (a)  y = MatMul (b, second) }"""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    first = np.repeat(rng.normal(size=(32, 8)), 8, axis=1) + 1e-4 * rng.normal(size=(32, 64))
    for name, weight in (("first", first), ("second", rng.normal(size=(64, 16)))):
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return model


def test_channels_leave_first_where_that_pays(tmp_path: Path) -> None:
    """An eighth of the hidden units says everything, and no zeros elsewhere would."""
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(1).normal(size=(512, 32)).astype(np.float32))
    options: dict[str, Any] = {"packed_size": "35%", "data": data, "threads": 1}
    found, plain = op.sparsify(redundant(), **options), op.sparsify(redundant(), channels=False, **options)
    assert found.pruned is not None and found.pruned.verification is not None and found.pruned.verification.passed
    assert arrays(found.model.proto)["first"].shape[1] < 40 and arrays(plain.model.proto)["first"].shape[1] == 64
    assert plain.pruned is None and not plain.tried
    for result in (found, plain):
        assert result.limit is not None and packed(result, tmp_path) <= result.limit
    errors = [r.evaluation["mse"].model.value for r in (found, plain) if r.evaluation is not None]
    assert errors[0] < 0.1 * errors[1]
    comparison = op.verify(redundant(), found.model.proto)  # both links: the masked original, and what was solved
    require_equal(comparison)
    assert comparison.proved and comparison.weights is not None
    assert set(comparison.weights.changed.values()) == {("sparsify",)}
    again = op.sparsify(redundant(), **options)
    assert again.model.proto.SerializeToString() == found.model.proto.SerializeToString()


def test_without_inputs_to_hold_back_channels_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(40, 32)).astype(np.float32))
    for data in (tmp_path / "x.npz", "random"):
        found = op.sparsify(redundant(), packed_size="35%", data=data, threads=1)
        assert found.pruned is None and not found.tried


@pytest.mark.slow
def test_a_trained_network(tmp_path: Path) -> None:
    told = document(
        *("sparsify", DIGITS, "-o", tmp_path / "s.onnx", "--packed-size", "5%"),
        *("--data", TRAIN, "--keep", "*stem*", "--threads", 1),
    )
    assert len(told["tried"]) > 1 and told["limit"] == 0.05 * FILE
    assert told["sizes"]["packed"]["after"] <= told["limit"]
    before, after = arrays(op.load(DIGITS).proto), arrays(op.load(tmp_path / "s.onnx").proto)
    stem = next(name for name, array in before.items() if array.shape[1:2] == (1,) and array.shape[0] == 16)
    assert (after[stem] != 0).all() and after[stem].shape == before[stem].shape
    best = min(told["tried"], key=lambda one: one["error"])
    assert (told["channels"] is None) == (best["channels"] == 0)
    require_equal(op.verify(DIGITS, tmp_path / "s.onnx"))

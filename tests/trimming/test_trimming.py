"""Trimmed decoders against the original on ONNX Runtime: what is left must be what it computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.errors import OnnxPruneError, PlanError, UsageError, VerificationError
from onnxprune.normalize import normalize
from onnxprune.trace import trace
from onnxprune.trimming import last_position, vocabulary
from onnxprune.trimming.last_position import keep_last_position
from onnxprune.trimming.vocabulary import trim_vocabulary
from onnxprune.workflow.trimming import read_tokens
from tests.cli.support import document, invoke, refused
from tests.toolbox import Net, run_once

WORDS, WIDTH, BLOCK = 24, 32, 16
KEPT = [1, 3, 4, 11, 20, 22]
Arrays = dict[str, NDArray[Any]]
INT64 = onnx.TensorProto.INT64


def packed(net: Net, name: str, per_row: bool) -> tuple[str, str]:
    """Add a table in blocks of four bits and its scales, as MatMulNBits takes them or as a lookup does."""
    shape = (WORDS, WIDTH // 2) if per_row else (WORDS, WIDTH // BLOCK, BLOCK // 2)
    bits = net.const(net.rng.integers(0, 256, shape).astype(np.uint8), name)
    return bits, net.between(0.01, 0.05, WORDS, WIDTH // BLOCK, name=f"{name}_scales")


def embed(net: Net, ids: str, kind: str) -> str:
    """Look up ids."""
    shape = (*net.shape(ids), WIDTH)
    if kind == "bits":
        names = packed(net, "table", per_row=True)
        domain = "com.microsoft:GatherBlockQuantized"
        operands, attributes = (names[0], ids, names[1]), {"block_size": BLOCK, "quantize_axis": 1, "gather_axis": 0}
        (x,) = net.ops(domain, *operands, count=1, shapes=[shape], name="embed", **attributes)
        net.types[x].tensor_type.elem_type = onnx.TensorProto.FLOAT
        return x
    if kind == "int8":
        table = net.const(net.rng.integers(-99, 99, (WORDS, WIDTH)).astype(np.int8), "table")
        scale, zero = net.between(0.005, 0.02, WORDS, name="table_scale"), net.const(np.zeros(WORDS, np.int8))
        return net.op("Gather", net.op("DequantizeLinear", table, scale, zero, axis=0, name="rows"), ids, name="embed")
    return net.op("Gather", net.weight(WORDS, WIDTH, name="table"), ids, name="embed")


def head(net: Net, x: str, kind: str) -> str:
    """Make logits."""
    if kind == "bits":
        sizes: dict[str, Any] = {"K": WIDTH, "N": WORDS, "bits": 4, "block_size": BLOCK, "name": "head"}
        operands = packed(net, "head", per_row=False)
        shape = (*net.shape(x)[:-1], WORDS)
        return net.ops("com.microsoft:MatMulNBits", x, *operands, count=1, shapes=[shape], **sizes)[0]
    if kind == "int8":
        return net.op("MatMul", x, net.op("Transpose", "rows_out0", perm=[1, 0]), name="head")
    if kind == "tied":
        return net.op("MatMul", x, net.op("Transpose", "table", perm=[1, 0]), name="head")
    return net.op("Add", net.op("MatMul", x, net.weight(WIDTH, WORDS, name="head"), name="head"), net.weight(WORDS))


def decoder(
    kind: str = "plain",
    ids_of: Callable[[Net, str], str] = lambda net, ids: ids,
    logits_of: Callable[[Net, str], str] = lambda net, x: x,
) -> Net:
    """Return a layer of attention with a cache of keys and values, between an embedding and a head."""
    net = Net(domains={"com.microsoft": 1})
    axes = {0: "batch", 1: "steps"}
    ids = net.input((2, 5), "ids", dtype=INT64, symbols=axes)
    past = [net.input((2, 7, WIDTH), name, symbols={0: "batch", 1: "past"}) for name in ("past_k", "past_v")]
    x = embed(net, ids_of(net, ids), kind)
    q, k, v = (net.op("MatMul", x, net.weight(WIDTH, WIDTH, fan_in=WIDTH)) for _ in range(3))
    k, v = (net.op("Concat", old, new, axis=1) for old, new in zip(past, (k, v), strict=True))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = net.op("Add", x, net.op("MatMul", net.op("MatMul", scores, v), net.weight(WIDTH, WIDTH, fan_in=WIDTH)))
    x = net.op("LayerNormalization", x, net.between(0.5, 1.5, WIDTH), net.weight(WIDTH), axis=-1)
    net.output(logits_of(net, head(net, x, kind)), symbols={**axes, 2: WORDS})  # type: ignore[dict-item]
    for name in (k, v):
        net.output(name, symbols={0: "batch", 1: "total"})
    return net


def feeds(ids: NDArray[np.int64], past: int = 7, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    states = (rng.standard_normal((len(ids), past, WIDTH)).astype(np.float32) for _ in range(2))
    return {"ids": ids, **dict(zip(("past_k", "past_v"), states, strict=True))}


def graph_of(model: ModelProto) -> Any:
    return trace(normalize(model))


def ids_of_kept(shape: tuple[int, ...], seed: int = 2) -> NDArray[np.int64]:
    return np.random.default_rng(seed).choice(KEPT, shape).astype(np.int64)


KINDS = ["plain", "tied", "int8", "bits"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_position(kind: str) -> None:
    model = decoder(kind).model(check=False)
    found = keep_last_position(normalize(model))
    if kind != "bits":
        onnx.checker.check_model(found.proto, full_check=True)
    assert [d.dim_value or d.dim_param for d in found.proto.graph.output[0].type.tensor_type.shape.dim][1:] == [
        1,
        WORDS,
    ]
    logits, *states = (o.name for o in model.graph.output)
    for steps, past in ((1, 4), (6, 0), (9, 7)):
        data = feeds(np.random.default_rng(steps).integers(0, WORDS, (3, steps)), past)
        expected, got = run_once(model, data), run_once(found.proto, data)
        assert got[logits].shape == (3, 1, WORDS)
        np.testing.assert_allclose(got[logits], expected[logits][:, -1:], atol=1e-5)
        for name in states:
            np.testing.assert_array_equal(got[name], expected[name])
        if steps > 1:  # the control: other positions hold something else
            assert np.abs(expected[logits][:, -2:-1] - got[logits]).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_ids", [False, True])
def test_a_vocabulary(kind: str, keep_ids: bool) -> None:
    model = decoder(kind).model(check=False)
    found = trim_vocabulary(graph_of(model), KEPT, keep_ids=keep_ids)
    assert found.new_ids == {old: new for new, old in enumerate(KEPT)}
    logits, *states = (o.name for o in model.graph.output)
    rows = {t.name: tuple(t.dims) for t in found.proto.graph.initializer}
    assert rows["table"][0] == len(KEPT)
    names = {"table", "table_scale", "table_scales", "head", "head_scales"} & rows.keys()
    assert all(len(KEPT) in rows[name] for name in names) and len(names) > 1 - (kind == "tied")
    ids = ids_of_kept((3, 6))
    data = feeds(ids)
    given = data if keep_ids else {**data, "ids": np.searchsorted(KEPT, ids)}
    expected, got = run_once(model, data), run_once(found.proto, given)
    if keep_ids:
        assert got[logits].shape == expected[logits].shape
        gone = np.setdiff1d(np.arange(WORDS), KEPT)
        assert (got[logits][..., gone] == -np.inf).all()
        got[logits] = got[logits][..., KEPT]
    np.testing.assert_allclose(got[logits], expected[logits][..., KEPT], atol=1e-4)
    for name in states:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)
    # The control: another token, or a row beside the right one, is noticed.
    other = run_once(found.proto, {**given, "ids": np.roll(given["ids"], 1, axis=1)})
    assert np.abs(other[states[0]] - expected[states[0]]).max() > 1e-2


def test_rows_are_those_of_the_list() -> None:
    model = decoder().model(check=False)
    found = trim_vocabulary(graph_of(model), [22, 3, 3, 11])
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (model, found.proto)
    )
    np.testing.assert_array_equal(after["table"], before["table"][[3, 11, 22]])
    np.testing.assert_array_equal(after["head"], before["head"][:, [3, 11, 22]])


def test_an_encoder_has_an_embedding_only() -> None:
    net = Net()
    x = embed(net, net.input((2, 5), "ids", dtype=INT64), "plain")
    positions = net.op("Gather", net.weight(9, WIDTH, name="positions"), net.const(np.arange(5)))
    net.output(net.reduce("ReduceMean", net.linear(net.op("Add", x, positions), 8), [1], keepdims=0))
    model = net.model()
    found = trim_vocabulary(graph_of(model), KEPT)
    ids = ids_of_kept((2, 5))
    expected, got = run_once(model, {"ids": ids}), run_once(found.proto, {"ids": np.searchsorted(KEPT, ids)})
    np.testing.assert_allclose(*(next(iter(r.values())) for r in (got, expected)), atol=1e-5)
    assert {t.name: t.dims[0] for t in found.proto.graph.initializer}["positions"] == 9


def padding(net: Net, ids: str) -> str:
    """Add an output that compares ids with that of padding."""
    net.output(net.op("Equal", ids, net.const(0), name="is_padding"))
    return ids


def test_ids_that_are_read_otherwise_must_stay() -> None:
    graph = graph_of(decoder(ids_of=padding).model(check=False))
    with pytest.raises(PlanError) as caught:
        trim_vocabulary(graph, KEPT)
    assert caught.value.code == "OP318" and "is_padding" in str(caught.value) and "keep_token_ids" in str(caught.value)
    assert trim_vocabulary(graph, KEPT, keep_ids=True).error < 1e-5


def best(net: Net, x: str) -> str:
    """Add an output with the likeliest token."""
    net.output(net.op("ArgMax", x, axis=-1, keepdims=0, name="best"))
    return x


def normalized_over_steps(net: Net, x: str) -> str:
    return net.op("Softmax", x, axis=1, name="mix")


def per_position(net: Net, x: str) -> str:
    return net.op("Add", x, net.weight(1, 5, 1), name="shift")


def summed(net: Net, x: str) -> str:
    return net.op("Add", x, net.reduce("ReduceMean", x, [1]), name="total")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (normalized_over_steps, "mix"),
        (summed, "total"),
        (per_position, "shift"),
        (best, "something else reads"),
    ],
)
def test_what_mixes_positions_is_refused(change: Callable[[Net, str], str], reason: str) -> None:
    model = normalize(decoder(logits_of=change).model(check=False))
    with pytest.raises(PlanError) as caught:
        keep_last_position(model, {"ids": (2, 5)})
    assert caught.value.code == "OP318" and reason in str(caught.value)


def softly_capped(net: Net, x: str) -> str:
    """Cap logits as Gemma 2 does."""
    return net.op("Mul", net.op("Tanh", net.op("Div", x, net.const(30.0))), net.const(30.0))


def test_what_acts_on_each_position_is_allowed() -> None:
    model = normalize(decoder(logits_of=softly_capped).model(check=False))
    assert keep_last_position(model).error < 1e-5
    assert trim_vocabulary(trace(model), KEPT).error < 1e-5


def test_positions_of_tokens_that_are_read_stay() -> None:
    """The index of the best token would be another."""
    with pytest.raises(PlanError) as caught:
        trim_vocabulary(graph_of(decoder(logits_of=best).model(check=False)), KEPT)
    assert caught.value.code == "OP318" and "OP204" in str(caught.value)


@pytest.mark.parametrize("tokens", [[5], [1, WORDS], [-1, 2], []])
def test_lists_that_do_not_fit(tokens: list[int]) -> None:
    with pytest.raises(PlanError) as caught:
        trim_vocabulary(graph_of(decoder().model(check=False)), tokens)
    assert caught.value.code == "OP318"


def test_a_model_without_tokens() -> None:
    net = Net()
    net.output(net.linear(net.input((2, 6)), 4))
    model = normalize(net.model())
    for attempt in (lambda: keep_last_position(model), lambda: trim_vocabulary(trace(model), KEPT)):
        with pytest.raises(PlanError) as caught:
            attempt()
        assert caught.value.code == "OP318"


def test_a_wrong_slice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(*args: Any) -> ModelProto:
        made = right(*args)
        for tensor in made.graph.initializer:
            if tensor.name.endswith(("_starts", "_ends")):
                value = int(tensor.name.endswith("_ends"))
                tensor.CopyFrom(numpy_helper.from_array(np.array([value], np.int64), tensor.name))
        return made

    right = last_position._sliced
    monkeypatch.setattr(last_position, "_sliced", first)
    with pytest.raises(VerificationError) as caught:
        keep_last_position(normalize(decoder().model(check=False)), inputs=feeds(np.arange(10).reshape(2, 5)))
    assert caught.value.code == "OP501"


@pytest.mark.parametrize("name", ["table", "head"])
def test_a_wrong_row_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(kept: Any) -> ModelProto:
        made = right(kept)
        tensor = next(t for t in made.graph.initializer if t.name == name)
        array = np.roll(numpy_helper.to_array(tensor), 1, axis=0 if name == "table" else 1)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        return made

    right = vocabulary.rewrite
    monkeypatch.setattr(vocabulary, "rewrite", exchanged)
    with pytest.raises(VerificationError) as caught:
        trim_vocabulary(graph_of(decoder().model(check=False)), KEPT)
    assert caught.value.code == "OP501"


class TestCommand:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        onnx.save(decoder().model(check=False), tmp_path / "decoder.onnx")
        (tmp_path / "ids.txt").write_text("\n".join(map(str, KEPT)))
        (tmp_path / "ids.json").write_text(json.dumps(KEPT))
        return tmp_path / "decoder.onnx"

    def test_alone(self, model: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.onnx"
        found = document("prune", model, "-o", out, "--last-token-logits", "--vocabulary", tmp_path / "ids.txt")
        assert [trim["error"] < 1e-5 for trim in found["trims"]] == [True, True]
        assert found["cost"]["before"]["params"] == found["cost"]["after"]["params"]
        new_ids = json.loads((tmp_path / "out.vocabulary.json").read_text())["new_ids"]
        assert new_ids == {str(old): new for new, old in enumerate(KEPT)}
        ids = ids_of_kept((2, 6))
        expected = run_once(onnx.load(model), feeds(ids))
        got = run_once(onnx.load(out), feeds(np.array([[new_ids[str(i)] for i in row] for row in ids])))
        first = next(iter(expected))
        np.testing.assert_allclose(got[first], expected[first][:, -1:, KEPT], atol=1e-5)

    def test_before_pruning(self, model: Path, tmp_path: Path) -> None:
        out, lists = tmp_path / "out.onnx", tmp_path / "ids.json"
        arguments = ("--vocabulary", lists, "--keep-token-ids", "--ratio", "0.5")
        found = document("prune", model, "-o", out, *arguments)
        assert found["proved"] and found["cost"]["after"]["params"] < found["cost"]["before"]["params"]
        assert onnx.load(out).graph.output[0].type.tensor_type.shape.dim[2].dim_value == WORDS

    def test_from_python(self, model: Path) -> None:
        small = op.prune_model(model, vocabulary=KEPT, last_token_logits=True)
        assert small.new_ids is not None and list(small.new_ids) == KEPT
        assert not small.plan.removed and len(small.trims) == 2

    def test_refusals(self, model: Path, tmp_path: Path) -> None:
        out, lists = tmp_path / "out.onnx", tmp_path / "ids.txt"
        before = set(tmp_path.iterdir())
        prune = ("prune", model, "-o", out)
        refused("OP302", *prune, "--keep-token-ids")
        refused("OP302", *prune, "--vocabulary", lists, "--data", "random")
        refused("OP602", *prune, "--vocabulary", tmp_path / "none.txt")
        assert set(tmp_path.iterdir()) == before
        for number, text in enumerate(("1 two", "[1, 2.5]", "[" * 100_000, '{"a": 1}', "1 " + "9" * 5000)):
            path = tmp_path / f"bad{number}.txt"
            path.write_text(text)
            refused("OP602", *prune, "--vocabulary", path)
        assert not out.exists()

    def test_the_list_of_new_ids_is_not_overwritten(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "out.vocabulary.json").write_text("precious")
        arguments = ("prune", model, "-o", tmp_path / "out.onnx", "--vocabulary", tmp_path / "ids.txt")
        refused("OP116", *arguments)
        assert (tmp_path / "out.vocabulary.json").read_text() == "precious"
        invoke(*arguments, "--force")

    def test_inputs_for_the_proof_must_be_kept(self, model: Path) -> None:
        small = op.prune_model(model, vocabulary=KEPT, ratio=0.5, inputs=feeds(ids_of_kept((2, 6))))
        assert small.pruned.verification is not None and small.pruned.verification.passed
        with pytest.raises(OnnxPruneError) as caught:
            op.prune_model(model, vocabulary=KEPT, inputs=feeds(np.full((2, 6), 2)))
        assert caught.value.code == "OP318"


def test_a_missing_list_of_tokens_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_tokens(tmp_path / "absent.txt")
    assert caught.value.code == "OP602" and "one in each line" in str(caught.value.hint)

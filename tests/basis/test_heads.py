"""The heads of attentions in other bases: each has a matrix of its own, for values and for queries and keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

import onnxprune as op
from onnxprune.basis.directions import choose_bases
from onnxprune.basis.reflections import all_as_text, all_from_text, as_text
from onnxprune.basis.rotate import rotate
from onnxprune.errors import PlanError
from onnxprune.importance.products import ProductMoments, common_directions
from onnxprune.planning.plan import PrunePlan
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import Stream, find_streams
from tests.basis.heads import FORMS, STEPS, Attention, Form, batches
from tests.toolbox import Net, analyze

Array = NDArray[np.float64]


def run(model: ModelProto, seed: int = 5) -> Array:
    """Run a model in onnx's reference implementation."""
    return np.asarray(ReferenceEvaluator(model).run(None, dict(batches(1, seed)[0]))[0])


def traced(model: ModelProto) -> tuple[ChannelGraph, dict[str, Stream]]:
    """Return a traced model, and the streams of its attention: that of queries and keys, and that of values."""
    graph = analyze(model, attention="width")
    streams = [stream for stream in find_streams(graph)[0].values() if stream.heads > 1]
    return graph, {"logits" if stream.products else "values": stream for stream in streams}


def random_bases(streams: dict[str, Stream], seed: int) -> dict[str, dict[int, str]]:
    """Return random matrices for each head of each stream."""
    rng, bases = np.random.default_rng(seed), dict[str, dict[int, str]]()
    for stream in streams.values():
        text = all_as_text(rng.standard_normal((stream.heads, stream.size, stream.size)))
        bases.setdefault(stream.key[0], {})[stream.key[1]] = text
    return bases


@given(st.integers(2, 5), st.integers(2, 6), st.sampled_from(FORMS), st.booleans(), st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_each_head_may_have_a_basis_of_its_own(heads: int, width: int, form: Form, bias: bool, seed: int) -> None:
    assume(form != "packed" or width > heads)  # else no part of a head may leave
    model = Attention(heads, width, form, bias, seed=seed).model()
    graph, streams = traced(model)
    assert streams.keys() == {"logits", "values"} - ({"values"} if form == "packed" else set())
    assert all((stream.heads, stream.size) == (heads, width) for stream in streams.values())
    for stream in streams.values():
        found = rotate(graph, random_bases({"": stream}, seed))
        assert found.weights
        np.testing.assert_allclose(run(found.proto), run(model), atol=2e-5)


@pytest.mark.parametrize("name", ["logits", "values"])
def test_the_matrices_of_heads_exchanged_on_one_side_are_another_network(name: str) -> None:
    """The negative control: the same matrices, but those of two heads change places in one weight."""
    model = Attention().model()
    graph, streams = traced(model)
    stream, bases = streams[name], random_bases({"": streams[name]}, 0)
    text = next(iter(next(iter(bases.values())).values())).split(",")
    wrong = {tensor: dict.fromkeys(axes, ",".join([text[1], text[0], *text[2:]])) for tensor, axes in bases.items()}
    right, other = ({t.name: t for t in rotate(graph, chosen).proto.graph.initializer} for chosen in (bases, wrong))
    mixed = ModelProto()
    mixed.CopyFrom(graph.proto)
    one_side = "key_w" if name == "logits" else "output_w"
    for tensor in mixed.graph.initializer:
        tensor.CopyFrom((other if tensor.name == one_side else right)[tensor.name])
    assert np.abs(run(mixed) - run(model)).max() > 1e-2
    assert one_side in {tensor for tensor, _ in stream.slots}


@pytest.mark.parametrize("form", ["packed", "split"])
def test_all_copies_of_a_weight_change_together(form: Form) -> None:
    """The negative control: queries in another basis, keys of the same weight as they were."""
    model = Attention(form=form).model()
    graph, streams = traced(model)
    bases = random_bases({"": streams["logits"]}, 0)
    found = rotate(graph, bases).proto
    assert np.abs(run(found) - run(model)).max() < 2e-5
    (old,), (new,) = ([t for t in proto.graph.initializer if t.name == "packed_w"] for proto in (model, found))
    mixed = to_array(new).copy()
    mixed[:, 12:24] = to_array(old)[:, 12:24]
    new.CopyFrom(from_array(mixed, new.name))
    assert np.abs(run(found) - run(model)).max() > 1e-2


@pytest.mark.parametrize(("form", "rank"), [("packed", 1), ("split", 2)])
def test_from_one_weight_what_has_few_dimensions_leaves_for_nothing(form: Form, rank: int) -> None:
    """Heads of six, of which queries and keys need two of each, values two; or all three one each."""
    model, errors = Attention(heads=3, width=6, form=form, rank=rank).model(), {}
    expected = run(model)
    for axes in (("channels", "basis"), ("channels",)):
        analysis = op.analyze(model, attention="width")
        plan = op.plan(analysis, axes=axes, ratio_for=[("packed", 1 / 3)], data=lambda: batches())
        assert bool(plan.bases) == ("basis" in axes)
        small = op.prune(model, PrunePlan.from_json(plan.to_json()))
        (left,) = (t.dims[-1] for t in small.proto.graph.initializer if t.name == "packed_w")
        assert left == 36
        errors[axes] = float(np.abs(run(small.proto) - expected).max() / np.abs(expected).max())
    assert errors["channels", "basis"] < 0.02
    assert errors["channels",] > 0.1


def test_whole_heads_keep_their_basis() -> None:
    """Where whole heads leave, what is within them is no group."""
    assert not [s for s in find_streams(analyze(Attention().model()))[0].values() if s.heads > 1]


def mixing_heads() -> Net:
    """Return an attention whose heads are mixed before they are joined."""
    net = Net()
    x = net.op("Tanh", net.input((2, STEPS, 12), "x"))
    q, k, v = (net.reshape(net.linear(x, 12, name=n), (2, STEPS, 3, 4)) for n in ("query", "key", "value"))
    q, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1]))), v)
    mixed = net.op("Einsum", net.weight(3, 3), mixed, equation="gh,bhsd->bsgd", name="mix")
    net.output(net.op("Tanh", net.linear(net.reshape(mixed, (2, STEPS, 12)), 5)))
    return net


def fused() -> Net:
    """Return an attention as one operator."""
    net = Net()
    x = net.op("Tanh", net.input((2, STEPS, 12), "x"))
    q, k, v = (net.linear(x, 12, name=n) for n in ("query", "key", "value"))
    attended = net.op("com.microsoft:MultiHeadAttention", q, k, v, num_heads=3)
    net.output(net.op("Tanh", net.linear(attended, 5)))
    return net


@pytest.mark.parametrize(
    ("model", "node", "words"),
    [
        (mixing_heads().model(), "value", "mix"),
        (fused().model(), "value", "in one operator"),
        (fused().model(), "query", "in one operator"),
    ],
)
def test_what_mixes_heads_or_hides_them_fixes_the_basis(model: ModelProto, node: str, words: str) -> None:
    graph = analyze(model, attention="width")
    streams, fixed = find_streams(graph)
    group = next(g for g in graph.groups if node in g.producers and g.width > 1)
    assert group.index not in streams
    assert words in str(fixed[group.index])


@pytest.mark.parametrize("form", ["matmul", pytest.param("einsum", marks=pytest.mark.slow)])
def test_what_a_head_has_few_dimensions_of_leaves_for_nothing(form: Form) -> None:
    """Values of two dimensions in heads of six, and queries and keys of two others each, without repair."""
    model, errors = Attention(heads=3, width=6, form=form, rank=2).model(), {}
    expected = run(model)
    for axes in (("channels", "basis"), ("channels",)):
        analysis = op.analyze(model, attention="width")
        shares = [("query", 1 / 3), ("value", 2 / 3)]
        plan = op.plan(analysis, axes=axes, ratio_for=shares, data=lambda: batches())
        assert bool(plan.bases) == ("basis" in axes)
        plan = PrunePlan.from_json(plan.to_json())
        small = op.prune(model, plan)
        assert [link.what for link in small.links] == ["change of basis"] * ("basis" in axes)
        errors[axes] = float(np.abs(run(small.proto) - expected).max() / np.abs(expected).max())
    assert errors["channels", "basis"] < 0.01
    assert errors["channels",] > 0.1


def test_directions_of_logits_are_those_of_both_sides() -> None:
    """Queries have nothing of one direction, keys nothing of another: neither has logits."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    left, right = (basis @ np.diag(sizes) @ basis.T for sizes in ([4.0, 2, 0, 1e-3], [3.0, 1, 1e-3, 0]))
    found = common_directions(left[None], right[None])[0]
    np.testing.assert_allclose(np.abs(basis[:, :2].T @ found[:, :2]), np.eye(2), atol=1e-6)


def test_scores_are_the_variance_that_leaves() -> None:
    """Against independent queries and keys, drawn."""
    rng = np.random.default_rng(0)
    mixes = rng.standard_normal((2, 3, 5, 5)) * np.array([1, 0.5, 2, 0.1, 1])
    queries, keys = (np.einsum("nhd,hde->nhe", rng.standard_normal((4000, 3, 5)), mix) for mix in mixes)
    moments = ProductMoments(np.arange(5), *(np.einsum("nhd,nhe->hde", x, x) for x in (queries, keys)))
    scores = moments.scores(np.arange(5))
    order, whole = np.argsort(scores), (np.einsum("nhd,nhd->nh", queries, keys) ** 2).sum()
    first, worst = order[0], order[-1]
    lost = ((queries[..., first] * keys[..., first]) ** 2).sum() / whole
    assert scores[first] == pytest.approx(lost, rel=0.1)
    assert lost < ((queries[..., worst] * keys[..., worst]) ** 2).sum() / whole


def test_data_choose_a_matrix_for_each_head() -> None:
    graph, streams = traced(Attention().model())
    bases = choose_bases(graph, lambda: batches())
    for stream in streams.values():
        matrices = all_from_text(bases[stream.key[0]][stream.key[1]])
        assert matrices.shape == (3, 4, 4)
        assert np.abs(matrices[0] - matrices[1]).max() > 0.1


def test_bases_of_other_heads_are_refused() -> None:
    graph, streams = traced(Attention().model())
    tensor, axis = streams["values"].key

    def with_text(text: str) -> Any:
        return rotate(graph, {tensor: {axis: text}})

    with pytest.raises(PlanError, match="bases of 1 heads for a group of 3"):
        with_text(as_text(np.eye(4)))
    with pytest.raises(PlanError, match="a basis of 3 channels for a group of 4"):
        with_text(all_as_text(np.stack([np.eye(3)] * 3)))
    with pytest.raises(PlanError, match="holds no basis"):
        with_text(",".join([as_text(np.eye(4)), as_text(np.eye(3)), as_text(np.eye(4))]))

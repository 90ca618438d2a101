"""Channel shuffles become Gathers: those and nothing else, at whatever sizes, and the model computes the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxprune.normalize import normalize
from tests.toolbox import Net, analyze, assert_proved, largest_difference, removal, run_once


def shuffled(
    split: Sequence[int],
    perm: Sequence[int],
    merged: Sequence[int],
    *,
    shape: Sequence[int] = (2, 12, 5, 4),
    symbols: dict[int, str] | None = None,
) -> ModelProto:
    """Split an axis, transpose, merge again."""
    net = Net()
    x = net.op("Relu", net.input(shape))
    y = net.op("Transpose", net.reshape(x, split), perm=perm)
    net.output(net.op("Relu", net.reshape(y, merged)), symbols)
    model = net.model()
    for axis, name in (symbols or {}).items():
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


def gathers(model: ModelProto) -> list[tuple[int, list[int]]]:
    """Check that normalizing keeps what a model computes; return axes and positions of its Gathers."""
    result = normalize(model)
    onnx.checker.check_model(result, full_check=True)
    sizes = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    inputs = {"input0": np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
    assert largest_difference(run_once(model, inputs), run_once(result, inputs)) == 0
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in result.graph.initializer}
    nodes = [n for n in result.graph.node if n.op_type == "Gather"]
    return [(n.attribute[0].i, values[n.input[1]]) for n in nodes]


THREES = np.arange(12).reshape(3, 4).T.ravel().tolist()


def test_a_shuffle_is_found() -> None:
    assert gathers(shuffled([2, 3, 4, 5, 4], [0, 2, 1, 3, 4], [2, 12, 5, 4])) == [(1, THREES)]
    assert gathers(shuffled([0, 3, 4, 5, -1], [0, 2, 1, 3, 4], [0, -1, 5, 4])) == [(1, THREES)]


def test_channels_last_and_one_dimension() -> None:
    shape = (2, 5, 4, 12)
    assert gathers(shuffled([2, 5, 4, 3, 4], [0, 1, 2, 4, 3], shape, shape=shape)) == [(3, THREES)]
    assert gathers(shuffled([2, 3, 4, 7], [0, 2, 1, 3], [2, 12, 7], shape=(2, 12, 7))) == [(1, THREES)]


def test_sizes_that_are_only_known_at_run_time() -> None:
    model = shuffled([0, 3, 4, 5, 4], [0, 2, 1, 3, 4], [0, 12, 5, 4], symbols={0: "batch"})
    assert gathers(model) == [(1, THREES)]


@pytest.mark.parametrize(
    "model",
    [
        shuffled([2, 3, 4, 5, 4], [0, 2, 1, 3, 4], [2, 4, 15, 4]),  # merges another axis
        shuffled([2, 3, 4, 5, 4], [0, 2, 1, 4, 3], [2, 12, 4, 5]),  # transposes the image as well
        shuffled([2, 12, 4, 5], [0, 1, 3, 2], [2, 12, 5, 4]),  # mixes positions of two axes
        shuffled([2, 3, 4, 5, 4], [1, 0, 2, 3, 4], [2, 12, 5, 4]),  # mixes images of a batch with channels
        shuffled([2, 3, 4, 5, 4], [0, 1, 2, 3, 4], [2, 12, 5, 4]),  # does nothing
    ],
    ids=["merges", "transposes", "mixes", "batch", "nothing"],
)
def test_other_movements_are_none(model: ModelProto) -> None:
    assert gathers(model) == []


def test_an_accident_of_the_batch_size_is_none() -> None:
    """With one image it is a shuffle; with two, channels of different images change places."""
    target = [-1, 4, 5, 4]
    model = shuffled(target, [1, 0, 2, 3], [-1, 12, 5, 4], symbols={0: "batch"})
    assert gathers(model) == []


def test_inner_results_that_others_read_stay() -> None:
    net = Net()
    x = net.op("Relu", net.input((2, 12, 5, 4)))
    y = net.reshape(x, [2, 3, 4, 5, 4])
    net.output(net.op("Relu", net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), [2, 12, 5, 4])))
    net.output(net.op("Relu", y))
    assert gathers(net.model()) == []


def test_every_channel_leaves_by_itself() -> None:
    """Two shuffles in a row and a split between them: no channel is coupled to any other."""
    net = Net()
    x = net.conv(net.input((1, 3, 4, 4)), 12, name="first")
    for name in ("second", "third"):
        x = net.reshape(net.op("Transpose", net.reshape(x, [1, 2, 6, 4, 4]), perm=[0, 2, 1, 3, 4]), [1, 12, 4, 4])
        left, right = net.split(x, [6, 6], 1)
        x = net.op("Concat", left, net.conv(net.op("LeakyRelu", right), 6, name=name), axis=1)
    net.output(net.conv(x, 2, name="last"))
    graph = analyze(net.model())
    units = graph.unit_of[graph.slots["first_w", 0]]
    assert len(set(units.tolist())) == 12
    assert not graph.pinned[units].any()
    assert all(g.width == 1 for g in graph.groups)
    for seed in range(4):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))

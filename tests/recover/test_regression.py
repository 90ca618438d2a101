"""What layers are aimed at: in an unpruned network, exactly what they put out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from onnxprune.normalize import normalize
from onnxprune.recover.layers import find_layers
from onnxprune.recover.regression import LayerIndex, RegressionTarget, target_of
from onnxprune.shapes import concretize
from tests.toolbox import Net, run_once


def targets(net: Net, output: str) -> tuple[ModelProto, dict[str, RegressionTarget]]:
    """Return a net as it is normalized, and the targets of its layers by name."""
    net.output(output)
    model = normalize(net.model())
    layers = find_layers(model)
    index = LayerIndex(model, {layer.node.name: i for i, layer in enumerate(layers)}, concretize(model).shapes)
    return model, {layer.node.name: target_of(layer, i, index) for i, layer in enumerate(layers)}


def every_tensor(model: ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    full = ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.extend(ValueInfoProto(name=o) for n in model.graph.node for o in n.output)
    return {**inputs, **run_once(full, inputs)}


def check(net: Net, output: str, expected: dict[str, tuple[str, str | None]]) -> None:
    """Compare targets with ``{layer: (tensor, other)}``, and their values with what the layers put out."""
    model, found = targets(net, output)
    rng = np.random.default_rng(0)
    inputs = {i.name: rng.standard_normal(net.shape(i.name)).astype(np.float32) for i in net.inputs}
    run = every_tensor(model, inputs)
    for layer in find_layers(model):
        target = found[layer.node.name]
        shape = [1] * run[layer.y].ndim
        shape[-1 if layer.channels_last else 1] = -1
        shift, scale = (np.reshape(v, shape if v.size > 1 else ()) for v in (target.shift, target.scale))
        aimed = run[target.tensor] - (run[target.other] if target.other else 0) - shift
        assert aimed.shape == run[layer.y].shape
        np.testing.assert_allclose(aimed / scale, run[layer.y], atol=1e-3)
        if target.other:  # the control: without its terms the target is something else
            assert not np.allclose(run[target.tensor], run[layer.y], atol=0.1)
    assert {name: (t.tensor, t.other) for name, t in found.items()} == expected


def start() -> tuple[Net, str]:
    net = Net()
    return net, net.conv(net.input((2, 3, 5, 5), "x"), 4, name="stem")


def batch_norm(net: Net, x: str, name: str = "bn") -> str:
    """Add a normalization that does something, with an epsilon that counts."""
    channels = net.shape(x)[1]
    positive = [net.between(0.5, 1.5, channels), net.weight(channels), net.weight(channels)]
    return net.op("BatchNormalization", x, *positive, net.between(0.5, 1.5, channels), name=name, epsilon=0.1)


STEM = {"stem": ("stem_out0", None)}


def test_a_chain_is_aimed_at_itself() -> None:
    net, x = start()
    x = net.conv(batch_norm(net, net.op("Relu", x)), 4, 3, name="second")
    check(net, net.op("Relu", x), {**STEM, "second": ("second_out0", None)})


@pytest.mark.parametrize("first", [True, False])
def test_a_skip_connection(first: bool) -> None:
    net, x = start()
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    total = net.op("Add", *((x, y) if first else (y, x)), name="sum")
    check(net, total, {**STEM, "branch": ("sum_out0", "stem_out0")})


def test_a_normalization_before_the_sum() -> None:
    net, x = start()
    y = batch_norm(net, net.conv(net.op("Relu", x), 4, 3, name="branch", bias=False))
    check(net, net.op("Add", x, y, name="sum"), {**STEM, "branch": ("sum_out0", "stem_out0")})


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1), (1,), ()])
@pytest.mark.parametrize("first", [True, False])
def test_constants_are_added_before_and_after_a_normalization(shape: tuple[int, ...], first: bool) -> None:
    net, x = start()
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    before, after = net.weight(*shape), net.weight(*shape)
    y = net.op("Add", before, y) if first else net.op("Add", y, before)
    y = net.op("Identity", net.op("Add", batch_norm(net, y), after))
    check(net, net.op("Add", x, y, name="sum"), {**STEM, "branch": ("sum_out0", "stem_out0")})


def test_of_two_branches_the_last_layer_makes_up_for_both() -> None:
    for order in ("first", "second"):
        net, x = start()
        x = net.op("Relu", x)
        a = net.conv(x, 4, 3, name="first")
        b = net.conv(x, 4, 1, name="second")
        total = net.op("Add", *((a, b) if order == "first" else (b, a)), name="sum")
        expected = {"first": ("first_out0", None), "second": ("sum_out0", "first_out0")}
        check(net, total, {**STEM, **expected})


def test_of_a_long_and_a_short_branch_the_one_that_ends_last() -> None:
    net, x = start()
    x = net.op("Relu", x)
    a = net.conv(x, 6, 3, name="long1")
    short = net.conv(x, 4, 1, name="short")
    long = net.conv(net.op("Relu", a), 4, 3, name="long2")
    total = net.op("Add", batch_norm(net, short, "bn_short"), batch_norm(net, long, "bn_long"), name="sum")
    own = {n: (f"{n}_out0", None) for n in ("long1", "short")}
    check(net, total, {**STEM, **own, "long2": ("sum_out0", "bn_short_out0")})


def test_the_nearest_sum_is_the_target() -> None:
    net, x = start()
    x = net.op("Relu", x)
    a, b, c = (net.conv(x, 4, name=name) for name in "abc")
    total = net.op("Add", net.op("Add", a, b, name="inner"), c, name="outer")
    check(net, total, {**STEM, "a": ("a_out0", None), "b": ("inner_out0", "a_out0"), "c": ("outer_out0", "inner_out0")})


def test_sequences_with_a_bias_that_is_added() -> None:
    net = Net()
    x = net.input((2, 5, 4), "x")
    h = net.linear(net.op("Relu", net.linear(x, 6, name="up")), 4, name="down")
    total = net.op("Add", net.op("Add", net.weight(4), h), x, name="sum")
    check(net, total, {"up": ("up_out0", None), "down": ("sum_out0", "x")})


def test_a_tensor_that_others_see_is_a_target_by_itself() -> None:
    for seen in ("output", "reader"):
        net, x = start()
        y = net.conv(net.op("Relu", x), 4, 3, name="branch")
        total = net.op("Add", x, y, name="sum")
        if seen == "output":
            net.output(y)
        else:
            total = net.op("Mul", total, net.op("Sigmoid", y))
        check(net, total, {**STEM, "branch": ("branch_out0", None)})


def test_a_sum_behind_anything_else_is_no_target() -> None:
    net, x = start()
    y = net.op("Relu", net.conv(net.op("Relu", x), 4, 3, name="branch"))
    check(net, net.op("Add", x, y), {**STEM, "branch": ("branch_out0", None)})
    net, x = start()
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    check(net, net.op("Add", y, y), {**STEM, "branch": ("branch_out0", None)})


def test_a_normalization_that_kills_a_channel_cannot_be_undone() -> None:
    net, x = start()
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    gamma = net.const(np.array([1.0, 0.0, 1.0, 1.0], np.float32))
    rest = [net.weight(4), net.weight(4), net.between(0.5, 1.5, 4)]
    y = net.op("BatchNormalization", y, gamma, *rest)
    check(net, net.op("Add", x, y), {**STEM, "branch": ("branch_out0", None)})


# What is added has another shape, or is added along another axis


def test_a_constant_along_another_axis() -> None:
    """Its size is that of the channels, by chance."""
    for shape in ((4,), (1, 1, 4, 1), (2, 4, 1, 4), (4, 4)):
        net = Net()
        x = net.conv(net.input((2, 3, 4, 4), "x"), 4, name="stem")
        y = net.conv(net.op("Relu", x), 4, 3, name="branch")
        total = net.op("Add", x, net.op("Add", y, net.weight(*shape)))
        check(net, total, {**STEM, "branch": ("branch_out0", None)})


def test_a_constant_along_the_rows_of_a_sequence() -> None:
    net = Net()
    x = net.input((2, 4, 4), "x")
    y = net.op("Add", net.linear(x, 4, name="layer"), net.weight(4, 1))
    check(net, net.op("Add", y, x), {"layer": ("layer_out0", None)})


def test_a_gate_that_is_spread_over_the_map() -> None:
    """The sum has more positions than the layer's output; no row of features goes with each."""
    net, x = start()
    gate = net.conv(net.op("GlobalAveragePool", x), 4, name="gate")
    check(net, net.op("Add", x, gate), {**STEM, "gate": ("gate_out0", None)})


def test_a_branch_that_is_spread_over_the_layers_output() -> None:
    net, x = start()
    pooled = net.op("GlobalAveragePool", x)
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    check(net, net.op("Add", pooled, y), {**STEM, "branch": ("branch_out0", None)})


def test_a_normalization_with_computed_parameters() -> None:
    net, x = start()
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    gamma = net.op("Exp", net.weight(4))
    y = net.op("BatchNormalization", y, gamma, net.weight(4), net.weight(4), net.between(0.5, 1.5, 4))
    check(net, net.op("Add", x, y), {**STEM, "branch": ("branch_out0", None)})


def test_a_normalization_with_moments_for_every_position() -> None:
    net = Net(7)
    x = net.conv(net.input((2, 3, 5, 5), "x"), 4, name="stem")
    y = net.conv(net.op("Relu", x), 4, 3, name="branch")
    own = [net.between(0.5, 1.5, 4, 5, 5) for _ in range(4)]
    y = net.op("BatchNormalization", y, *own, spatial=0)
    check(net, net.op("Add", x, y), {**STEM, "branch": ("branch_out0", None)})

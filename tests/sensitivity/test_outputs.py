"""The error of outputs, against a computation of its own."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.model.tensors import set_tensor, weights
from onnxprune.recover import repeat
from onnxprune.sensitivity import OutputError
from onnxprune.trace.outputs import followed, unsquashed
from tests.sensitivity.support import batches, digits, images
from tests.toolbox import Net, run_once


def changed(factor: float) -> tuple[ModelProto, int]:
    """Scale the last layer's weight; also tell that layer's position."""
    model = ModelProto()
    model.CopyFrom(digits().graph.proto)
    position = len(model.graph.node) - 1
    tensor = weights(model).tensor(model.graph.node[position].input[1])
    set_tensor(tensor, numpy_helper.to_array(tensor) * np.float32(factor))
    return model, position


def test_it_is_the_squared_error_relative_to_the_variance() -> None:
    error = OutputError(digits().graph.proto, batches())
    model, position = changed(1.1)
    a, b = (run_once(m, {"image": images()[::2]})["logits"].astype(np.float64) for m in (model, digits().graph.proto))
    expected = ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum()
    assert error(model) == pytest.approx(expected, rel=1e-4)
    assert error(model, since=position) == pytest.approx(expected, rel=1e-4)  # run from the changed layer on
    assert error(digits().graph.proto, since=position) == pytest.approx(0, abs=1e-9)
    assert error(changed(1.2)[0], since=position) == pytest.approx(4 * expected, rel=1e-3)


def test_what_is_not_finite_is_infinitely_wrong() -> None:
    assert OutputError(digits().graph.proto, batches())(changed(float("nan"))[0]) == float("inf")


def test_what_goes_into_a_softmax_tells_more_than_what_comes_out() -> None:
    net = Net()
    scores = net.linear(net.input([2, 4], "x"), 3)
    net.output(net.reshape(net.op("Softmax", scores), [2, 3, 1]))
    net.output(net.op("Relu", scores))
    model = net.model()
    assert unsquashed(model, followed(model).tensors) == [scores, model.graph.output[1].name]


def test_an_output_that_never_varies_is_no_measure() -> None:
    net = Net()
    x = net.input([2, 4], "x")
    net.output(net.op("Mul", x, net.const(np.zeros(4, np.float32))))
    with pytest.raises(UsageError) as caught:
        OutputError(net.model(), repeat([{"x": np.ones((2, 4), np.float32)}]))
    assert caught.value.code == "OP604"


def test_of_large_outputs_a_part_tells_enough() -> None:
    rng = np.random.default_rng(0)
    batch = {"x": rng.standard_normal((2, 200_000)).astype(np.float32)}

    def scaled(factor: float) -> ModelProto:
        net = Net()
        net.output(net.op("Mul", net.input([2, 200_000], "x"), net.const(np.float32(factor))))
        return net.model()

    tracemalloc.start()
    error = OutputError(scaled(1.0), repeat([batch] * 40))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * batch["x"].nbytes  # of the forty
    assert error(scaled(1.0)) == 0
    assert error(scaled(1.5)) == pytest.approx(0.25, rel=0.02)

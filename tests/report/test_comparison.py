"""Models held against each other without a plan."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.planning.plan import PrunePlan
from onnxprune.rewrite.comparison import Port, check_origin, compare_outputs, inputs_of, interface_changes, outputs_of
from tests.report.network import network


def scaled(factor: float) -> ModelProto:
    """y = factor * x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    weight = numpy_helper.from_array(np.full(4, factor, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = {"x": np.array([[1, -2, 3, 4]], np.float32)}


@pytest.mark.parametrize(
    ("factor", "difference", "cosine"), [(1, 0, 1), (0.5, 0.5, 1), (-1, 2, -1), (0, 1, None), (3, 2, 1)]
)
def test_distance(factor: float, difference: float, cosine: float | None) -> None:
    (distance,) = compare_outputs(scaled(1), scaled(factor), X)
    assert (distance.name, distance.sound) == ("y", True)
    assert distance.difference == pytest.approx(difference)
    assert distance.cosine == pytest.approx(cosine)


def test_what_is_not_finite_is_not_sound() -> None:
    (distance,) = compare_outputs(scaled(1), scaled(float("inf")), X)
    assert not distance.sound
    (distance,) = compare_outputs(scaled(float("nan")), scaled(1), X)
    assert distance.sound  # the original's own NaN is no fault of the pruned model


def test_ports() -> None:
    assert inputs_of(scaled(1)) == (Port("x", "float32", ("N", 4)),)
    assert outputs_of(scaled(1)) == (Port("y", "float32", ("N", 4)),)


def test_the_same_interface() -> None:
    assert interface_changes(network(), network()) == ()
    assert interface_changes(scaled(1), scaled(2)) == ()


def test_interface_changes() -> None:
    renamed, resized, retyped, lacking = (scaled(1) for _ in range(4))
    renamed.graph.input[0].name = "z"
    resized.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    retyped.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    del lacking.graph.output[:]
    assert interface_changes(scaled(1), renamed) == ("input 'x' became 'z'",)
    assert interface_changes(scaled(1), resized) == ("output 'y' was float32 ['N', 4] and is float32 [1, 4]",)
    assert interface_changes(scaled(1), retyped) == ("input 'x' was float32 ['N', 4] and is float64 ['N', 4]",)
    assert interface_changes(scaled(1), lacking) == ("output 'y' became none",)


def test_initializers_among_the_inputs_are_no_interface() -> None:
    listed = scaled(1)
    listed.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    assert interface_changes(listed, scaled(1)) == ()


def test_origin() -> None:
    plan = PrunePlan("0" * 64, {})
    signed = scaled(1)
    check_origin(signed, plan)
    signed.metadata_props.add(key="onnxprune.plan", value=plan.digest)
    check_origin(signed, plan)
    with pytest.raises(VerificationError, match="OP505"):
        check_origin(signed, PrunePlan(plan.model, {"w": {0: (1,)}}))

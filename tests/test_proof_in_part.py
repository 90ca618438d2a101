"""The proof where ONNX Runtime refuses the model, where rounding is amplified, and where numbers are random."""

from __future__ import annotations

import logging
import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.errors import ModelError, VerificationError
from onnxprune.model.session import run, session
from onnxprune.rewrite.arithmetic import cast_copy, run_reference
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import Verification
from onnxprune.shapes import concretize
from onnxprune.shapes.runnable import refused_nodes, runnable_part
from tests.toolbox import Net, difference

DOUBLE, BFLOAT16 = TensorProto.DOUBLE, TensorProto.BFLOAT16


def detector() -> ModelProto:
    """Return two heads that end in an operator of a TensorRT plug-in."""
    net = Net(domains={"TRT": 1})
    x = net.op("Relu", net.conv(net.input((1, 3, 8, 8), name="x"), 24, 3, name="c0"))
    boxes, scores = net.conv(x, 4, name="box"), net.conv(x, 2, name="cls")
    num, det = net.ops("TRT:EfficientNMS_TRT", boxes, scores, count=2, shapes=[(1, 1), (1, 10, 4)], name="nms")
    net.output(num)
    net.output(det)
    return net.model()


def with_island(side: int = 6) -> ModelProto:
    """Return a network with an unknown operator in the middle, whose output's shape is declared."""
    net = Net(domains={"my": 1})
    x = net.op("Relu", net.conv(net.input((1, 3, 8, 8)), 16, 3, name="c0"))
    y = net.ops("my:Unknown", net.conv(x, 4, name="c1"), count=1, shapes=[(1, 4, side, side)], name="unknown")[0]
    net.output(net.conv(net.op("Relu", net.conv(y, 16, name="c2")), 2, name="c3"))
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, (1, 4, side, side)))
    return model


def prove(model: ModelProto, *, spoil: str | None = None, **options: Any) -> Verification:
    """Prune a model by half and prove it, after a change of one weight if one is named."""
    analysis = op.analyze(model)
    kept = op.apply_plan(analysis.graph, op.plan(analysis, ratio=0.5))
    pruned = rewrite(kept)
    if spoil is not None:
        tensor = next(t for t in pruned.graph.initializer if t.name == spoil)
        array = np.array(numpy_helper.to_array(tensor))
        array.flat[0] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return op.prove(kept, pruned, **options)


def test_an_unknown_tail_is_cut_off_and_the_part_in_front_is_proved() -> None:
    found = prove(detector())
    assert found.passed
    assert found.informative
    assert [(n.node, n.operator) for n in found.unproved] == [("nms", "TRT:EfficientNMS_TRT")]
    assert [o.name for o in found.outputs] == ["box_out0", "cls_out0"]


def test_a_wrong_weight_in_front_of_an_unknown_tail_is_found() -> None:
    assert not prove(detector(), spoil="cls_w").passed


def test_what_is_behind_an_unknown_operator_is_proved_on_generated_values() -> None:
    found = prove(with_island())
    assert found.passed
    assert {o.name for o in found.outputs} == {"c1_out0", "c3_out0"}
    assert all(o.change > found.tolerance for o in found.outputs)
    assert [n.node for n in found.unproved] == ["unknown"]


@pytest.mark.parametrize("weight", ["c0_w", "c3_w"])
def test_a_wrong_weight_on_either_side_of_an_unknown_operator_is_found(weight: str) -> None:
    assert not prove(with_island(), spoil=weight).passed


def test_without_a_shape_what_is_behind_an_unknown_operator_is_left_out_and_named() -> None:
    model = with_island()
    del model.graph.value_info[:]
    found = prove(model)
    assert found.passed
    assert {o.name for o in found.outputs} == {"c1_out0"}
    assert {"unknown", "c3"} <= {n.node for n in found.unproved}
    assert "isn't computed" in found.unproved[-1].cause


def test_nothing_is_refused_of_a_model_that_runs() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 8, 3)
    net.output(net.op("Mul", x, x))  # reads one tensor twice
    model = net.model()
    assert refused_nodes(model, concretize(model)) == {}
    assert runnable_part(model, concretize(model)) is None


def test_a_model_that_fails_for_another_reason_keeps_its_error() -> None:
    net = Net()
    net.output(net.conv(net.op("Relu", net.conv(net.input((1, 3, 8, 8)), 8, 3)), 4, name="last"))
    analysis = op.analyze(net.model())
    kept = op.apply_plan(analysis.graph, op.plan(analysis, ratio=0.5))
    wrong = {"input0": np.zeros((1, 2, 8, 8), np.float32)}
    with pytest.raises(ModelError, match="can't run"):
        op.prove(kept, rewrite(kept), inputs=wrong)


@pytest.mark.parametrize(("element", "word"), [(DOUBLE, "double"), (BFLOAT16, "bfloat16")])
def test_types_that_the_cpu_lacks_are_proved_on_float32_copies(element: int, word: str) -> None:
    model = narrow_types(element)
    found = prove(model)
    assert found.passed
    assert (found.arithmetic, found.tolerance, found.unproved) == ("float32", 1e-4, ())
    assert word in found.notes[0]


def test_a_wrong_double_weight_is_found() -> None:
    assert not prove(narrow_types(DOUBLE), spoil="last_w").passed


def narrow_types(element: int) -> ModelProto:
    net = Net(22)
    net.output(net.conv(net.op("Relu", net.conv(net.input((1, 3, 8, 8)), 16, 3, name="first")), 4, name="last"))
    model = cast_copy(net.model(), element)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(ModelError):
        session(model)
    return model


def test_a_cast_copy_computes_the_same_in_float64() -> None:
    """Against ONNX Runtime, whose float32 results must be those of the reference in float64, up to rounding."""
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 8, 8), name="x"), 8, 3))
    net.output(net.op("ReduceMean", net.op("Cast", net.op("Cast", x, to=TensorProto.FLOAT16), to=1), axes=[2, 3]))
    model, inputs = net.model(), {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8))}
    (exact,) = run_reference(cast_copy(model, DOUBLE), inputs).values()
    (found,) = run(session(model), {"x": inputs["x"].astype(np.float32)}).values()
    assert exact.dtype == np.float64
    assert 1e-7 < difference(found, exact) < 1e-2  # the model rounds to float16, the copy doesn't


def amplifier(scale: float) -> ModelProto:
    """Return a network whose last operator turns rounding into anything."""
    net = Net()
    x = net.op("Tanh", net.op("MatMul", net.input((1, 300)), net.weight(300, 700, name="w0", fan_in=300)))
    x = net.op("MatMul", x, net.weight(700, 40, name="w1", fan_in=700))
    net.output(net.op("Sin", net.op("Mul", x, net.const(scale))))
    return net.model()


@pytest.mark.parametrize("scale", [1e5, 1e8])
def test_float64_decides_where_the_model_amplifies_rounding(scale: float) -> None:
    found = prove(amplifier(scale))
    assert found.passed
    assert found.arithmetic == "float64"
    assert found.error < 1e-6
    assert "amplifies rounding" in found.notes[-1]


def test_float64_refuses_a_wrong_weight_whatever_rounding_does() -> None:
    found = prove(amplifier(1e5), spoil="w1")
    assert not found.passed
    assert "In float64 they differ as well" in found.notes[-1]


def test_a_plain_difference_isnt_excused_by_float64() -> None:
    found = prove(amplifier(1.0), spoil="w1")
    assert (found.passed, found.arithmetic) == (False, "stored")


def sampling() -> ModelProto:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 16, 3, name="first")
    x = net.ops("Dropout", x, net.const(0.3), net.const(np.array(True)), count=2, name="drop")[0]
    x = net.conv(x, 4, name="last")
    net.output(net.op("Add", x, net.op("RandomNormalLike", x, name="noise")))
    return net.model()


def test_random_numbers_are_the_same_in_both_models() -> None:
    model = sampling()
    opened = session(model)
    feeds = {"input0": np.ones((1, 3, 8, 8), np.float32)}
    first, second = (next(iter(run(opened, feeds).values())) for _ in range(2))
    assert difference(first, second) > 0.1
    found = prove(model)
    assert found.passed
    assert found.informative
    assert 'Dropout "drop"' in found.notes[0]
    assert 'RandomNormalLike "noise"' in found.notes[0]


def test_a_wrong_weight_beside_random_numbers_is_found() -> None:
    assert not prove(sampling(), spoil="last_w").passed


def test_statistics_of_whole_weights_are_named() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 8, 8), name="x"), 16, 3, name="first"))
    weight = net.weight(4, 16, 1, 1, name="w", fan_in=16)
    centered = net.op("Sub", weight, net.op("ReduceMean", weight, axes=[1], keepdims=1, name="mean"))
    net.output(net.op("Conv", x, centered))
    found = prove(net.model())
    assert found.passed
    assert found.notes == ("Statistics of pruned weights (mean_out0) are those of the whole weights, in both models.",)


def test_an_error_of_the_proof_says_what_float64_says() -> None:
    analysis = op.analyze(amplifier(1.0))
    with pytest.raises(VerificationError) as caught:
        op.prune(analysis, op.plan(analysis, ratio=0.5), tolerance=0.0)
    assert "float64" in str(caught.value.hint)


def test_data_are_run_through_the_part_in_front(caplog: pytest.LogCaptureFixture) -> None:
    """The repaired heads are those of a model that ends there from the start."""
    inputs = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    model = detector()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.node[-1], alone.graph.output[:]
    alone.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in ("box_out0", "cls_out0"))
    batches = [{"x": inputs["x"][i : i + 8]} for i in range(0, 64, 8)]
    with caplog.at_level(logging.WARNING, "onnxprune"):
        found, expected = (op.prune_model(m, ratio=0.5, data=lambda: iter(batches)) for m in (model, alone))
    assert "data are run through the part in front, up to box_out0, cls_out0" in caplog.text
    assert [r.node for r in found.repairs] == [r.node for r in expected.repairs] == ["box", "cls"]
    for name in ("box_w", "cls_w"):
        a, b = (
            next(numpy_helper.to_array(t) for t in s.model.proto.graph.initializer if t.name == name)
            for s in (found, expected)
        )
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_is_fed_in_place_of_an_unknown_operator_is_bounded() -> None:
    """2^32 numbers would be drawn for its output: the proof says so, and allocates nothing."""
    assert prove(with_island()).passed
    tracemalloc.start()
    with pytest.raises(ModelError) as caught:
        prove(with_island(2**15))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "OP127" and "4.3e+09 elements" in caught.value.cause and peak < 2**26

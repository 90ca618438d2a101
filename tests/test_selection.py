"""Outputs whose length depends on values, several heads, maps and sequences: what is compared, and that it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import onnxprune as op
from onnxprune.data import open_data
from onnxprune.data.batch import Batch
from onnxprune.evaluation import evaluate
from onnxprune.evaluation.runner import Runner
from onnxprune.model.values import as_array
from onnxprune.rewrite.comparison import compare_outputs
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.verify import Verification, difference, verify
from onnxprune.sensitivity import OutputError
from onnxprune.settings.planning import PlanSettings
from onnxprune.settings.training import TrainSettings
from onnxprune.trace.outputs import followed, unsquashed
from onnxprune.train import finetune
from onnxprune.workflow.max_drop import prune_within
from tests.toolbox import run_once

INT = TensorProto.INT64


def _model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[object]], outputs: list[onnx.ValueInfoProto], **weights: object
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _floats(name: str, *shape: object) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _normal(*shape: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(shape).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return drawn.astype(np.float32)


def detector(threshold: float = 0.5, batch: object = 1) -> ModelProto:
    """Boxes and scores from a trunk of 24 channels, then NonMaxSuppression."""
    node = helper.make_node
    y, x = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    nodes = [
        node("Conv", ["images", "w0"], ["c0"], name="stem", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["f"], name="relu"),
        node("Conv", ["f", "w1"], ["b0"], name="box"),
        node("Conv", ["f", "w2"], ["s0"], name="cls"),
        node("Sigmoid", ["s0"], ["s1"], name="sig"),
        node("Reshape", ["b0", "rb"], ["b1"], name="rb_"),
        node("Transpose", ["b1"], ["b2"], name="tb", perm=[0, 2, 1]),
        node("Exp", ["b2"], ["b3"], name="exp"),
        node("Concat", ["grid", "b3"], ["boxes"], name="cat", axis=2),
        node("Reshape", ["s1", "rs"], ["scores"], name="rs_"),
        node("NonMaxSuppression", ["boxes", "scores", "mx", "iou", "thr"], ["sel"], name="nms", center_point_box=1),
        node("Gather", ["sel", "two"], ["i"], name="pick", axis=1),
        node("Gather", ["boxes", "i"], ["det"], name="take", axis=1),
    ]
    return _model(
        nodes,
        {"images": [batch, 3, 16, 16]},
        [_floats("det", 1, "n", 4), helper.make_tensor_value_info("sel", INT, ["n", 3])],
        w0=_normal(24, 3, 3, 3),
        w1=_normal(2, 24, 1, 1),
        w2=_normal(1, 24, 1, 1),
        rb=np.array([1, 2, 64]),
        rs=np.array([1, 1, 64]),
        grid=np.stack([x, y], -1).reshape(1, 64, 2).astype(np.float32),
        mx=np.array([50]),
        iou=np.array([0.4], np.float32),
        thr=np.array([threshold], np.float32),
        two=np.array(2),
    )


def heads(first: str, half: bool = False, moved: bool = False, swapped: bool = False) -> ModelProto:
    """Two heads on a trunk; the first ends in a squashing operator, perhaps with movement after it."""
    node = helper.make_node
    attributes = {} if first == "Sigmoid" else {"axis": 1}
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], name="stem", pads=[1] * 4),
        node("Relu", ["c0"], ["f"], name="relu0"),
        node("Conv", ["f", "w1"], ["c1"], name="hidden1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["logits"], name="out1"),
        node(first, ["logits"], ["p" if moved else "a"], name="squash", **attributes),
        *([node("Transpose", ["p"], ["t"], name="t", perm=[0, 2, 3, 1])] if moved else []),
        *([node("Cast", ["t"], ["a"], name="cast", to=TensorProto.FLOAT)] if moved else []),
        node("Conv", ["f", "w3"], ["c3"], name="hidden2", pads=[1] * 4),
        node("Relu", ["c3"], ["r3"], name="relu3"),
        node("Conv", ["r3", "w4"], ["b"], name="out2"),
    ]
    kind = np.float16 if half else np.float32
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "w2": (3, 16, 1, 1), "w3": (16, 16, 3, 3), "w4": (4, 16, 1, 1)}
    real = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT if moved else real, [None] * 4),
        helper.make_tensor_value_info("b", real, [None] * 4),
    ]
    weights = {name: _normal(*shape).astype(kind) for name, shape in shapes.items()}
    model = _model(nodes, {"x": ["N", 3, 8, 8]}, values[::-1] if swapped else values, **weights)
    model.graph.input[0].type.tensor_type.elem_type = real
    return model


def classifier(zipped: bool = True) -> ModelProto:
    """Write a multi-layer perceptron as skl2onnx does: probabilities as a sequence of maps."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w1"], ["a"], name="fc1"),
        node("Relu", ["a"], ["r"], name="relu"),
        node("Gemm", ["r", "w2"], ["z"], name="fc2"),
        node("Softmax", ["z"], ["p"], name="sm", axis=1),
        node("ZipMap", ["p"], ["probs"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[7, 3, 5]),
    ]
    maps = helper.make_map_type_proto(INT, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("probs", helper.make_sequence_type_proto(maps))
    if not zipped:
        nodes, output = nodes[:-1], _floats("p", "N", 3)
    return _model(nodes, {"x": ["N", 8]}, [output], w1=_normal(8, 48), w2=_normal(48, 3))


def images(count: int = 12) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 3, 16, 16)).astype(np.float32)


def pruned(model: ModelProto, ratio: float = 0.4, seed: int = 0) -> op.Pruned:
    analysis = op.analyze(model)
    return op.prune(analysis, op.plan(analysis, ratio=ratio, seed=seed), seed=seed)


def with_weight(model: ModelProto, name: str, change: object) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change), name))
    return copy


def weight(model: ModelProto, name: str) -> NDArray[np.float32]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_boxes_and_scores_stand_for_what_is_selected() -> None:
    found = followed(detector())
    assert found.tensors == ("boxes", "scores")
    assert found.replaced == {"det": ("boxes", "scores"), "sel": ("boxes", "scores")}
    assert found.ragged == ("det", "sel")
    assert unsquashed(detector(), found.tensors) == ["boxes", "s0"]


def test_sizes_that_no_weight_decides_are_no_selection() -> None:
    node = helper.make_node
    nodes = [
        node("NonZero", ["x"], ["at"], name="nz"),  # of an input: equal in all versions of the model
        node("Gemm", ["x", "w"], ["y"], name="fc"),
        node("Shape", ["y"], ["s"], name="shape"),
        node("Expand", ["one", "s"], ["e"], name="expand"),
        node("Add", ["y", "e"], ["z"], name="add"),
    ]
    at = helper.make_tensor_value_info("at", INT, [2, "m"])
    model = _model(nodes, {"x": ["N", 8]}, [_floats("z", "N", 3), at], w=_normal(8, 3), one=np.ones((1, 1), np.float32))
    assert followed(model).tensors == ("z",)
    assert followed(model).replaced == {}


def test_layers_behind_a_selection_are_followed_too() -> None:
    """A speech model: durations set the length, and a decoder with weights follows."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w0"], ["d"], name="durations"),
        node("ReduceSum", ["d"], ["sum"], name="sum", keepdims=0),
        node("Abs", ["sum"], ["total"], name="abs"),
        node("Cast", ["total"], ["n"], name="cast", to=INT),
        node("Reshape", ["n", "row"], ["row_n"], name="row_"),
        node("Concat", ["row_n", "width"], ["shape"], name="shape_", axis=0),
        node("Expand", ["bias", "shape"], ["long"], name="expand"),
        node("MatMul", ["long", "w1"], ["wave"], name="decoder"),
    ]
    model = _model(
        nodes,
        {"x": [1, 8]},
        [_floats("wave", "t", 4)],
        w0=_normal(8, 8),
        w1=_normal(8, 4),
        row=np.array([1]),
        width=np.array([8]),
        bias=_normal(1, 8),
    )
    found = followed(model)
    assert set(found.tensors) == {"wave", "total"}
    assert found.replaced == {"wave": ("total",)}


@pytest.mark.parametrize("seed", range(0, 21, 4))
def test_a_detector_is_proved(seed: int) -> None:
    found = pruned(detector(), seed=seed).verification
    assert found is not None and found.passed
    assert [o.name for o in found.outputs] == ["det", "sel", "boxes", "scores"]
    assert 'at "boxes", "scores"' in found.notes[0]


@pytest.fixture
def tipping() -> tuple[op.Pruned, dict[str, NDArray[np.float32]]]:
    """A detector whose threshold is exactly the score of a box, and inputs."""
    feeds = {"images": images(1)}
    first = pruned(detector())
    shown = masked(first.kept)
    shown.graph.output.append(onnx.ValueInfoProto(name="scores"))
    scores = np.sort(run_once(shown, feeds)["scores"].ravel())
    return pruned(detector(float(scores[-1]))), feeds


def _checked(found: op.Pruned, model: ModelProto, feeds: dict[str, NDArray[np.float32]]) -> Verification:
    return verify(found.kept, model, feeds)


def test_rounding_that_changes_the_selection_is_no_wrong_rewrite(
    tipping: tuple[op.Pruned, dict[str, NDArray[np.float32]]],
) -> None:
    found, feeds = tipping
    w2, expected = weight(found.proto, "w2"), run_once(masked(found.kept), feeds)["sel"]
    factor = np.float32(1 - 3e-6 if len(expected) else 1 + 3e-6)
    shifted = with_weight(found.proto, "w2", w2 * factor)
    assert run_once(shifted, feeds)["sel"].shape != expected.shape
    verdict = _checked(found, shifted, feeds)
    assert verdict.passed
    assert any("Rounding changes what is selected" in note for note in verdict.notes)


def test_wrong_scores_and_a_wrong_pick_are_caught(tipping: tuple[op.Pruned, dict[str, NDArray[np.float32]]]) -> None:
    found, feeds = tipping
    w2 = weight(found.proto, "w2")
    assert not _checked(found, with_weight(found.proto, "w2", w2 * np.float32(1.01)), feeds).passed
    other = with_weight(pruned(detector()).proto, "two", np.array(0))  # boxes by the number of the sample
    assert not _checked(pruned(detector()), other, feeds).passed


def test_a_detector_is_judged_and_evaluated_by_what_goes_in() -> None:
    model, small = detector(), pruned(detector()).proto
    data = open_data({"images": images()}, model)
    found = evaluate(small, data, against=model, resamples=1)
    assert {s.output for s in found.scores} == {"boxes", "scores"}
    expected = []
    for image in images():
        runs = []
        for version in (model, small):
            copy = ModelProto()
            copy.CopyFrom(version)
            copy.graph.output.append(onnx.ValueInfoProto(name="boxes"))
            runs.append(run_once(copy, {"images": image[None]})["boxes"])
        expected.append(np.square(runs[0] - runs[1]).mean())
    assert found["mse"].model.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert any("in front of the selection" in note for note in found.notes)
    judge = OutputError(model, lambda: [{"images": image[None]} for image in images()])
    assert judge(model) == 0 < judge(masked(pruned(model).kept))


def test_outputs_of_several_lengths_are_filled_up() -> None:
    model = detector(batch="N")
    batch = Batch({"images": images()})
    outputs = Runner(model, ["CPUExecutionProvider"], 1, sized=followed(model).ragged)(batch)
    counts = (outputs["sel"][..., 2] >= 0).sum(axis=1)
    own = [run_once(model, {"images": image[None]}) for image in images()]
    assert counts.tolist() == [len(o["sel"]) for o in own]
    assert len(set(counts.tolist())) > 1
    assert outputs["det"].shape == (12, int(counts.max()), 4)
    np.testing.assert_allclose(outputs["det"][3, : len(own[3]["sel"])], own[3]["det"][0], rtol=1e-6)


def test_a_drop_is_measured_in_front_of_a_selection() -> None:
    analysis = op.analyze(detector())
    settings = PlanSettings(constraints=op.Constraints(round_to=1))
    found = prune_within(analysis, settings, open_data({"images": images(32)}, detector()), 0.02)
    assert found.metric == "nmse"
    measured = {s.output: s.model.value for s in found.evaluation.scores if s.metric == "nmse"}
    assert measured.keys() == {"boxes", "scores"} and all(value <= 0.02 for value in measured.values())


@pytest.mark.parametrize("first", ["Sigmoid", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("half", "moved"), [(False, False), (True, False), (False, True), (True, True)])
def test_all_heads_are_followed(first: str, swapped: bool, half: bool, moved: bool) -> None:
    analysis = op.analyze(heads(first, half, moved, swapped))
    assert set(unsquashed(analysis.graph.proto, followed(analysis.graph.proto).tensors)) == {"logits", "b"}
    x = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float16 if half else np.float32)
    data = open_data({"x": x}, analysis.graph.proto)
    settings = PlanSettings(target=op.Target("macs", 0.6), allocation="reconstruction")
    plan = op.plan(analysis, settings, data=data)
    assert op.prune(analysis, plan).verification.passed  # type: ignore[union-attr]


def test_maps_are_compared_by_value() -> None:
    small = pruned(classifier())
    found = small.verification
    assert found is not None and found.passed and 0 < found.outputs[0].change < 10
    wrong = with_weight(small.proto, "w2", weight(small.proto, "w2") * np.float32(1.01))
    x = {"x": np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)}
    assert not verify(small.kept, wrong, x).passed
    distance = compare_outputs(classifier(), small.proto, x)[0]
    plain, its = compare_outputs(classifier(zipped=False), pruned(classifier(zipped=False)).proto, x)[0], distance
    assert its.difference == pytest.approx(plain.difference, rel=1e-4)
    assert its.cosine == pytest.approx(plain.cosine, rel=1e-6)


def test_maps_are_evaluated_as_scores_by_sorted_keys() -> None:
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    labels = run_once(classifier(zipped=False), {"x": x})["p"].argmax(axis=1)
    column = np.array([2, 0, 1])  # of the classes 7, 3, 5 when sorted
    found = evaluate(classifier(), open_data({"x": x, "labels": column[labels]}, classifier()), resamples=1)
    assert found["top1"].model.value == 1.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([{"x": 1.0, "y": 2.0}], [{"y": 2.0, "x": 1.1}], 0.05),
        ([np.zeros(2), np.ones(3)], [np.zeros(2), np.array([1, 1, 1.5])], 0.5 / 1.5),
        ([np.zeros(2)], [np.zeros(3)], np.inf),
        ([{"x": 1.0}], [{"z": 1.0}], np.inf),
        ([{1: 1.0}, {1: 2.0}], [{1: 1.0}], np.inf),
        (None, None, 0.0),
        (None, np.ones(2), np.inf),
        (["a", "b"], ["a", "b"], 0.0),
        (np.array(["a"]), np.array(["b"]), np.inf),
        ({"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.nan])}, 0.0),
    ],
)
def test_differences_of_values_of_any_kind(a: object, b: object, expected: float) -> None:
    assert difference(a, b) == pytest.approx(expected)


def test_only_equal_parts_make_an_array() -> None:
    assert as_array([{"b": 1.0, "a": 2.0}, {"a": 3.0, "b": 4.0}]).tolist() == [[2, 1], [3, 4]]  # type: ignore[union-attr]
    assert as_array([np.ones(2), np.ones(3)]) is None
    assert as_array([{"a": 1.0}, {"b": 1.0}]) is None


def test_a_classifier_from_scikit_learn(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.standard_normal(300) > 0).astype(np.int64) + (x[:, 1] > 1)
    trained = network.MLPClassifier((32,), max_iter=200, random_state=0).fit(x, y)
    model = skl2onnx.to_onnx(trained, x[:1], target_opset=17)
    kinds = [value.type.WhichOneof("value") for value in model.graph.output]
    assert kinds == ["tensor_type", "sequence_type"]
    small = pruned(model)
    assert small.verification is not None and small.verification.passed
    found = evaluate(small.proto, open_data({"X": x, "labels": y}, model), against=model, resamples=1)
    assert found["top1"].original is not None
    assert found["top1"].original.value == pytest.approx(trained.score(x, y))


def test_a_detector_is_distilled_in_front_of_its_selection() -> None:
    model = detector()
    small = pruned(model).proto
    data = open_data({"images": images(48)}, model)
    found = finetune(small, data, teacher=model, settings=TrainSettings(epochs=3))
    assert found.kept == "after"
    held = {"images": np.random.default_rng(7).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    before, after = (
        {d.name: d.difference for d in compare_outputs(model, m, held) if d.name in ("boxes", "scores")}
        for m in (small, found.proto)
    )
    assert before.keys() == after.keys() == {"boxes", "scores"}
    assert all(after[name] < before[name] for name in before)


@pytest.mark.parametrize("decides", [False, True])
def test_a_loop_selects_only_if_its_condition_depends_on_weights(decides: bool) -> None:
    """A loop over all steps of a sequence has a smooth result; one that ends when a state says so has not."""
    going = "ended = Not(big) cond_out = Identity(ended)" if decides else "cond_out = Identity(cond_in)"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        recurrence (float[T, 1, 4] x) => (float[S, 1, 2] y)
        <float[1, 6] h0 = {{0, 0, 0, 0, 0, 0}}, int64 zero = {{0}}, bool on = {{1}}, float limit = {{3}}>
        {{
            xp = MatMul(x, wx)
            sizes = Shape(x)
            steps = Gather(sizes, zero)
            last, all = Loop(steps, on, h0) <body = step (int64 i, bool cond_in, float[1, 6] h) =>
                (bool cond_out, float[1, 6] h_out, float[1, 6] kept) {{
                    hh = MatMul(h, wh)
                    piece = Gather(xp, i)
                    sum = Add(hh, piece)
                    h_out = Tanh(sum)
                    kept = Identity(h_out)
                    top = ReduceMax <keepdims = 0> (h_out)
                    big = Greater(top, limit)
                    {going}
                }}>
            y = MatMul(all, wo)
        }}"""
    model = parser.parse_model(text)
    for name, shape in {"wx": (4, 6), "wh": (6, 6), "wo": (6, 2)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    found = followed(model)
    assert ("y" in found.replaced) == decides

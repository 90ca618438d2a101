"""Boxes: the forms that outputs hold them in, non-maximum suppression, and average precision, against pycocotools."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.data import open_data
from onnxprune.errors import UsageError
from onnxprune.evaluation import boxes, evaluate, matching
from onnxprune.settings import TaskSettings
from tests.data.support import model, refused
from tests.evaluate.test_by_task import values

RNG = np.random.default_rng(0)


def scene(images: int) -> tuple[list[Any], list[Any]]:
    """True boxes of three classes, some of them crowds, and boxes found near them and elsewhere."""
    truth, found = [], []
    for _ in range(images):
        corners = RNG.uniform(0, 60, (RNG.integers(0, 6), 2))
        true = np.column_stack(
            [
                RNG.integers(0, 3, len(corners)),
                corners,
                corners + RNG.uniform(5, 40, corners.shape),
                RNG.random(len(corners)) < 0.1,
            ]
        )
        near = true[RNG.random(len(true)) < 0.8]
        moved = near[:, 1:5] + RNG.normal(0, 2, (len(near), 4))
        elsewhere = RNG.uniform(0, 60, (RNG.integers(0, 4), 2))
        other = np.column_stack([elsewhere, elsewhere + RNG.uniform(5, 40, elsewhere.shape)])
        rows = np.concatenate([moved, moved[:1], other])
        classes = np.concatenate([near[:, 0], near[:1, 0], RNG.integers(0, 3, len(other))])
        truth.append(true)
        found.append(np.column_stack([rows, np.round(RNG.random(len(rows)), 2), classes]))
    return found, truth


def test_map_is_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs the metrics extra: pycocotools")
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="needs the metrics extra: pycocotools")
    found, truth = scene(40)
    dataset = coco.COCO()
    rows = [(i, *row) for i, true in enumerate(truth, 1) for row in true]
    dataset.dataset = {
        "images": [{"id": i} for i in range(1, 41)],
        "categories": [{"id": c} for c in (1, 2, 3)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": int(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
            for k, (i, c, x1, y1, x2, y2, crowd) in enumerate(rows, 1)
        ],
    }  # fmt: skip
    results = [
        {"image_id": i, "category_id": int(c) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s}
        for i, mine in enumerate(found, 1)
        for x1, y1, x2, y2, s, c in mine
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
        judge = cocoeval.COCOeval(dataset, dataset.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    once = np.ones((40, 1))
    matches = matching.coco_matches(found, truth)
    assert matching.mean_average_precision(matches, once)[0] == pytest.approx(judge.stats[0], abs=1e-9)
    assert 0.05 < judge.stats[0] < 0.95
    shuffled = matching.coco_matches(found[1:] + found[:1], truth)
    assert matching.mean_average_precision(shuffled, once)[0] < judge.stats[0] / 2  # the control
    exact = [np.column_stack([t[:, 1:5], np.ones(len(t)), t[:, 0]]) for t in truth]
    assert matching.mean_average_precision(matching.coco_matches(exact, truth), once)[0] == pytest.approx(1)
    drawn = RNG.poisson(1, 40)
    twice = [[x for x, n in zip(part, drawn, strict=True) for _ in range(n)] for part in (found, truth)]
    expected = matching.mean_average_precision(matching.coco_matches(*twice), np.ones((len(twice[0]), 1)))[0]
    assert matching.mean_average_precision(matches, drawn[:, None].astype(float))[0] == pytest.approx(
        expected, abs=2e-3
    )
    nothing = [np.zeros((0, 6))] * 40
    assert matching.mean_average_precision(matching.coco_matches(nothing, truth), once)[0] == 0


def test_a_missing_package_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    proto = model("float[N,3,6] x", outputs="float[N,3,6] y", body="y = Identity(x)")
    reading = TaskSettings(task="detection", postprocess=lambda outputs: list(outputs["y"]))
    data = open_data({"x": np.zeros((2, 3, 6), np.float32), "labels": np.zeros((2, 3, 6))}, proto, reading=reading)
    with pytest.raises(UsageError, match=r"OP605.*pycocotools"):
        evaluate(proto, data)
    assert evaluate(proto, data, metrics=["map_voc"]).task == "detection"


def test_map_of_voc_by_hand() -> None:
    true = np.array([[0, 0, 0, 10, 10, 0], [0, 20, 20, 30, 30, 0], [0, 40, 40, 50, 50, 1]], float)
    mine = np.array(
        [
            [0, 0, 10, 10, 0.9, 0],  # right
            [0, 0, 10, 9, 0.8, 0],  # the same again: wrong
            [40, 40, 50, 50, 0.7, 0],  # difficult: doesn't count
            [20, 20, 30, 31, 0.6, 0],  # right
            [60, 60, 70, 70, 0.5, 1],  # a class that never occurs
        ]
    )
    value = matching.mean_average_precision(matching.voc_matches([mine], [true]), np.ones((1, 1)), None)[0]
    assert value == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize("metrics", [None, ["map_voc"]])
def test_detectors_are_compared_with_labels_and_without(metrics: list[str] | None) -> None:
    if metrics is None:
        pytest.importorskip("pycocotools.coco", reason="needs the metrics extra: pycocotools")
    x = np.zeros((6, 3, 6), np.float32)
    x[:, :, 0] = x[:, :, 1] = np.arange(3) * 20 + RNG.integers(0, 5, (6, 1))
    x[:, :, 2:4] = x[:, :, :2] + 12
    x[:, :, 4], x[:, :, 5] = RNG.uniform(0.6, 0.9, (6, 3)), np.arange(3)
    truth = np.concatenate([x[..., 5:6], x[..., :4], np.zeros((6, 3, 1), np.float32)], axis=2)
    proto = model("float[N,3,6] x", outputs="float[N,3,6] y", body="y = Identity(x)")
    data = open_data({"x": x, "labels": truth}, proto, reading=TaskSettings(task="detection"))
    found = evaluate(proto, data, against=proto, metrics=metrics)
    assert found.task == "detection" and set(values(found).values()) == {1.0}
    moved = open_data(
        {"x": x, "labels": truth + np.array([0, 30, 30, 30, 30, 0])}, proto, reading=TaskSettings(task="detection")
    )
    assert evaluate(proto, moved, metrics=["map_voc"])["map_voc"].model.value == 0


SIZE = 64, 96  # height and width


def in_cells(samples: list[np.ndarray], classes: int) -> np.ndarray:
    """Boxes as the cell of stride 8 that holds their center predicts them, [n, cells, 5 + classes]."""
    rows, columns = SIZE[0] // 8, SIZE[1] // 8
    cells = sum((SIZE[0] // s) * (SIZE[1] // s) for s in (8, 16, 32))
    raw = np.zeros((len(samples), cells, 5 + classes))
    for to, boxes_ in zip(raw, samples, strict=True):
        for x1, y1, x2, y2, score, label in boxes_:
            x, y = (x1 + x2) / 16, (y1 + y2) / 16  # in cells
            assert y < rows
            cell = to[int(y) * columns + int(x)]
            cell[:4] = x - int(x), y - int(y), np.log((x2 - x1) / 8), np.log((y2 - y1) / 8)
            cell[4], cell[5 + int(label)] = 0.9, score / 0.9
    return raw


class TestRawDetectors:
    """Outputs before non-maximum suppression, recognized without being asked for (issue: detectors got MSE only)."""

    samples = (np.array([[50, 50, 60, 62, 0.6, 2], [10, 20, 30, 60, 0.5, 1]]), np.array([[4, 2, 30, 40, 0.8, 0]]))

    def check(self, outputs: dict[str, np.ndarray], kind: str, classes: int) -> None:
        form = boxes.form_of({n: v.astype(np.float32) for n, v in outputs.items()}, SIZE, certain=True)
        assert form is not None and form.kind == kind
        for mine, rows in zip(form.read(outputs, 2, SIZE), self.samples, strict=True):
            expected = rows * [1, 1, 1, 1, 1, classes > 1]
            np.testing.assert_allclose(mine, expected, rtol=1e-6)

    def test_yolox(self) -> None:
        raw = in_cells(list(self.samples), 3)
        self.check({"output": raw}, "yolox", 3)
        assert boxes.form_of({"output": raw}, (64, 64), certain=True) is None  # another number of cells
        assert boxes.form_of({"output": 2 * raw}, SIZE, certain=True) is None  # scores above 1

    def test_yunet(self) -> None:
        raw, outputs, start = in_cells(list(self.samples), 3), {}, 0
        for stride in (8, 16, 32):
            end = start + (SIZE[0] // stride) * (SIZE[1] // stride)
            part = raw[:, start:end]
            best = part[..., 5:].max(axis=2, keepdims=True) * 0.9  # its score is the square root of the product
            outputs |= {f"cls_{stride}": best**1.5, f"obj_{stride}": best**0.5, f"bbox_{stride}": part[..., :4]}
            start = end
        self.check(outputs, "yunet", 1)

    def test_ssd(self) -> None:
        corners, scores = np.zeros((2, 20, 4)), np.zeros((2, 20, 4))
        scores[..., 0] = 1.0  # none
        for to, own, rows in zip(corners, scores, self.samples, strict=True):
            for i, (x1, y1, x2, y2, score, label) in enumerate(rows):
                to[i] = x1 / 96, y1 / 64, x2 / 96, y2 / 64
                own[i] = np.eye(4)[1 + int(label)] * score + np.eye(4)[0] * (1 - score)
        self.check({"scores": scores, "boxes": corners}, "ssd", 3)
        assert boxes.form_of({"scores": 2 * scores, "boxes": corners}, SIZE, certain=True) is None
        assert boxes.form_of({"scores": scores, "boxes": corners - 1 + scores}, SIZE, certain=True) is None  # no order

    def test_images_in_which_nothing_is_found_compare_nothing(self) -> None:
        """Faces are looked for in images without any: no agreement is claimed, and `max_drop` refuses (OP713)."""
        boxes_, scores = np.zeros((1, 16, 4), np.float32), np.tile(np.float32([1, 0]), (1, 16, 1))
        boxes_[..., 2:] = 0.5
        text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,8,8] x) => (float[N,16,4] boxes, float[N,16,2] scores) {
            n = Shape<start = 0, end = 1>(x)
            rest = Constant<value_ints = [1, 1]>()
            times = Concat<axis = 0>(n, rest)
            boxes = Tile(b, times)
            scores = Tile(s, times)
        }"""
        proto = onnx.parser.parse_model(text)
        for name, array in (("b", boxes_), ("s", scores)):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        data = open_data({"x": RNG.standard_normal((6, 3, 8, 8)).astype(np.float32)}, proto)
        found = evaluate(proto, data, against=proto, metrics=["boxes_original"])
        assert found.task == "detection" and len(found.doubts) == 1
        assert found.doubts[0].startswith("the original finds no box with a score of at least 0.5")
        proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(scores[..., ::-1].copy(), "s"))
        assert not evaluate(proto, data, against=proto, metrics=["boxes_original"]).doubts

    def test_a_detector_of_another_form_is_told_what_to_give(self) -> None:
        body = "s = Constant<value_ints=[0,32,6]>()\ny = Reshape(x, s)"
        proto = model("float[N,3,8,8] x", outputs="float[N,32,6] y", body=body)
        x = RNG.standard_normal((6, 3, 8, 8)).astype(np.float32)
        found = evaluate(proto, open_data({"x": x}, proto), against=proto)
        assert found.recognized.endswith("if these are boxes, set `task` to detection and give `postprocess`")


@pytest.mark.parametrize("kind", ["yolov8", "rows", "batched", "corners", "tensorflow", "yolov5"])
def test_boxes_come_out_of_the_usual_forms(kind: str) -> None:
    samples = [
        np.array([[10, 20, 30, 60, 0.9, 2], [50, 50, 60, 70, 0.6, 0]]),
        np.array([[1, 2, 30, 40, 0.8, 1]]),
    ]
    filled = np.zeros((2, 2, 6))
    for to, rows in zip(filled, samples, strict=True):
        to[: len(rows)] = rows
    if kind == "rows":
        outputs = {"y": filled}
    elif kind == "batched":
        outputs = {
            "y": np.concatenate(
                [np.column_stack([np.full(len(r), i), r[:, :4], r[:, 5], r[:, 4]]) for i, r in enumerate(samples)]
            )
        }
    elif kind in ("corners", "tensorflow"):
        box = filled[..., :4] if kind == "corners" else filled[..., [1, 0, 3, 2]] / [80, 100, 80, 100]
        names = (
            ("boxes", "scores", "labels")
            if kind == "corners"
            else ("detection_boxes", "detection_scores", "detection_classes")
        )
        outputs = dict(zip(names, (box, filled[..., 4], filled[..., 5] + (kind == "tensorflow")), strict=True))
    else:
        raw = np.zeros((2, 30, 85 if kind == "yolov5" else 7))
        for to, rows in zip(raw, samples, strict=True):
            for i, (x1, y1, x2, y2, score, label) in enumerate(rows):
                to[2 * i : 2 * i + 2, :4] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1  # twice: NMS drops one
                to[2 * i : 2 * i + 2, (4 if kind == "yolov8" else 5) + int(label)] = score, score * 0.9
                if kind == "yolov5":
                    to[2 * i : 2 * i + 2, 4] = 1
        outputs = {"y": raw.transpose(0, 2, 1) if kind == "yolov8" else raw}
    form = boxes.form_of({name: np.asarray(array, np.float32) for name, array in outputs.items()})
    assert form is not None and form.kind == kind
    for mine, rows in zip(form.read(outputs, 2, (80, 100)), samples, strict=True):
        np.testing.assert_allclose(mine, rows, rtol=1e-6)


def test_forms_that_are_not_certain_are_asked_for() -> None:
    for shape in ((2, 30, 84), (2, 5), (2, 30, 7)):
        with refused("OP711", "how the outputs hold boxes isn't known.*postprocess"):
            boxes.form_of({"y": RNG.standard_normal(shape).astype(np.float32)})


def test_matched_boxes_by_hand() -> None:
    mine = np.array(
        [
            [0, 0, 10, 10, 0.9, 0],
            [0, 0, 10, 9, 0.8, 0],  # the same again
            [20, 20, 30, 31, 0.6, 1],
            [40, 40, 50, 50, 0.4, 1],  # not sure
            [60, 60, 70, 70, 0.7, 2],  # another class than the original's
        ]
    )
    original = np.array([[1, 0, 10, 10, 0.8, 0], [20, 20, 30, 30, 0.9, 1], [60, 60, 70, 70, 0.9, 3]], float)
    assert matching.matched(mine, original) == (2 * 2, 4 + 3)
    assert matching.matched(original, mine) == (2 * 2, 3 + 4)
    assert matching.matched(original, original) == (6, 6)
    assert matching.matched(original[:0], original[:0]) == (0, 0)


def test_detectors_are_compared_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    x = np.zeros((6, 3, 6), np.float32)
    x[:, :, :2] = np.arange(3)[:, None] * 20
    x[:, :, 2:4] = x[:, :, :2] + 12
    x[:, :, 4], x[:, :, 5] = RNG.uniform(0.6, 0.9, (6, 3)), np.arange(3)
    kept = model("float[N,3,6] x", outputs="float[N,3,6] y", body="y = Identity(x)")
    data = open_data({"x": x}, kept, reading=TaskSettings(task="detection"))
    assert evaluate(kept, data, against=kept)["boxes_original"].model.value == 1
    body = "s = Constant<value_floats=[9.0,0.0,9.0,0.0,0.0,0.0]>()\n y = Add(x, s)"
    moved = model("float[N,3,6] x", outputs="float[N,3,6] y", body=body)
    assert evaluate(moved, data, against=kept)["boxes_original"].model.value == 0


def test_suppression_is_the_greedy_one() -> None:
    """Of boxes of one class that overlap by more than 0.7, the best is kept: by hand, one box after the other."""
    rng = np.random.default_rng(3)
    centers = rng.uniform(20, 60, (300, 2))
    rows = np.concatenate([centers, rng.uniform(20, 30, (300, 2)), rng.uniform(0, 1, (300, 3)) ** 2], axis=1)
    form = boxes.form_of({"y": rows.T[None].astype(np.float32)}, certain=False)
    assert form is not None and form.kind == "yolov8"
    (found,) = form.read({"y": rows.T[None]}, 1, None)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
        both = float(np.prod(np.maximum(sides, 0)))
        return both / float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - both)

    corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
    every = [
        [*c, s, k] for c, scores in zip(corners, rows[:, 4:], strict=True) for k, s in enumerate(scores) if s > 1e-3
    ]
    expected: list[np.ndarray] = []
    for box in sorted(map(np.array, every), key=lambda box: -float(box[4])):
        if all(box[5] != other[5] or overlap(box, other) <= 0.7 for other in expected):
            expected.append(box)
    assert 300 < len(expected) < len(every)  # some are suppressed, and only the best 300 are listed
    np.testing.assert_allclose(found, expected[:300], rtol=1e-5)

"""Metrics of decisions, numbers, text, boxes and embeddings, against scikit-learn, scipy, pycocotools and by hand."""

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
from onnxprune.evaluation import Evaluation, boxes, evaluate, ranked
from onnxprune.evaluation.text import edits, greedy, read_alphabet
from onnxprune.settings import TaskSettings
from tests.data.support import model, refused

RNG = np.random.default_rng(0)
N = 200


def measured(
    x: Any, labels: Any, against: str | None = None, body: str = "y = Identity(x)", **reading: Any
) -> Evaluation:
    """Evaluate the identity, or another body, of an input."""
    x = np.asarray(x, np.float32)
    shape = ",".join(["N", *map(str, x.shape[1:])])
    proto = model(f"float[{shape}] x", outputs=f"float[{shape}] y", body=body)
    original = None if against is None else model(f"float[{shape}] x", outputs=f"float[{shape}] y", body=against)
    given = {"x": x} if labels is None else {"x": x, "labels": labels}
    data = open_data(given, proto, reading=TaskSettings(**reading) if reading else None)
    return evaluate(proto, data, against=original)


def values(result: Evaluation) -> dict[str, float]:
    for score in result.scores:
        assert not score.model.low > score.model.value and not score.model.high < score.model.value
    return {score.metric: score.model.value for score in result.scores}


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_decisions_are_measured_as_by_scikit_learn(dtype: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.integers(-9, 10, N) / 4  # with ties, also at the threshold
    labels = (scores + 2 * RNG.standard_normal(N) > 0).astype(dtype)
    for transform, x in (("y = Identity(x)", scores), ("y = Sigmoid(x)", scores)):
        found = measured(x[:, None], labels, body=transform)
        assert found.task == "binary"
        p = scores if transform == "y = Identity(x)" else 1 / (1 + np.exp(-scores))
        expected = {
            "accuracy": metrics.accuracy_score(labels, scores > 0),
            "auc": metrics.roc_auc_score(labels, p),
            "ap": metrics.average_precision_score(labels, p),
            "f1": metrics.f1_score(labels, scores > 0),
        }
        assert values(found) == pytest.approx(expected)
    assert values(measured(-scores[:, None], labels))["auc"] == pytest.approx(1 - expected["auc"])  # the control


def test_two_scores_can_be_one_decision() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores, labels = RNG.standard_normal((N, 2)), RNG.integers(0, 2, N)
    assert measured(scores, labels).task == "classification"
    expected = metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    assert values(measured(scores, labels, task="binary"))["auc"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_several_decisions_are_averaged() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.standard_normal((N, 4)).astype(np.float32)
    labels = (scores + RNG.standard_normal((N, 4)) * [0.5, 1, 2, 4] > 0.5).astype(int)
    found = measured(scores, labels)
    assert found.task == "multilabel"
    assert values(found) == pytest.approx(
        {
            "accuracy": np.mean((scores > 0) == labels),
            "auc": metrics.roc_auc_score(labels, scores, average="macro"),
            "ap": metrics.average_precision_score(labels, scores, average="macro"),
            "f1": metrics.f1_score(labels, scores > 0, average="macro"),
        }
    )
    alone = labels.copy()
    alone[:, 2] = 0  # no positive: AUC isn't defined
    without = [0, 1, 3]
    expected = metrics.roc_auc_score(labels[:, without], scores[:, without], average="macro")
    assert values(measured(scores, alone))["auc"] == pytest.approx(expected)


@pytest.mark.parametrize("statistic", ["auc", "average_precision", "spearman"])
def test_weights_count_samples_as_often_as_they_are_drawn(statistic: str) -> None:
    x, y = RNG.integers(0, 9, 60).astype(float), RNG.integers(0, 3, 60).astype(float)
    y = y > 1 if statistic != "spearman" else y
    draws = RNG.poisson(1, (60, 5)).astype(float)
    function = getattr(ranked, statistic)
    for draw, value in zip(draws.T, function(x, y, draws), strict=True):
        repeated = [np.repeat(a, draw.astype(int)) for a in (x, y)]
        assert function(*repeated, np.ones((len(repeated[0]), 1)))[0] == pytest.approx(value)


def test_perfect_decisions_are_certain_and_shuffled_ones_are_chance() -> None:
    labels = np.arange(2000) % 2
    perfect = measured(labels[:, None] - 0.5, labels)
    assert set(values(perfect).values()) == {1.0}
    chance = measured(labels[:, None] - 0.5 + RNG.standard_normal((2000, 1)), RNG.permutation(labels))["auc"].model
    assert chance.low < 0.5 < chance.high and chance.high - chance.low < 0.1
    assert np.isnan(values(measured(RNG.standard_normal((50, 1)), np.zeros(50, int), task="binary"))["auc"])


def test_scores_that_are_not_finite_are_wrong() -> None:
    labels = np.arange(40) % 2
    found = measured(labels[:, None] * 2 - 1, labels, body="y = Sqrt(x)")  # NaN for all negatives
    assert found["auc"].model.value == 0.0 and found.not_finite == 20 and found["accuracy"].model.value == 0.5


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("width", [1, 3])
def test_numbers_are_measured_as_by_scikit_learn(width: int, offset: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    true = RNG.standard_normal((N, width)) * 10 + offset
    mine = (true + RNG.standard_normal((N, width)) * 3).astype(np.float32)
    found = measured(mine, true)
    assert found.task == "regression"
    expected = {
        "r2": metrics.r2_score(true, mine),
        "mae": metrics.mean_absolute_error(true, mine),
        "rmse": np.sqrt(metrics.mean_squared_error(true, mine)),
    }
    assert values(found) == pytest.approx(expected, rel=1e-9)
    again = measured(true.astype(np.float32), true.astype(np.float32))
    assert values(again) == {"r2": 1, "mae": 0, "rmse": 0}
    assert values(measured(mine, RNG.permutation(true)))["r2"] < 0  # the control


def test_without_labels_numbers_are_compared_relative_to_their_variance() -> None:
    x = RNG.standard_normal((N, 1)).astype(np.float32)
    found = measured(x, None, against="y = Neg(x)")
    assert found.task == "regression"
    assert found["nmse"].model.value == pytest.approx(4 * np.mean(x**2) / np.var(x), rel=1e-5)


def test_text_is_decoded_and_compared_by_hand() -> None:
    alphabet = ["-", "a", "b", "c", " "]
    ids = [[1, 1, 0, 1, 4, 2, 2, 3], [2, 0, 0, 2, 4, 3, 3, 3]]
    scores = np.eye(5, dtype=np.float32)[ids]
    assert greedy(scores, 0) == [[1, 1, 4, 2, 3], [2, 2, 4, 3]]
    found = measured(scores, np.array(["aa bc", "ba c"]), alphabet=alphabet)
    assert found.task == "ctc" and values(found) == {"wer": 1 / 4, "cer": 1 / 9}
    by_ids = measured(scores, np.array([[1, 1, 4, 2, 3], [2, 1, 4, 3, -1]]), task="ctc")
    assert values(by_ids) == {"cer": 1 / 9}
    assert values(measured(scores, np.array(["aa bc", "bb c"]), alphabet=alphabet)) == {"wer": 0, "cer": 0}
    last = measured(np.roll(scores, -1, axis=2), np.array([[0, 0, 3, 1, 2], [1, 1, 3, 2, -1]]), task="ctc", blank=-1)
    assert values(last) == {"cer": 0}
    with refused("OP711", "alphabet has 4 symbols, and the output has 5"):
        measured(scores, np.array(["a", "b"]), alphabet=alphabet[:4])
    with refused("OP711", "text, which needs the model's alphabet"):
        measured(scores, np.array(["a", "b"]), task="ctc")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)],
)
def test_edits_by_hand(a: str, b: str, distance: int) -> None:
    assert edits(a, b) == edits(b, a) == distance


def test_an_alphabet_is_a_line_for_each_class(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_bytes("<blank>\r\nä\n\nb\n".encode())
    assert read_alphabet(tmp_path / "a.txt") == ("<blank>", "ä", " ", "b")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\n")
    for name in ("bad.txt", "none.txt"):
        with refused("OP710", "can't read the alphabet"):
            read_alphabet(tmp_path / name)


def test_masks_of_two_classes_have_one_score() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the dev extra: scikit-learn")
    scores = RNG.standard_normal((9, 1, 6, 7)).astype(np.float32)
    masks = (scores[:, 0] + RNG.standard_normal((9, 6, 7)) > 0).astype(int)
    found = measured(scores, masks)
    expected = metrics.jaccard_score(masks.ravel(), scores.ravel() > 0, average="macro")
    assert found.task == "segmentation" and found["miou"].model.value == pytest.approx(expected)
    dense = RNG.standard_normal((9, 3, 6, 7)).astype(np.float32)
    unlabeled = measured(dense, None, against="y = Identity(x)", task="segmentation")
    assert unlabeled["miou_original"].model.value == 1
    other = measured(dense, None, against="y = Neg(x)", task="segmentation")["miou_original"].model.value
    by_hand = metrics.jaccard_score((-dense).argmax(1).ravel(), dense.argmax(1).ravel(), average="macro")
    assert other == pytest.approx(by_hand)


def test_embeddings_are_judged_by_their_neighbors() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs the dev extra: scikit-learn")
    labels = np.arange(90) % 6
    vectors = np.eye(8)[labels] + 0.7 * RNG.standard_normal((90, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = measured(vectors, labels, against="y = Neg(x)")
    assert found.task == "embedding"
    near = neighbors.NearestNeighbors(n_neighbors=6, metric="cosine").fit(vectors).kneighbors(vectors)[1][:, 1:]
    hits = labels[near] == labels[:, None]
    assert found["recall1"].model.value == pytest.approx(hits[:, 0].mean()) != 1
    assert found["recall5"].model.value == pytest.approx(hits.any(axis=1).mean())
    assert found["neighbors"].model.value == 1  # the negated vectors have the same neighbors
    chance = measured(vectors, RNG.permutation(labels))["recall1"].model
    assert chance.low < 14 / 89 < chance.high
    once = measured(vectors, np.arange(90))["recall1"].model  # nobody has a sample of the same class
    assert np.isnan(once.value)


def test_pairs_of_embeddings_correlate_by_rank() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs the dev extra: scipy")
    vectors = RNG.standard_normal((80, 8)).astype(np.float32)
    order = RNG.permutation(80)
    pairs = order.reshape(40, 2)
    a, b = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    given = np.round(cosines * 3 + RNG.standard_normal(40)) / 2  # with ties
    labels = np.zeros((80, 2))
    for number, pair in enumerate(pairs):
        labels[pair] = number, given[number]
    found = values(measured(vectors, labels, task="embedding"))
    assert found == {"spearman": pytest.approx(stats.spearmanr(cosines, given).statistic, rel=1e-4)}


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
    matches = boxes.coco_matches(found, truth)
    assert boxes.mean_average_precision(matches, once)[0] == pytest.approx(judge.stats[0], abs=1e-9)
    assert 0.05 < judge.stats[0] < 0.95
    shuffled = boxes.coco_matches(found[1:] + found[:1], truth)
    assert boxes.mean_average_precision(shuffled, once)[0] < judge.stats[0] / 2  # the control
    exact = [np.column_stack([t[:, 1:5], np.ones(len(t)), t[:, 0]]) for t in truth]
    assert boxes.mean_average_precision(boxes.coco_matches(exact, truth), once)[0] == pytest.approx(1)
    drawn = RNG.poisson(1, 40)
    twice = [[x for x, n in zip(part, drawn, strict=True) for _ in range(n)] for part in (found, truth)]
    expected = boxes.mean_average_precision(boxes.coco_matches(*twice), np.ones((len(twice[0]), 1)))[0]
    assert boxes.mean_average_precision(matches, drawn[:, None].astype(float))[0] == pytest.approx(expected, abs=2e-3)
    nothing = [np.zeros((0, 6))] * 40
    assert boxes.mean_average_precision(boxes.coco_matches(nothing, truth), once)[0] == 0


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
    value = boxes.mean_average_precision(boxes.voc_matches([mine], [true]), np.ones((1, 1)), None)[0]
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
    assert boxes.matched(mine, original) == (2 * 2, 4 + 3)
    assert boxes.matched(original, mine) == (2 * 2, 3 + 4)
    assert boxes.matched(original, original) == (6, 6)
    assert boxes.matched(original[:0], original[:0]) == (0, 0)


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

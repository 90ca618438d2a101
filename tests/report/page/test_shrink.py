"""The page of `shrink`: what each stage brought, the layers of both files, and samples on which these disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune.benchmarking import speed
from onnxprune.report.page import story, to_html
from tests.cli.support import DIGITS, invoke
from tests.report.page.accessible import faults, loads, parsed, words
from tests.report.page.test_page import number, table
from tests.report.schemas import AVAILABLE, problems

DATA = DIGITS.with_name("digits_train.npz")
OPTIONS = ("--max-drop", "4%", "--effort", "quick", "--threads", 1, "--set", 'clean.optimizers=["onnxruntime"]')
UNTIMED = ("--set", "clean.timed=false", "--set", "quantize.timed=false")  # whatever else runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: its result, its document, its page and its receipt."""
    folder = tmp_path_factory.mktemp("shrink")
    files = ["--report", folder / "page.html", "--report", folder / "receipt.md", "--examples", 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.01)
        patch.setattr(speed, "_REPEATS", 1)
        found = invoke(
            *("shrink", DIGITS, "-o", folder / "small.onnx", "--data", DATA, *OPTIONS, "--objective", "size"),
            *("--set", 'quantize.kind=["static"]', *UNTIMED, *files, "--format", "json"),
        )
    (folder / "run.json").write_text(found.stdout)
    return folder


@pytest.fixture(scope="module")
def document(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    assert found["kept"] == ["clean", "prune", "quantize"]
    assert not AVAILABLE or not problems(found)
    return found


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parsed((run / "page.html").read_text())


def test_every_part_is_there(page: Element) -> None:
    wanted = {"asked", "costs", "latency", "accuracy", "proofs", "stages", "layers", "stayed", "examples"}
    assert {e.get("id") for e in page.iter("section")} == wanted | {"sensitivity", "environment", "reproduce"}
    assert list(faults(page)) == [] and list(loads(page)) == []


def test_stages_say_what_was_expected_and_what_they_brought(page: Element, document: Mapping[str, Any]) -> None:
    rows = table(page, "What each stage brought")
    size = DIGITS.stat().st_size
    for stage, plan in zip(document["stages"], document["expected"], strict=True):
        verdict, file, *_, time, what = rows[stage["stage"]]
        assert verdict == "kept" and what == stage["why"]
        before, _, rest = file.partition(" → ")
        after, _, expected = rest.removesuffix(" expected").rpartition("B ")
        assert number(before) == pytest.approx(size, rel=1e-2)  # of the model before it
        size = stage["size"][1]
        assert number(f"{after}B") == pytest.approx(size, rel=5e-3)
        assert number(expected) == pytest.approx(plan["size"], rel=5e-3)
        assert "expected" in time


def test_weights_of_layers_are_those_of_both_files(page: Element, run: Path) -> None:
    """Also where the result stores them as integers."""
    rows = {name.partition(" ")[0]: cells for name, cells in table(page, "Layers before and after").items()}
    shapes = []
    for path in (DIGITS, run / "small.onnx"):
        graph = onnx.load(path).graph
        dims = {tensor.name: "x".join(map(str, tensor.dims)) for tensor in graph.initializer}
        dims |= {
            n.output[0]: dims[n.input[0]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in dims
        }
        shapes.append({n.name: dims[n.input[1]] for n in graph.node if n.op_type in ("Conv", "Gemm")})
    assert any(n.op_type == "DequantizeLinear" for n in onnx.load(run / "small.onnx").graph.node)
    assert len(shapes[0]) == 14 and shapes[0] != shapes[1]
    for name, shape in shapes[0].items():
        assert rows[name][1:3] == [shape, shapes[1][name]], name


def test_times_and_errors_of_layers_are_those_of_the_document(page: Element, document: Mapping[str, Any]) -> None:
    rows = {name.partition(" ")[0]: cells for name, cells in table(page, "Layers before and after").items()}
    repairs = document["stages"][1]["document"]["repairs"]
    assert repairs and document["outcome"]["layers"]
    for repair in repairs:
        assert [float(cell) for cell in rows[repair["node"]][4:6]] == pytest.approx(
            [repair["before"], repair["after"]], rel=6e-2
        )
    for layer in document["outcome"]["layers"][1:]:  # the first is what comes before them
        assert [number(cell) for cell in rows[layer["name"]][6:8]] == pytest.approx(layer["seconds"], abs=6e-7)


def test_examples_are_samples_that_judge_and_that_both_answer_differently(
    page: Element, document: Mapping[str, Any], run: Path
) -> None:
    """By ONNX Runtime alone, on the samples that their names say."""
    shown = [e for e in page.iter("figcaption") if e.find("dl") is not None]
    assert 0 < len(shown) <= 5
    with np.load(DATA) as arrays:
        images, labels = arrays["images"].astype(np.float32), arrays["labels"]
    answers = []
    for path in (DIGITS, run / "small.onnx"):
        session = onnxruntime.InferenceSession(path)
        answers.append([session.run(None, {"image": image[None]})[0][0] for image in images])
    before, after = np.array(answers)
    differ = np.flatnonzero(before.argmax(1) != after.argmax(1))
    judging = np.random.default_rng(0).permutation(len(images))[: len(images) // 5]
    assert document["samples"]["judged"] == len(judging)
    found = []
    for caption in shown:
        name = next(words(e) for e in caption.iter("small"))
        assert name.startswith("digits_train.npz, sample ")  # without the folder
        found.append(int(name.rpartition(" ")[2]))
        old, new, label = (words(e) for e in caption.iter("dd"))
        at = found[-1]
        assert [old.split()[1], new.split()[1], label] == [
            *(str(scores[at].argmax()) for scores in (before, after)),
            f"class {labels[at]}",
        ]
    assert set(found) <= set(differ) and set(found) <= set(judging)
    assert len(found) == min(5, len(np.intersect1d(differ, judging)))
    assert len([img for img in page.iter("img")]) == len(shown)


def test_the_proof_and_the_pins_of_the_prune_stage_are_told(page: Element, document: Mapping[str, Any]) -> None:
    inside = document["stages"][1]["document"]
    (pin,) = inside["pins"]
    assert any(pin["code"] in cells for cells in table(page, "Channels that can't be removed (prune)").values())
    assert "logits" in table(page, "Proof of the rewriting (prune)")
    said = [words(e) for e in page.iter("li")]
    assert any(text.startswith("✓Rewriting proved") for text in said)
    assert any("Answers kept" in text or "Answers partly kept" in text for text in said)


def test_what_a_stage_that_was_left_out_made_is_not_told_of_the_result(document: Mapping[str, Any]) -> None:
    """The control: a document whose stage was left out has none of its layers, and its page shows none."""
    stages = [dict(stage) for stage in document["stages"]]
    stages[1] |= {"kept": False, "document": {}}
    outcome = {**document["outcome"], "layers": []}
    page = parsed(to_html(story([{**document, "stages": stages, "outcome": outcome}])))
    assert not {"layers", "proofs"} & {e.get("id") for e in page.iter("section")}


def test_the_receipt_is_short_and_has_the_verdicts(run: Path) -> None:
    text = (run / "receipt.md").read_text()
    assert "| quantize | kept |" in text and "✅ | Rewriting proved" in text and len(text) < 3000

"""The options --report, --card and --examples, the command `report`, and limits of file sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import onnxprune as op
from onnxprune.errors import CATALOG
from tests.cli.support import DIGITS, document, invoke, refused
from tests.report.page.accessible import faults, loads, parsed, words

TEST = DIGITS.with_name("digits_test.npz")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A pruned network that isn't as good as the original."""
    path = tmp_path / "small.onnx"
    op.save(op.prune(op.analyze(DIGITS), op.plan(op.analyze(DIGITS), ratio=0.3)).proto, path)
    return path


def test_every_command_writes_a_report(small: Path, tmp_path: Path) -> None:
    data = ["--data", TEST, "--limit", 40]
    commands: dict[str, list[Any]] = {
        "evaluate": [small, "--against", DIGITS, *data],
        "verify": [DIGITS, small, *data],
        "benchmark": [DIGITS, small, "--seconds", 0.01, "--rounds", 5, "--warm-up", 0],
        "sensitivity": [DIGITS, *data, "--include", "/stem/*"],
        "quantize": [DIGITS, "-o", tmp_path / "q.onnx", *data[:2], "--objective", "size", "--kind", "static"],
        "pack": [DIGITS, "-o", tmp_path / "p.onnxpack", "--clusters", 16, *data],
        "sparsify": [DIGITS, "-o", tmp_path / "s.onnx", "--data", TEST, "--limit", 20, "--method", "wanda"],
        "finetune": [small, "-o", tmp_path / "f.onnx", "--teacher", DIGITS, *data, "--epochs", 2],
        "prune": [DIGITS, "-o", tmp_path / "p.onnx", "--ratio", 0.3],
    }  # fmt: skip
    wanted = {
        "evaluate": {"accuracy", "examples"},
        "verify": {"accuracy", "proofs", "examples"},
        "benchmark": {"latency"},
        "sensitivity": {"sensitivity"},
        "quantize": {"costs", "accuracy", "stages"},
        "pack": {"accuracy"},
        "sparsify": {"accuracy"},
        "finetune": {"accuracy", "stages"},
        "prune": {"costs", "latency", "proofs", "layers", "stayed", "accuracy"},
    }
    documents = []
    for name, args in commands.items():
        files = [tmp_path / f"{name}.html", tmp_path / f"{name}.md"]
        found = document(name, *args, "--report", files[0], "--report", files[1])
        page = parsed(files[0].read_text())
        assert list(faults(page)) == [] and list(loads(page)) == [], name
        sections = {str(e.get("id")) for e in page.iter("section")}
        assert sections >= {"asked", "environment", "reproduce"} | wanted[name], name
        assert f"onnxprune {name} " in files[1].read_text()
        assert found["options"]["report"] == f"{files[0]}, {files[1]}"
        assert len(files[1].read_text()) < 4000
        documents.append(tmp_path / f"{name}.json")
        documents[-1].write_text(json.dumps(found))
    whole = tmp_path / "whole.html"
    invoke("report", *documents, "--report", whole)
    page = parsed(whole.read_text())
    assert {e.get("id") for e in page.iter("section")} >= set.union(*wanted.values())
    assert list(faults(page)) == [] and list(loads(page)) == []


def test_examples_are_kept_if_asked_for(small: Path, tmp_path: Path) -> None:
    args = ["evaluate", small, "--against", DIGITS, "--data", TEST]
    assert document(*args)["examples"] == []
    found = document(*args, "--examples", 3)["examples"]
    assert len(found) == 3 and all(e["picture"].startswith("data:image/png;base64,") for e in found)
    page = tmp_path / "page.html"
    (tmp_path / "run.json").write_text(invoke(*args, "--examples", 3, "--format", "json").stdout)
    invoke("report", tmp_path / "run.json", "--report", page)
    assert [e.get("src") for e in parsed(page.read_text()).iter("img")] == [e["picture"] for e in found]
    with np.load(TEST) as arrays:
        labels = arrays["labels"]
    shown = [e for e in parsed(page.read_text()).iter("figcaption") if e.find("dl") is not None]
    for example, caption in zip(found, shown, strict=True):
        sample = int(example["name"].rpartition(" ")[2])
        answers = [words(e) for e in caption.iter("dd")]
        assert answers == [example["original"], example["model"], f"class {labels[sample]}"]
        assert answers[0].split()[1] != answers[1].split()[1]


def test_examples_of_training_are_those_of_the_model_that_is_kept(small: Path, tmp_path: Path) -> None:
    common = ["--data", TEST, "--report", tmp_path / "page.html", "--examples", 2, "--force"]
    tuned = document("finetune", small, "-o", tmp_path / "f.onnx", "--teacher", DIGITS, "--epochs", 1, *common)
    pages = [(tuned, parsed((tmp_path / "page.html").read_text()))]
    args = "prune", DIGITS, "-o", tmp_path / "p.onnx", "--target", "macs=20%", "--limit", 64, "--finetune", 1
    pruned = document(*args, *common)
    assert pruned["outcome"]["examples"] == []  # they are told once
    pages.append((pruned["finetuning"], parsed((tmp_path / "page.html").read_text())))
    for found, page in pages:
        kept, shown = found["kept"] == "after", [e.get("src") for e in page.iter("img")]
        assert found["before"]["examples"] == [] and len(found["after"]["examples"]) <= 2
        assert shown == ([e["picture"] for e in found["after"]["examples"]] if kept else [])
    assert any(found["kept"] == "after" and found["after"]["examples"] for found, _ in pages)


def test_reports_are_written_if_a_limit_is_missed(small: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.md"
    args = ["evaluate", small, "--against", DIGITS, "--data", TEST, "--min", "top1=99.9%", "--report", receipt]
    missed = invoke(*args, status=1).stderr
    assert "error[OP508]: top1 is " in missed and f"wrote {receipt}" in missed
    assert "❌ | Missed: top1 is " in receipt.read_text()
    refused("OP116", *args)  # it exists now
    assert "error[OP508]" in invoke(*args, "--force", status=1).stderr


def test_a_quiet_run_writes_its_report_too(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = invoke("prune", DIGITS, "-o", tmp_path / "s.onnx", "--ratio", 0.3, "-q", "--report", page)
    assert found.stdout == "" and "Latency" in page.read_text()


def test_receipts_name_what_could_not_be_removed(tmp_path: Path) -> None:
    receipt = tmp_path / "x.md"
    found = document("prune", DIGITS, "-o", tmp_path / "s.onnx", "--ratio", 0.3, "--report", receipt)
    titles = [CATALOG[pin["code"]].title for pin in found["pins"]]
    assert titles and f"What can't be removed: {', '.join(titles[:3])}" in receipt.read_text()


def test_cards_are_what_hugging_face_reads(small: Path, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    found = document("evaluate", small, "--against", DIGITS, "--data", TEST, "--card", card)
    head, _, body = card.read_text().removeprefix("---\n").partition("\n---\n")
    read = yaml.safe_load(head)
    (entry,) = read["model-index"]
    assert entry["name"] == "small.onnx" and read["library_name"] == "onnx"
    (result,) = entry["results"]
    assert set(result) == {"task", "dataset", "metrics"} and result["task"]["name"] == "classification"
    assert "450 samples" in result["dataset"]["name"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == found["scores"]["top1"]["model"]["value"]
    assert set(values) == {"accuracy", "top_5_accuracy", *(set(found["scores"]) - {"top1", "top5"})}
    assert "license" not in read  # which nobody measured
    assert body.strip().startswith("# digits_resnet.onnx → small.onnx\n")
    assert result["dataset"]["type"] == "digits_test.npz" and str(TEST.parent) not in head  # no folder of this machine


def test_a_card_of_a_hostile_name_is_still_yaml(small: Path, tmp_path: Path) -> None:
    named = tmp_path / 'a": [b]\\ #c.onnx'
    shutil.copy(small, named)
    card = tmp_path / "card.md"
    invoke("evaluate", named, "--against", DIGITS, "--data", TEST, "--limit", 20, "--card", card)
    read = yaml.safe_load(card.read_text().removeprefix("---\n").partition("\n---\n")[0])
    assert read["model-index"][0]["name"] == named.name


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("OP602", ["--report", "x.pdf"]),
        ("OP602", ["--card", "x.html"]),
        ("OP602", ["--examples", "-1"]),
        ("OP117", ["--report", "no/such/folder/x.html"]),
        ("OP116", ["--report", "model.html", "--force"]),
    ],
)
def test_reports_that_cannot_be_written_are_refused_before_the_work(
    code: str, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS, tmp_path / "model.html")  # a report never replaces what is read
    refused(code, "evaluate", "model.html", "--data", TEST, *args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.html"]


def test_two_outputs_have_two_names(tmp_path: Path) -> None:
    same = tmp_path / "x.md"
    refused("OP302", "prune", DIGITS, "-o", same, "--ratio", 0.3, "--report", same)
    refused("OP302", "prune", DIGITS, "-o", tmp_path / "s.onnx", "--ratio", 0.3, "--report", same, "--card", same)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"version": 3}', "nul\0", '{"version": 9, "report": "x"}', "[" * 99999]
)
def test_other_files_are_no_documents(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    refused("OP611", "report", file, "--report", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_documents_that_are_missing_are_refused(tmp_path: Path) -> None:
    refused("OP611", "report", tmp_path / "none.json")
    refused("OP611", "report", tmp_path)


@pytest.mark.parametrize(
    ("limit", "held"), [("50%", True), ("10%", False), ("0.5", True), ("100kB", False), ("200kB", True)]
)
def test_sizes_are_limited(limit: str, held: bool, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    op.save(op.prune(op.analyze(DIGITS), op.plan(op.analyze(DIGITS), target="macs=30%")).proto, small)
    assert 0.1 < small.stat().st_size / DIGITS.stat().st_size < 0.5
    args = ["benchmark", DIGITS, small, "--seconds", 0.01, "--rounds", 5, "--warm-up", 0, "--max-size", limit]
    if held:
        (gate, *_) = document(*args)["gates"]
        assert gate["held"] and gate["unit"] == "bytes"
    else:
        assert "error[OP808]: size of small.onnx is " in invoke(*args, status=1).stderr


def test_limits_of_sizes_are_read(tmp_path: Path) -> None:
    for wrong in ("fast", "0%", "-5MB", "5", "5XB"):
        refused("OP602", "benchmark", DIGITS, "--max-size", wrong)
    refused("OP302", "benchmark", DIGITS, "--max-size", "50%")

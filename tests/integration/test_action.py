"""The GitHub Action: its steps, run by bash as a runner would, on the digits network with real limits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import onnxprune as op
from tests.report.page.accessible import faults, loads, parsed

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
DIGITS = ROOT / "models" / "digits_resnet.onnx"
TEST, TRAIN = DIGITS.with_name("digits_test.npz"), DIGITS.with_name("digits_train.npz")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its steps run in bash")


@dataclass(frozen=True)
class Ran:
    """What a run of the action left.

    Attributes:
        failed: the step that failed, None if none did.
        summary: the job's summary.
        outputs: the action's outputs.
        comments: the command lines of gh.
        said: what the steps printed.
    """

    failed: str | None
    summary: str
    outputs: dict[str, str]
    comments: list[str]
    said: str


def run_action(folder: Path, pull_request: str = "", **inputs: str) -> Ran:
    """Run the steps with inputs, as the documentation of composite actions describes it.

    A step runs if none before it failed, or if it says `always()`. Variables and outputs pass through the files that
    GITHUB_ENV and GITHUB_OUTPUT name.
    """
    unknown = {name.replace("_", "-") for name in inputs} - ACTION["inputs"].keys()
    assert not unknown
    given = {name: inputs.get(name.replace("-", "_"), about.get("default")) for name, about in ACTION["inputs"].items()}
    assert None not in given.values(), "an input is required"
    context = {f"inputs.{name}": str(value) for name, value in given.items()}
    context |= {"github.action_path": str(ROOT), "github.repository": "owner/name", "runner.temp": str(folder / "temp")}
    context |= {"github.event.pull_request.number": pull_request}
    binaries = folder / "bin"
    for place in (binaries, folder / "temp"):
        place.mkdir(parents=True)
    (binaries / "gh").write_text(f'#!/bin/sh\necho "$@" >> {folder / "comments"}\ntest "$5" != fail\n')
    (binaries / "gh").chmod(0o755)
    files = {name: folder / name.lower() for name in ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.touch()
    environment = {**os.environ, **{name: str(file) for name, file in files.items()}}
    environment |= {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    failed, said = None, ""
    for step in ACTION["runs"]["steps"]:
        if failed is not None and step.get("if") != "always()":
            continue
        own = {name: filled(str(value), context) for name, value in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        found = subprocess.run(command, env={**environment, **own}, cwd=folder, capture_output=True, text=True)
        said += found.stdout + found.stderr
        failed = failed or (step["name"] if found.returncode else None)
        environment |= pairs(files["GITHUB_ENV"])
        if "id" in step:
            outputs = pairs(files["GITHUB_OUTPUT"])
            context |= {f"steps.{step['id']}.outputs.{name}": value for name, value in outputs.items()}
    outputs = {name: filled(about["value"], context) for name, about in ACTION["outputs"].items()}
    comments = (folder / "comments").read_text().splitlines() if (folder / "comments").exists() else []
    return Ran(failed, files["GITHUB_STEP_SUMMARY"].read_text(), outputs, comments, said)


def filled(text: str, context: dict[str, str]) -> str:
    """Fill in expressions; outputs that a step didn't write are empty."""

    def value(found: re.Match[str]) -> str:
        return context.get(found[1], "") if found[1].startswith("steps.") else context[found[1]]

    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", value, text)


def pairs(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network pruned with data, which keeps its accuracy, and without, which loses it."""
    folder = tmp_path_factory.mktemp("models")
    good = op.prune_model(DIGITS, target="macs=40%", data=str(TRAIN), limit=256)
    bad = op.prune_model(DIGITS, target="macs=30%")
    op.save(good.model.proto, folder / "good.onnx")
    op.save(bad.model.proto, folder / "bad.onnx")
    return {"good": folder / "good.onnx", "bad": folder / "bad.onnx"}


def compare(folder: Path, model: Path, **limits: str) -> Ran:
    given = {"baseline": str(DIGITS), "data": str(TEST), "threads": "1", "seconds": "0.05", "python": sys.executable}
    return run_action(folder, **{"model": str(model), **given, **limits})


def test_a_model_within_its_limits_passes(models: dict[str, Path], tmp_path: Path) -> None:
    limits = {"max_drop": "3%", "min_metric": "top1=95%", "max_size": "60%", "min_speedup": "0.2", "verify": "true"}
    found = compare(tmp_path, models["good"], pull_request="7", token="t", **limits)
    assert found.failed is None, found.said
    assert found.summary.count("✅ | Held: ") == 4 and "Rewriting proved" in found.summary
    assert "❌" not in found.summary
    assert Path(found.outputs["receipt"]).read_text() == found.summary
    page = parsed(Path(found.outputs["report"]).read_text())
    assert list(faults(page)) == [] and list(loads(page)) == []
    assert found.comments == [f"pr comment 7 --repo owner/name --body-file {found.outputs['receipt']} --edit-last"]


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({"max_drop": "3%", "max_size": "60%"}, ["drop of top1"]),
        pytest.param(
            {"min_metric": "top1=99%", "max_size": "1kB", "min_speedup": "100"},
            ["top1", "size of bad.onnx", "speed-up of bad.onnx"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_beyond_a_limit_fails(
    limits: dict[str, str], missed: list[str], models: dict[str, Path], tmp_path: Path
) -> None:
    found = compare(tmp_path, models["bad"], **limits)
    assert found.failed == "Compare"
    rows = re.findall(r"❌ \| Missed: (.*?) is ", found.summary)
    assert len(rows) == len(missed) and all(any(row.startswith(name) for row in rows) for name in missed)
    assert Path(found.outputs["report"]).is_file()
    assert found.comments == []  # no token


def test_a_comment_is_written_anew_if_there_is_none_to_edit(models: dict[str, Path], tmp_path: Path) -> None:
    step = next(s for s in ACTION["runs"]["steps"] if s["name"] == "Comment")
    receipt, log = tmp_path / "receipt.md", tmp_path / "log"
    receipt.write_text("text")
    (tmp_path / "gh").write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *--edit-last) exit 1;; esac\n')
    (tmp_path / "gh").chmod(0o755)
    own = {"GH_TOKEN": "t", "PULL_REQUEST": "3", "REPOSITORY": "o/n", "RECEIPT": str(receipt)}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-e", "-c", step["run"]], env={**os.environ, **own, "PATH": path}, check=True)
    assert [line.endswith("--edit-last") for line in log.read_text().splitlines()] == [True, False]


def test_a_model_that_is_no_model_fails_with_its_error(models: dict[str, Path], tmp_path: Path) -> None:
    wrong = tmp_path / "$(touch hacked).onnx"
    wrong.write_text("no model")
    found = compare(tmp_path / "run", wrong, max_drop="1%")
    assert found.failed == "Compare"
    assert "❌ | Failed: " in found.summary and "OP103" in found.summary
    assert not list(tmp_path.rglob("hacked"))


def test_a_limit_on_accuracy_needs_data(models: dict[str, Path], tmp_path: Path) -> None:
    found = compare(tmp_path, models["good"], data="", max_drop="1%")
    assert found.failed == "Compare" and "needs data" in found.said


def test_no_input_is_part_of_a_command() -> None:
    """An expression in a script would let an input run as one; variables can't."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"] and step["shell"] == "bash"
    used = {value for step in ACTION["runs"]["steps"] for value in step.get("env", {}).values()}
    for name in ACTION["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in used  # every input is used

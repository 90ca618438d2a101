"""`onnxprune shrink` and `run`: what is written, said and returned; recipes give the same bytes or are refused."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path
from shutil import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w

from onnxprune.benchmarking import speed
from onnxprune.benchmarking.speed import Speed
from onnxprune.errors import VerificationError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.planning.budget import candidate_steps
from onnxprune.planning.plan import PrunePlan
from onnxprune.settings.planning import Constraints
from onnxprune.trace import ChannelGraph
from onnxprune.workflow import judging, pipeline, planning
from onnxprune.workflow.stages import STAGES, Made, Task
from tests.cli.support import document, invoke, refused

MODELS = Path(__file__).parents[2] / "models"
QUICK = ("--threads", "1", "--effort", "quick", "--no-timed", "--set", 'clean.optimizers=["onnxruntime"]')
STATIC = ("--stages", "clean,quantize", "--max-drop", "5%", *QUICK)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the digits network and its data."""
    copy(MODELS / "digits_resnet.onnx", tmp_path / "model.onnx")
    copy(MODELS / "digits_test.npz", tmp_path / "data.npz")
    return tmp_path


def shrunk(folder: Path, *args: object) -> dict[str, Any]:
    given = args or STATIC
    return document("shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--data", folder / "data.npz", *given)


def test_the_same_recipe_gives_the_same_bytes(folder: Path) -> None:
    report = shrunk(folder)
    assert report["kept"] == ["clean", "quantize"] and report["file_size"]["after"] < report["file_size"]["before"]
    recipe = tomllib.loads((folder / "o.toml").read_text())
    assert recipe["model"]["path"] == "model.onnx" and recipe["data"]["path"] == "data.npz"
    assert recipe["quantize"]["form"]["kind"] == "static" and recipe["clean"]["optimizers"] == ["onnxruntime"]
    assert recipe["shrink"]["max_drop"] == 0.05 and recipe["shrink"]["stages"] == ["clean", "quantize"]
    assert {"onnxprune", "onnx", "onnxruntime"} <= recipe["versions"].keys()
    again = invoke("run", folder / "o.toml", "-o", folder / "again.onnx")
    assert "the bytes are those that the recipe names" in again.stderr
    assert (folder / "again.onnx").read_bytes() == (folder / "o.onnx").read_bytes()


@pytest.mark.parametrize("limit", [("--target", "size=15%"), ("--max-drop", "5%", "--set", "prune.criterion=l2")])
@pytest.mark.slow
def test_pruning_gives_the_same_bytes(limit: tuple[str, ...], folder: Path) -> None:
    report = shrunk(folder, *limit, *QUICK)
    assert {"prune", "quantize"} <= set(report["kept"])
    result = invoke("run", folder / "o.toml", "-o", folder / "again.onnx")
    assert "the bytes are those that the recipe names" in result.stderr
    assert digest(folder / "again.onnx") == digest(folder / "o.onnx")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_chosen_by_time_is_in_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are made up: each measurement removes other channels, as noise may."""
    measured: list[np.ndarray] = []

    def noisy(graph: ChannelGraph, *_: Any, **__: Any) -> Any:
        steps = candidate_steps(graph, [np.ones(len(g.units)) for g in graph.groups], Constraints())[1]
        removed = np.zeros(graph.unit_count, dtype=bool)
        for own in [own for own in steps.values() if own][len(measured) % 2 :: 2]:
            removed[own[0].units] = True
        measured.append(removed)
        return SimpleNamespace(removed=removed, fields=lambda: {"original_seconds": 1e-3, "note": None})

    monkeypatch.setattr(planning, "plan_for_latency", noisy)
    monkeypatch.setattr(judging.Judge, "speed", lambda *_: (Speed(Estimate(1.1, 1.0, 1.2), 1e-3, 0.9e-3, "cpu"), ""))
    args = "--data", folder / "data.npz", "--stages", "clean,prune", "--target", "latency=50%", *QUICK
    invoke("shrink", folder / "model.onnx", "-o", folder / "o.onnx", *args, status=1)  # the limit is missed
    recipe = tomllib.loads((folder / "o.toml").read_text())
    plan = PrunePlan.from_json(recipe["prune"]["plan"])
    assert plan.removed and "target" not in recipe["prune"]
    invoke("run", folder / "o.toml", "-o", folder / "again.onnx", status=1)
    assert len(measured) == 1 and digest(folder / "again.onnx") == digest(folder / "o.onnx")
    refused("OP305", "run", folder / "o.toml", "-o", folder / "other.onnx", "--set", "prune.plan=none.json")
    refused("OP305", "run", folder / "o.toml", "-o", folder / "other.onnx", "--set", "prune.plan='{}'")
    del recipe["prune"]["plan"]
    (folder / "o.toml").write_text(tomli_w.dumps(recipe))
    invoke("run", folder / "o.toml", "-o", folder / "other.onnx", status=1)
    assert len(measured) == 2 and digest(folder / "other.onnx") != digest(folder / "o.onnx")


def test_files_of_stages_are_named_from_the_recipe_s_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("plan", folder / "model.onnx", "-o", folder / "plan.json", "--ratio", "20%")
    args = "--data", "data.npz", "--stages", "prune", "--set", "prune.plan=plan.json", *QUICK
    monkeypatch.chdir(folder)
    invoke("shrink", "model.onnx", "-o", "o.onnx", *args)
    assert tomllib.loads((folder / "o.toml").read_text())["prune"]["plan"] == "plan.json"
    monkeypatch.chdir(folder.parent)
    assert "the bytes are those" in invoke("run", folder / "o.toml", "-o", folder / "again.onnx").stderr


def test_a_recipe_is_refused_if_a_name_or_a_file_is_another(folder: Path) -> None:
    shrunk(folder, "--stages", "clean", *QUICK)
    recipe = folder / "o.toml"
    run = "run", recipe, "-o", folder / "x.onnx"
    wrong = refused("OP602", *run, "--set", "shrink.max_dorp=1%")
    assert "did you mean max_drop?" in wrong and ".toml, [shrink]" in wrong
    assert "quantize.kind" in refused("OP303", *run, "--set", "quantize.kind=statix")
    assert "did you mean keep?" in refused("OP602", *run, "--set", "quantize.kep=a")
    assert "did you mean clean?" in refused("OP612", *run, "--set", "claen.timed=true")
    assert "did you mean sha256?" in refused("OP612", *run, "--set", "model.sha265=0")
    refused("OP303", *run, "--set", "shrink.max_drop=200%")
    (folder / "data.npz").write_bytes((MODELS / "digits_train.npz").read_bytes())
    assert "made for another data" in refused("OP612", *run)
    invoke(*run, "--set", "data.sha256=")
    copy(MODELS / "digits_cnn_dynamo.onnx", folder / "model.onnx")
    assert "made for another model" in refused("OP612", *run, "--set", "data.sha256=", "--force")
    recipe.write_text("recipe = 7\n")
    assert "format 7" in refused("OP612", *run)
    recipe.write_text("recipe = [\n")
    refused("OP612", *run)
    refused("OP612", "run", folder / "none.toml", "-o", folder / "x.onnx")


def test_a_pyproject_holds_what_a_recipe_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, inner = folder / "pyproject.toml", folder / "src" / "inner"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.other]\nshrink = 1\n")  # isn't the nearest one with a recipe
    written = """
[project]
name = "mine"
[tool.onnxprune]
model = "model.onnx"
output = { path = "small.onnx" }
[tool.onnxprune.shrink]
stages = ["clean"]
threads = 1
timed = false
[tool.onnxprune.clean]
optimizers = ["onnxruntime"]
"""
    project.write_text(written)
    monkeypatch.chdir(inner)
    invoke("run")
    direct = invoke("shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--stages", "clean", *QUICK)
    assert direct.exit_code == 0 and digest(folder / "small.onnx") == digest(folder / "o.onnx")
    invoke("run", project, "-o", folder / "named.onnx", "--set", "shrink.seed=1")
    assert (folder / "named.onnx").is_file()
    refused("OP116", "run")
    project.write_text(written.replace("stages =", "stagse ="))
    assert "did you mean stages?" in refused("OP602", "run", "--force")
    project.write_text(written.replace("onnxprune.clean", "onnxprune.claen"))
    error = refused("OP612", "run", "--force")
    assert "did you mean clean?" in error and "pyproject.toml" in error
    project.write_text(written.replace("model.onnx", "gone.onnx"))
    refused("OP101", "run", "--force")
    project.write_text("[tool]\nonnxprune = 1\n")
    assert "no table [tool.onnxprune]" in refused("OP612", "run", project)
    assert "no pyproject.toml with [tool.onnxprune]" in refused("OP612", "run")


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    report = shrunk(folder, "--dry-run")
    assert [e["stage"] for e in report["expected"]] == ["clean", "prune", "quantize"]
    assert all(e["seconds"] > 0 for e in report["expected"])
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "model.onnx"]
    text = invoke("shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--dry-run").stdout
    assert "left out: it needs inputs to find ranges and errors with (--data)" in " ".join(text.split())


def test_a_missed_limit_fails_after_the_best_was_written(folder: Path) -> None:
    args = "shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--stages", "clean", "--target", "size=1kB", *QUICK
    error = refused_after_output("OP509", *args)
    assert "1kB was asked for" in error and (folder / "o.onnx").is_file()


def refused_after_output(code: str, *args: object) -> str:
    result = invoke(*args, status=1)
    assert f"error[{code}]: " in result.stderr
    return result.stderr


def refusing(task: Task) -> Made:
    raise VerificationError("OP507", "nothing makes it better")


def with_stage(monkeypatch: pytest.MonkeyPatch, number: int, run: Any) -> None:
    stages = tuple(replace(s, run=run) if i == number else s for i, s in enumerate(STAGES))
    monkeypatch.setattr(pipeline, "STAGES", stages)


def test_if_nothing_pays_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_stage(monkeypatch, 0, refusing)
    args = "shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--stages", "clean", *QUICK
    assert "clean: nothing makes it better" in refused_after_output("OP507", *args)
    assert not (folder / "o.onnx").exists() and not (folder / "o.toml").exists()
    assert "<failure" in invoke(*args, "--format", "junit", status=1).stdout


def test_ctrl_c_keeps_the_best_so_far(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(task: Task) -> Made:
        raise KeyboardInterrupt

    with_stage(monkeypatch, 2, stopped)
    data = folder / "data.npz"
    result = invoke("shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--data", data, *STATIC, status=130)
    assert result.stderr.endswith(
        "o.onnx has the stages that were done: clean; with --checkpoint FILE, such a run can go on\n"
    )
    assert (folder / "o.onnx").is_file()
    assert tomllib.loads((folder / "o.toml").read_text())["shrink"]["stages"] == ["clean"]


def test_markdown_has_the_stages_and_the_result(folder: Path) -> None:
    args = "shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--stages", "clean", *QUICK
    text = invoke(*args, "--format", "markdown").stdout
    assert "| clean | kept |" in text and "smaller" in text


def test_what_exists_is_not_overwritten(folder: Path) -> None:
    (folder / "o.toml").write_text("mine")
    args = "shrink", folder / "model.onnx", "-o", folder / "o.onnx", "--stages", "clean", *QUICK
    refused("OP116", *args)
    assert (folder / "o.toml").read_text() == "mine" and not (folder / "o.onnx").exists()
    assert "form STAGE.KEY=VALUE" in refused("OP602", *args, "--set", "clean=1")

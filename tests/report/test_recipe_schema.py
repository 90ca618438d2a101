"""The schema of recipes is up to date, takes the recipes that are written, and refuses what `run` refuses."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from shutil import copy
from typing import Any

import pytest

from benchmarks.recipe_schema import FILE, text
from tests.cli.support import DIGITS, invoke
from tests.report.schemas import AVAILABLE

pytestmark = [pytest.mark.dev, pytest.mark.skipif(not AVAILABLE, reason="needs the `dev` extra: jsonschema")]

SHRINK = ["--threads", "1", "--effort", "quick", "--no-timed", "--set", "clean.optimizers=['onnxruntime']"]


def problems(recipe: Any) -> list[str]:
    from jsonschema import Draft202012Validator

    schema = json.loads(FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(recipe)]


def test_it_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "write it again: python -m benchmarks.recipe_schema"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    copy(DIGITS, folder / "m.onnx")
    copy(DIGITS.parent / "digits_test.npz", folder / "d.npz")
    files = "shrink", folder / "m.onnx", "-o", folder / "o.onnx", "--data", folder / "d.npz"
    invoke(*files, "--target", "size=15%", "--max-drop", "10%", "--for", "avx2", *SHRINK)
    return folder / "o.toml"


def test_recipes_that_are_written_follow_it(written: Path) -> None:
    recipe = tomllib.loads(written.read_text(encoding="utf-8"))
    assert {"clean", "prune", "quantize", "data"} <= recipe.keys() and not problems(recipe)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("shrink", "max_dorp", 0.1),
        ("shrink", "max_drop", 1.5),
        ("shrink", "stages", ["claen"]),
        ("shrink", "threads", 0),
        ("clean", "optimizers", []),
        ("prune", "data", "x.npz"),
        ("prune", "ratio_for", [["a"]]),
        ("prune", "target", []),
        ("quantize", "weight_bits", 9),
        ("model", "sha265", "0"),
        ("claen", "timed", True),
    ],
)
def test_what_run_refuses_the_schema_refuses(table: str, key: str, value: Any, written: Path) -> None:
    recipe = tomllib.loads(written.read_text(encoding="utf-8"))
    recipe.setdefault(table, {})[key] = value
    assert problems(recipe)
    arguments = "--set", f"{table}.{key}={json.dumps(value)}"
    assert invoke("run", written, "-o", written.parent / "x.onnx", *arguments, status=2).stderr.startswith("error[")


def test_values_in_other_forms_are_taken(written: Path) -> None:
    recipe = tomllib.loads(written.read_text(encoding="utf-8"))
    recipe["model"], recipe["shrink"]["max_drop"], recipe["prune"]["ratio_for"] = "m.onnx", "10%", [["stem*", "5%"]]
    recipe["shrink"]["target"] = "size=15%"
    assert not problems(recipe)
    assert problems({name: value for name, value in recipe.items() if name != "model"})


def test_the_example_of_the_page_follows_it() -> None:
    page = (FILE.parents[1] / "reference" / "recipes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert not problems({"recipe": 1, **tomllib.loads(block)["tool"]["onnxprune"]})

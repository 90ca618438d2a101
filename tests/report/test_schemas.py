"""Every document that a command prints follows docs/schemas, and has no further field.

`tests.cli.support.document` checks many more, which may have further fields.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.cli import COMMANDS
from onnxprune.version import REPORTS
from tests.cli.support import DIGITS, document, invoke
from tests.report.network import network
from tests.report.schemas import AVAILABLE, SCHEMA, problems

pytestmark = [pytest.mark.dev, pytest.mark.skipif(not AVAILABLE, reason="needs the `dev` extra: jsonschema")]

DATA = DIGITS.parent / "digits_test.npz"
SILENT = ("demo", "completion", "run", "report")  # without --format, or with the document of another command


def test_every_command_has_a_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    reports = [part["$ref"].rpartition("/")[2] for part in schema["oneOf"]]
    assert set(reports) >= {*(name.split()[0] for name in COMMANDS), "error"} - set(SILENT)
    for report in reports:
        fields = schema["$defs"][report]["properties"]
        assert (fields["version"]["const"], fields["report"]["const"]) == (REPORTS, report)
    assert SCHEMA.stem.endswith(f"-{REPORTS}")


@pytest.mark.parametrize(
    "arguments",
    [
        "inspect MODEL --measure",
        "explain MODEL",
        "explain MODEL stem",
        "explain OP202",
        "explain MODEL OP202",
        "plan MODEL -o OUT --ratio 50%",
        "prune MODEL -o OUT --ratio 50%",
        "prune DIGITS -o OUT --target macs=70% --data DATA --limit 64 --finetune 1",
        "prune DIGITS -o OUT --max-drop 9% --data DATA --limit 64 --report PAGE --examples 2",
        "clean DIGITS -o OUT --optimizers onnxruntime",
        "shrink DIGITS -o OUT --dry-run",
        "shrink DIGITS -o OUT --stages clean --no-timed --set clean.optimizers=['onnxprune']",
        "shrink DIGITS -o OUT --stages prune --no-timed --target macs=80% --data DATA --effort quick --report PAGE",
        "verify MODEL MODEL",
        "evaluate DIGITS --against DIGITS --data DATA --max-drop 5%",
        "finetune DIGITS -o OUT --data DATA --limit 100 --epochs 1 --teacher DIGITS",
        "sensitivity DIGITS --data DATA --limit 32",
        "quantize DIGITS -o OUT --data DATA --no-timed --kind float16",
        "pack DIGITS -o OUT",
        "pack DIGITS -o OUT --clusters 16 --data DATA --limit 32",
        "sparsify DIGITS -o OUT --pattern 2:4",
        "benchmark MODEL --seconds 0.05 --rounds 5 --profile",
        "rules",
        "cache show",
        "doctor",
    ],
)
def test_documents(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.benchmarking import speed

    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    onnx.save(network(), tmp_path / "model.onnx")
    paths = {"MODEL": tmp_path / "model.onnx", "OUT": tmp_path / "out.onnx", "DIGITS": DIGITS, "DATA": DATA}
    paths["PAGE"] = tmp_path / "page.html"
    assert not problems(document(*(paths.get(word, word) for word in arguments.split())))


FREE = {
    # settings and options as the user or a package has them, and what may hold any value
    *("settings", "about", "again", "key", "provider_options", "copies", "once", "estimates", "distances", "placement"),
}


def test_nothing_else_is_left_open() -> None:
    """Every value of the schema has a type, and every object and array a content."""

    def loose(part: Any, name: str) -> Iterator[str]:
        if isinstance(part, list):
            for item in part:
                yield from loose(item, name)
            return
        kinds = part.get("type", ())
        kinds = [kinds] if isinstance(kinds, str) else kinds
        content = {"object": ("properties", "maxProperties"), "array": ("items", "prefixItems")}
        known = any(key in part for key in ("type", "$ref", "enum", "const", "anyOf", "allOf", "oneOf"))
        typed = isinstance(part.get("additionalProperties"), dict)
        if not known or any(k in content and not (typed or any(c in part for c in content[k])) for k in kinds):
            yield name
        for key in ("anyOf", "prefixItems"):
            yield from loose(part.get(key, []), name)
        for key in ("items", "additionalProperties"):
            if isinstance(part.get(key), dict):
                yield from loose(part[key], name)
        for key, value in part.get("properties", {}).items():
            yield from loose(value, key)

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert {name for key, part in schema["$defs"].items() for name in loose(part, key)} == FREE
    assert list(loose({"properties": {"a": {}, "b": {"type": "array"}}, "type": "object"}, "")) == ["a", "b"]


def test_errors(tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path / "absent.onnx", "--format", "json", status=2)
    assert not problems(json.loads(result.stdout))


def test_violations_are_seen(tmp_path: Path) -> None:
    """A field that is new, gone or of another type."""
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    found = document("inspect", path)

    def changed(*where: str | int, value: Any) -> list[str]:
        other: Any = copy.deepcopy(found)
        inner = other
        for key in where[:-1]:
            inner = inner[key]
        if value is None:
            del inner[where[-1]]
        else:
            inner[where[-1]] = value
        return problems(other)

    assert not changed("nodes", value=7)
    assert changed("extra", value=7)
    assert changed("layers", 0, "extra", value=7)
    assert changed("groups", 0, "units", value=None)
    assert changed("cost", "macs", value=np.pi)
    assert changed("version", value=1)


def test_violations_in_parts_of_a_run_are_seen(tmp_path: Path) -> None:
    """Also in what documents share, such as a stage's details, and in what the published schema doesn't leave open."""
    args = ("shrink", DIGITS, "-o", tmp_path / "o.onnx", "--stages", "clean", "--no-timed")
    found = document(*args, "--set", 'clean.optimizers=["onnxruntime"]')
    assert not problems(found) and found["stages"][0]["document"]["tried"]
    found["stages"][0]["document"]["more"] = 1
    assert problems(found) and not problems(found, strict=False)
    del found["stages"][0]["document"]["more"]
    for where, key, value in (
        (found["stages"][0]["document"]["tried"][0], "nodes", "7"),
        (found["stages"][0], "stage", "sharpen"),
        (found["outcome"], "judged", "by eye"),
        (found["environment"], "cores", None),
        (found["options"], "stages", 1),
        (found, "command", "onnxprune"),
    ):
        before, where[key] = where[key], value
        assert problems(found) and problems(found, strict=False), key
        where[key] = before
    assert not problems(found)

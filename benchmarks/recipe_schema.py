"""Write the JSON Schema of recipes, docs/schemas/recipe-1.json: ``python -m benchmarks.recipe_schema``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from onnxprune.settings.declare import Declared, Settings, described, flat
from onnxprune.settings.pipeline import ShrinkSettings
from onnxprune.workflow.recipe import FORMAT, TABLES
from onnxprune.workflow.stages import STAGES

FILE = Path(__file__).parents[1] / "docs" / "schemas" / f"recipe-{FORMAT}.json"

_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}
_TEXT = {"type": "string"}
_PERCENT = {"type": "string", "pattern": r"^\d+(\.\d*)?%$"}
_BY_HAND = {"form": {"type": "object"}}  # of the settings that no option has, those that recipes have


def schema() -> dict[str, Any]:
    """Return the schema of recipes."""
    settings: dict[str, type[Settings]] = {"shrink": ShrinkSettings}
    settings |= {stage.name: stage.settings for stage in STAGES}
    tables: dict[str, Any] = {
        "recipe": {"const": FORMAT, "description": "The format."},
        "versions": {"type": "object", "additionalProperties": _TEXT, "description": "The packages it was made with."},
    }
    for name, keys in TABLES.items():
        if name in settings:
            tables[name] = _table(settings[name])
        elif keys is not None:
            path = {"type": "object", "properties": dict.fromkeys(keys, _TEXT), "additionalProperties": False}
            tables[name] = {"anyOf": [_TEXT, path], "description": f"The file of the {name}, relative to the recipe."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxprune recipe",
        "description": "What `onnxprune shrink` writes beside a model, and `onnxprune run` reads; as TOML.",
        "type": "object",
        "properties": {name: tables[name] for name in TABLES},
        "required": ["recipe", "model", "output"],
        "additionalProperties": False,
    }


def _table(settings: type[Settings]) -> dict[str, Any]:
    found = {}
    for declared in flat(settings):
        if declared.name == "data" or ("by_hand" in declared.about and declared.name not in _BY_HAND):
            continue
        text = " ".join(described(declared.default, declared.about).split())
        found[declared.name] = {**_value(declared), "description": text}
    return {"type": "object", "properties": found, "additionalProperties": False, "description": settings.__name__}


def _value(declared: Declared) -> dict[str, Any]:
    if declared.name in _BY_HAND:
        return _BY_HAND[declared.name]
    if declared.kind is Any:
        return _TEXT
    if "read" in declared.about:  # text that a function reads, one or several
        return {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": declared.about.get("least", 0)}]}
    return _kind(declared.kind, declared.about)


def _kind(kind: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated and args[1] == "share":
        return {"anyOf": [_kind(args[0], about), _PERCENT]}
    if origin is Annotated:
        return _kind(args[0], about)
    if origin in (Union, UnionType):
        kinds = [_kind(arg, about) for arg in args if arg is not NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[-1] is ...:
        each = _kind(args[0], about)
        several = {"type": "array", "items": each, "minItems": about.get("least", 0)}
        return {"anyOf": [each, several]} if args[0] is str or get_origin(args[0]) is Literal else several
    if origin is tuple:
        parts = [_kind(arg, about) for arg in args]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    bounds = {_BOUNDS[name]: about[name] for name in _BOUNDS if name in about} if kind in (int, float) else {}
    return {"type": _PLAIN[kind], **bounds}


def text() -> str:
    """Return the schema as the file holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")

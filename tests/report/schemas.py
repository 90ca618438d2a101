"""Documents against the published schema."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "reports-3.json"
AVAILABLE = find_spec("jsonschema") is not None  # of the extra `dev`


def problems(document: Any, *, strict: bool = True) -> list[str]:
    """Return what the schema of a document's report doesn't allow.

    Args:
        document: the document.
        strict: whether fields that the schema doesn't have count; the published one leaves room for them.
    """
    from jsonschema import Draft202012Validator

    definitions = _definitions(strict)
    report = document["report"]
    if report not in definitions:
        return [f"there is no schema of {report}"] if strict else []
    validator = Draft202012Validator({"$ref": f"#/$defs/{report}", "$defs": definitions})
    found = validator.iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


@cache
def _definitions(strict: bool) -> dict[str, Any]:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    found: dict[str, Any] = (_strict(schema) if strict else schema)["$defs"]
    return found


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without room for further fields.

    A definition that others are made of by "allOf" can't say so itself, only those that are made of it, and the places
    that refer to it alone.
    """
    parts = {entry["$ref"] for part in schema["$defs"].values() for entry in part.get("allOf", ())}

    def closed(part: Any, *, open_: bool = False) -> Any:
        if isinstance(part, list):
            return [closed(item) for item in part]
        if not isinstance(part, dict):
            return part
        inner = {k: v if k == "allOf" else closed(v) for k, v in part.items()}
        whole = "allOf" in part or "required" in part or part.get("$ref") in parts
        return inner | ({"unevaluatedProperties": False} if whole and not open_ else {})

    definitions = {k: closed(v, open_=f"#/$defs/{k}" in parts) for k, v in schema["$defs"].items()}
    return {**schema, "$defs": definitions}

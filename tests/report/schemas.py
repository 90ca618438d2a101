"""Documents against the published schema, with no field that it doesn't have."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "reports-2.json"
AVAILABLE = find_spec("jsonschema") is not None  # of the extra `dev`


def problems(document: Any) -> list[str]:
    """Return what a document has that the schema of its report doesn't allow."""
    return [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in _validator(document["report"], document)
    ]


def _validator(report: str, document: Any) -> Any:
    from jsonschema import Draft202012Validator

    definitions = _strict_definitions()
    assert report in definitions, f"docs/schemas has no report {report}"
    found = {"$ref": f"#/$defs/{report}", "$defs": definitions}
    return Draft202012Validator(found).iter_errors(document)


@cache
def _strict_definitions() -> dict[str, Any]:
    """Return the definitions without room for further fields; the published ones leave it, see docs/versions.md."""
    found: dict[str, Any] = _strict(json.loads(SCHEMA.read_text(encoding="utf-8")))["$defs"]
    return found


def _strict(part: Any) -> Any:
    if isinstance(part, dict):
        inner = {key: _strict(value) for key, value in part.items()}
        return inner | ({"additionalProperties": False} if "required" in part else {})
    return [_strict(item) for item in part] if isinstance(part, list) else part

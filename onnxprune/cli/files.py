"""Files that commands write: refused before the work starts if they exist, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from onnxprune.errors import ModelError


def check_output(path: Path, force: bool) -> None:
    """Refuse an output that can't be written, before the work that it would hold is done.

    Raises:
        ModelError: it exists (OP116), or its folder doesn't or can't be written to (OP117).
    """
    if path.is_dir():
        raise ModelError("OP116", "the output is a folder", where=str(path))
    if os.path.lexists(path) and not force:
        hint = "pass --force to overwrite it"
        raise ModelError("OP116", "the output exists", where=str(path), hint=hint)
    folder = path.parent
    if not folder.is_dir():
        raise ModelError("OP117", "the output's folder doesn't exist", where=str(folder))
    if not os.access(folder, os.W_OK):
        raise ModelError("OP117", "the output's folder can't be written to", where=str(folder))


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        ModelError: it can't be written (OP117).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        cause = f"can't write the file: {error.strerror or error}"
        raise ModelError("OP117", cause, where=str(path)) from error

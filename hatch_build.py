"""Build hook: the manual page, made from the commands' own help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


class ManualPage(BuildHookInterface):
    """Puts onnxprune.1 where `man` looks for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the page, and add it to the wheel."""
        sys.path.insert(0, str(ROOT))
        try:
            text = manual()
        finally:
            sys.path.remove(str(ROOT))
        folder = ROOT / "build"
        folder.mkdir(exist_ok=True)
        path = folder / "onnxprune.1"
        path.write_text(text, encoding="utf-8")
        build_data["shared_data"][str(path)] = "share/man/man1/onnxprune.1"


def manual() -> str:
    """Return the page in roff: the root's help, and a section for each command."""
    from onnxprune.cli import cli
    from onnxprune.cli.group import described, sections
    from onnxprune.version import __version__

    lines = [f'.TH ONNXPRUNE 1 "" "onnxprune {__version__}" "User Commands"', ".SH NAME"]
    lines += [_roff("onnxprune - prune trained ONNX models, and prove the result correct")]
    lines += [".SH SYNOPSIS", ".B onnxprune", _roff("COMMAND [OPTIONS] ..."), ".SH DESCRIPTION", _roff(cli.help or "")]
    for name, command, context in described(cli):
        lines += [f".SH {name.upper()}", f".B onnxprune {name}", _roff(" ".join(command.collect_usage_pieces(context)))]
        lines += [".PP", _roff(command.help or "")]
        for title, rows in sections(command, context):
            lines.append(f".SS {_roff(title)}")
            for flags, text in rows:
                lines += [".TP", f".B {_roff(flags)}", _roff(text)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Escape what roff would take for a command, and keep paragraphs."""
    escaped = text.replace("\b", "").replace("\\", "\\e").replace("-", "\\-")
    lines = [line.strip() for line in escaped.strip().splitlines()]
    return "\n".join(".PP" if not line else f"\\&{line}" if line[0] in ".'" else line for line in lines)

"""What the site generates from code while it is built: the overview from the README, and the references.

Nothing is imported that `--help` doesn't import; docstrings are read from the source by mkdocstrings.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from onnxprune.cli import cli  # noqa: E402
from onnxprune.cli.group import described, sections  # noqa: E402
from onnxprune.settings.declare import described as described_setting, flat  # noqa: E402
from onnxprune.settings.hardware import HARDWARE  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": overview(),
        "reference/cli.md": commands(),
        "reference/api.md": api(),
        "reference/hardware.md": hardware(),
        "reference/errors.md": (ROOT / "onnxprune" / "errors" / "codes.md").read_text(encoding="utf-8"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def overview() -> str:
    """Return the README with links as they are within docs/; files outside are named only."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\(([A-Z]+\.md)\)", r"`\2`", text)


def commands() -> str:
    """Return the reference of all commands: their help, with options in sections."""
    text = [
        "# Command line",
        "",
        "What `onnxprune COMMAND --help` prints. Exit status: 0 success, 1 a check failed, 2 bad",
    ]
    text += ["input or usage, 130 interrupted.", ""]
    for name, command, context in described(cli):
        text += [
            f"## {name}",
            "",
            f"```text\nonnxprune {name} {' '.join(command.collect_usage_pieces(context))}\n```",
            "",
        ]
        text += [_escaped(command.help or ""), ""]
        for title, rows in sections(command, context):
            text += [f"**{title}**", "", "| option | |", "| --- | --- |"]
            text += [f"| `{_cell(flags)}` | {_cell(_escaped(help_text))} |" for flags, help_text in rows]
            text.append("")
        if command.epilog:
            lines = [line.strip() for line in command.epilog.replace("\b", "").splitlines()]
            text += ["```sh", *(line for line in lines if line and line != "Examples:"), "```", ""]
    return "\n".join(text)


def api() -> str:
    """Return the reference of the public names; of settings classes, a table of what can be set."""
    text = ["# Python", "", "All public names, as `import onnxprune as op` gives them. Settings are fields of a class,"]
    text += ["or keyword arguments of the function that takes the class; the options of commands are the same.", ""]
    for name in sorted(onnxprune.__all__, key=str.lower):
        if onnxprune._HOME[name] == "settings":
            declared = getattr(onnxprune, name)
            text += [f"## {name}", "", f"{declared.__doc__.partition('Attributes:')[0].strip()}", "", "| setting | |"]
            text.append("| --- | --- |")
            for field in flat(declared):
                help_text = described_setting(field.default, field.about)
                text.append(f"| `{field.name}` | {_cell(_escaped(help_text))} |")
            text.append("")
        else:
            text.append(f"::: onnxprune.{onnxprune._HOME[name]}.{name}\n")
    return "\n".join(text)


def hardware() -> str:
    """Return the table of what processors and providers prefer, as `--for` takes it."""
    text = ["# Hardware", "", "What `onnxprune shrink --for` takes, and what follows from it: the multiples in which"]
    text += ["channels are kept, and the formats of numbers that are tried. The reasons link to their source.", ""]
    text += ["| `--for` | provider | channels | formats | why |", "| --- | --- | --- | --- | --- |"]
    for name, has in HARDWARE.items():
        formats = ", ".join(has.kinds) or "all"
        bits = f"; INT8 weights of {has.weight_bits} bits" if has.weight_bits else ""
        why = f"[{has.why}]({has.source})"
        text.append(f"| `{name}` | {has.provider} | {has.channels or 'the usual'} | {formats}{bits} | {_cell(why)} |")
    return "\n".join(text) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([<>])", r"\\\1", re.sub(r"(?<!`)--(\w[\w-]*)", r"`--\1`", re.sub(r"`(--[\w-]+)`", r"\1", text)))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

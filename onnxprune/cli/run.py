"""`onnxprune run`: make a model again by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.cli.receipts import receipts
from onnxprune.cli.shrink import changes, deploy


@click.command("run", cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File for the result. [default: the one that RECIPE names]"
)
@changes
@click.option("--dry-run", is_flag=True, help="Only show what each stage is expected to bring.")
@options.force
@receipts(examples=True)
@reporting
def command(
    recipe: Path | None,
    output: Path | None,
    changes: list[tuple[str, str, Any]],
    dry_run: bool,
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Make the model again that RECIPE was written for, by `onnxprune shrink`.

    The same recipe with the same versions on the same machine gives the same bytes. If the model or the data have
    changed since, nothing is done.

    A pyproject.toml may hold a recipe, too, as [tool.onnxprune.shrink], [tool.onnxprune.model] and so on. Without
    RECIPE, the nearest one that does is taken, here or in a folder above.
    """
    from onnxprune.workflow.recipe import project_recipe, read_recipe

    with out.step("load"):
        found = read_recipe(recipe or project_recipe(Path.cwd()), changes)
    how: dict[str, Any] = {"dry_run": dry_run, "force": force, "examples": examples}
    written = deploy(out, found.model, output or found.output, found.settings, None, **how)
    if written is not None and found.sha256 is not None and not changes:
        same = written == found.sha256
        out.note("the bytes are those that the recipe names" if same else "the bytes differ from those of the recipe")

"""The root command and its commands: imported on demand, options in sections, failures as exit statuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from onnxprune.cli.failures import ARGUMENTS, FORM, asked_form, failures, reported, unbreakable_streams

_SECTIONS = {
    "Most used": "output store join for effort target ratio pattern sparsity packed-size max-drop kind data preprocess "
    "against teacher epochs minutes loss metric compare profile trials time",
    "What is removed": "stages optimizers criterion method allocation no-channels attention grouped remove-blocks "
    "resolution resize-outputs axes minimize seed",
    "Limits on channels": "min-channels max-ratio round-to include exclude ratio-for exact-only",
    "Language models": "last-token-logits vocabulary keep-token-ids kv-uniform",
    "States": "resize-states state",
    "Sweeps": "tag keep-models latency-on model on workers",
    "Numbers": "objective max-error weight-bits calibration clusters bit-price direct keep",
    "Data": "limit labels tokenizer batch validation hold-out share",
    "What outputs mean": "task output-name train-output postprocess alphabet blank",
    "Proof": "no-verify tolerance input input-shape custom-ops transform",
    "Repair and training": "recover repair-minutes repair-epochs finetune steps rewind backend training-python",
    "Sparse training": "sparse mask-interval no-keep-zeros",
    "Losses": "feature feature-weight temperature delta smoothing slimming lasso",
    "Optimizer": "optimizer rate momentum decay clip schedule warm-up accumulate norms patience freeze train",
    "Images in training": "flip crop cutout",
    "Gates": "min max min-speedup max-regression max-size",
    "Measuring time": "provider also providers provider-option threads no-timed no-cache optimization no-arena seconds "
    "rounds optimizer-seconds confidence isolate allow-fallback measure stale",
    "Keep and reuse": "recipe set dry-run plan save-plan sensitivity checkpoint resume every history",
    "Output": "no-summary report card examples plot force format verbose quiet help",
}
"""The options of all commands, in the order of help pages. An option has the same place in each."""


def sections(command: click.Command, context: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the sections of a command's options, each with the flags and the help of its options."""
    found: dict[str, tuple[str, str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            found[(parameter.secondary_opts or parameter.opts)[-1].lstrip("-")] = record
    for title, names in _SECTIONS.items():
        if rows := [found.pop(name) for name in names.split() if name in found]:
            yield title, rows
    if found:
        yield "Others", list(found.values())


def described(root: LazyGroup) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield each command with its name and a context to describe it in, for references."""
    parent = click.Context(root, info_name="onnxprune", **root.context_settings)
    for name in root.names:
        command = root.get_command(parent, name)
        assert command is not None
        yield name, command, click.Context(command, info_name=name, parent=parent)


class Command(click.Command):
    """A command whose help has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        for title, rows in sections(self, ctx):
            with formatter.section(title):
                formatter.write_dl(rows)


class LazyGroup(click.Group):
    """A group whose commands are modules of a package, imported on demand; each defines `command`.

    A module has the name of its command, with underscores for hyphens and spaces: a command's name may have two words.
    """

    def __init__(self, *args: Any, package: str, commands: Mapping[str, str], **kwargs: Any) -> None:
        """Set the package and its commands, in the order of the help page, each with a line about it."""
        super().__init__(*args, **kwargs)
        self.package = package
        self.names = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.names:
            return None
        command: click.Command = import_module(f"{self.package}.{re.sub('[- ]', '_', cmd_name)}").command
        command.short_help = self.names[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or raise an error that names the nearest one."""
        if (both := " ".join(args[:2])) in self.names:
            args = [both, *args[2:]]
        if args and args[0] not in self.names and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.names, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.names.items()))

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **kwargs: Any) -> click.Context:
        """Parse the root's own options."""
        unbreakable_streams()
        form, given = asked_form(args), tuple(args)
        with failures():
            context = super().make_context(info_name, args, *rest, **kwargs)
        context.meta.update({FORM: form, ARGUMENTS: given})
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with reported(ctx):
            return super().invoke(ctx)

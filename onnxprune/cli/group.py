"""The root command: imports commands on demand, and turns every failure into a message and an exit status."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from onnxprune.cli.failures import ARGUMENTS, FORM, asked_form, failures, reported, unbreakable_streams


class LazyGroup(click.Group):
    """A group whose commands are modules of a package, imported on demand; each defines `command`.

    A module has the name of its command, with underscores for hyphens.
    """

    def __init__(self, *args: Any, package: str, commands: Sequence[str], **kwargs: Any) -> None:
        """Set the package and its commands, in the order of the help page."""
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
        command: click.Command = import_module(f"{self.package}.{cmd_name.replace('-', '_')}").command
        return command

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

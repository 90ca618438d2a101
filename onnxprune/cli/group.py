"""The root command: imports a command when it is asked for, and turns every failure into a message and a status."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from onnxprune.cli.failures import failures, unbreakable_streams


class LazyGroup(click.Group):
    """A group whose commands live in modules of a package, each as `command`, and are imported on demand.

    A module is named as its command is, with underscores for hyphens.
    """

    def __init__(self, *args: Any, package: str, commands: Sequence[str], **kwargs: Any) -> None:
        """Take the package's name and the modules' names, in the order of the help page."""
        super().__init__(*args, **kwargs)
        self.package = package
        self.names = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands' names."""
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.names:
            return None
        command: click.Command = import_module(f"{self.package}.{cmd_name.replace('-', '_')}").command
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the root's own options."""
        unbreakable_streams()
        with failures():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with failures(ctx):
            return super().invoke(ctx)

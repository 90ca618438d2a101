"""`onnxprune completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click

from onnxprune.cli.group import Command

_EXAMPLES = """\b
Examples:
  eval "$(onnxprune completion bash)"        in ~/.bashrc
  eval "$(onnxprune completion zsh)"         in ~/.zshrc
  onnxprune completion fish > ~/.config/fish/completions/onnxprune.fish
"""


@click.command("completion", cls=Command, epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL: commands, options, their values and file names.

    Let the shell read it at its start. Bash needs version 4.4 or newer.
    """
    from click.shell_completion import BashComplete, get_completion_class

    class Bash(BashComplete):
        @staticmethod
        def _check_version() -> None:
            """Don't look for bash: the script may be for another machine."""

    kind = Bash if shell == "bash" else get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "onnxprune", "_ONNXPRUNE_COMPLETE").source())

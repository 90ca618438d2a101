"""The command line: thin commands over the public API, each in a module of its own that is imported when it is run.

Nothing heavy (onnx, numpy, rich) is imported before a command does its work, so that `--help` answers at once.
"""

from __future__ import annotations

import click

from onnxprune.cli.group import LazyGroup
from onnxprune.version import __version__

__all__ = ["cli", "main"]

COMMANDS = (
    *("inspect", "explain", "plan", "prune", "verify", "evaluate", "finetune", "sensitivity", "benchmark", "rules"),
    "doctor",
)

_EXAMPLES = """\b
Examples:
  onnxprune inspect model.onnx                                  what can be pruned
  onnxprune prune model.onnx -o small.onnx --target macs=50%    prune and prove
  onnxprune explain model.onnx conv_14                          why not this layer?
"""


@click.group(
    epilog=_EXAMPLES,
    cls=LazyGroup,
    package=__name__,
    commands=COMMANDS,
    invoke_without_command=True,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="onnxprune %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Shrink trained ONNX models, provably right.

    onnxprune finds which channels of a network can only leave together, removes the least important
    ones by rewriting the graph, and proves with ONNX Runtime that the result computes what the
    original computes without them. No framework, no labels, no training code.

    Exit status: 0 done, 1 a check failed, 2 bad input or usage.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run the command line; the process ends with its exit status."""
    cli(prog_name="onnxprune")

"""The command line: thin commands over the public API, each in its own module, imported on demand.

Nothing heavy (onnx, numpy, rich) is imported before a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys

import click

from onnxprune.cli.group import LazyGroup
from onnxprune.version import __version__

__all__ = ["cli", "main"]

COMMANDS = {
    "demo": "Shrink a small network that comes along: the first success without any file.",
    "shrink": "Clean, prune and quantize, whatever pays.",
    "run": "Shrink a model as a recipe says.",
    "sweep": "Look for the best trade-offs, on as many machines as there are.",
    "sweep show": "Show what a sweep has found.",
    "sweep pick": "Take a model of a sweep.",
    "inspect": "Show a model and what can be pruned.",
    "explain": "Explain why channels can't be removed.",
    "plan": "Choose what to remove, and write a plan.",
    "clean": "Fewer nodes, the same outputs.",
    "prune": "Remove channels, prove the result and write it.",
    "sparsify": "Set weights to zero, for downloads and some runtimes.",
    "quantize": "INT8, INT4 or float16, whichever pays.",
    "pack": "Fewer bytes to download, and the same model again.",
    "unpack": "Make the model of a packed file.",
    "verify": "Check a pruned model against its original.",
    "evaluate": "Measure accuracy, and what pruning lost.",
    "finetune": "Train a model further, on ONNX Runtime.",
    "sensitivity": "Measure the error of pruning each group.",
    "benchmark": "Measure and compare latency.",
    "report": "Make a report of JSON documents.",
    "rules": "List the known operators.",
    "cache": "Show or clear the measured times of layers.",
    "doctor": "Check the installation and its execution providers.",
    "completion": "Print the shell's completion script.",
}
"""The commands, in the order of the help page."""

_EXAMPLES = """\b
Examples:
  onnxprune shrink model.onnx -o small.onnx --data images/      clean, prune, quantize: whatever pays
  onnxprune inspect model.onnx                                  what can be pruned
  onnxprune prune model.onnx -o small.onnx --target macs=50%    prune and prove
  onnxprune explain model.onnx conv_14                          why not this layer?
"""


_OLD_FLAGS = {"optimiser": "optimizer"}
"""Flags of 0.1 that are accepted for one release."""


@click.group(
    epilog=_EXAMPLES,
    cls=LazyGroup,
    package=__name__,
    commands=COMMANDS,
    invoke_without_command=True,
    subcommand_metavar="COMMAND ...",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda token: _OLD_FLAGS.get(token, token),
    },
)
@click.version_option(__version__, "-V", "--version", message="onnxprune %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Prune trained ONNX models, and prove the result correct.

    onnxprune finds the channels of a network that can only be removed together, removes the least important ones by
    rewriting the graph, and proves with ONNX Runtime that the result computes what the original computes without them.
    It needs no framework, no labels and no training code.

    Exit status: 0 success, 1 a check failed, 2 bad input or usage.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _keep_stdout() -> None:
    """Keep stdout for results: what native libraries write there, such as onnx's warnings, goes to stderr."""
    try:
        own = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # there is no stdout, or it is no file
        return
    old = sys.stdout
    errors, lines = getattr(old, "errors", None), getattr(old, "line_buffering", False)
    sys.stdout = open(own, "w", encoding=old.encoding, errors=errors, buffering=1 if lines else -1)  # noqa: SIM115


def main() -> None:
    """Run the command line, and exit with its status."""
    _keep_stdout()
    cli(prog_name="onnxprune")

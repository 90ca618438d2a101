"""`onnxprune benchmark`: measure the latency of models, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import options
from onnxprune.cli.options import ParamType
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.errors import PlanError, UsageError

if TYPE_CHECKING:
    from onnxprune.benchmarking import Provider
    from onnxprune.settings.benchmarking import BenchmarkSettings

_EXAMPLES = """\b
Examples:
  onnxprune benchmark model.onnx small.onnx                    the speed-up
  onnxprune benchmark model.onnx small.onnx --profile          and by operator and layer
  onnxprune benchmark model.onnx --providers cpu,cuda --batch 1,8,64
  onnxprune benchmark model.onnx small.onnx -o base.json       save a baseline, and later:
  onnxprune benchmark model.onnx small.onnx --compare base.json --max-regression 5%
"""


class ListOf(ParamType[tuple[str, ...]]):
    """A comma-separated list of words or numbers."""

    def __init__(self, name: str) -> None:
        """Set the name of the type in help texts."""
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split the list."""
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in str(value).split(","))
        if not all(words):
            self.fail(f"{value!r} is not a list such as a,b", param, ctx)
        return words


@click.command("benchmark", short_help="Measure and compare latency.", epilog=_EXAMPLES)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(path_type=Path))
@click.option(
    "--providers",
    type=ListOf("NAME,..."),
    default="cpu",
    show_default=True,
    help="Execution providers: cpu, cuda, tensorrt, openvino, ... or ONNX Runtime's own names.",
)
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="Option of a provider, such as cuda.use_tf32=0. Repeatable.",
)
@click.option("--batch", "batches", type=ListOf("N,..."), help="Batch sizes. [default: the model's own, or 1]")
@options.input_shapes
@options.inputs
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator. [default: all cores]")
@click.option(
    "--optimization",
    "level",
    type=click.Choice(["none", "basic", "extended", "all"]),
    default="all",
    show_default=True,
    help="ONNX Runtime's graph optimization level.",
)
@click.option("--arena/--no-arena", default=True, help="CPU memory arena. [default: arena]")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Least time to measure each model.")
@click.option("--rounds", type=int, default=15, show_default=True, help="Least number of rounds.")
@click.option("--isolate", is_flag=True, help="Run each model in its own process.")
@click.option("--profile", is_flag=True, help="Show time by operator and by layer, and where pruning didn't pay off.")
@click.option("--allow-fallback", "fallback", is_flag=True, help="Accept a provider that runs no node of a model.")
@click.option("--compare", "baseline", type=click.Path(path_type=Path), help="Compare with an earlier -o.")
@click.option(
    "--max-regression",
    type=options.SHARE,
    help="With --compare: exit with status 1 if a figure is worse by more than this. [default: 5%]",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.json", help="Write the JSON document.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@options.force
@reporting
def command(
    models: tuple[Path, ...],
    input_shapes: list[Any],
    inputs: list[Any],
    baseline: Path | None,
    max_regression: float | None,
    output: Path | None,
    force: bool,
    out: Output,
    **settings: Any,
) -> None:
    """Measure the latency of MODELs; the others are compared with the first.

    Models are timed in an interleaved order, so background load affects all of them equally. A provider
    that isn't available, or runs no node, is an error: ONNX Runtime itself would fall back silently.
    """
    from onnxprune.benchmarking import benchmark, check, compare
    from onnxprune.cli.models import by_name, read_arrays
    from onnxprune.model.file import load
    from onnxprune.report.benchmark import benchmark_document, benchmark_tables, changes_tables
    from onnxprune.report.documents import to_json

    if max_regression is not None and baseline is None:
        raise PlanError("OP302", "--max-regression needs a baseline: --compare BASELINE.json")
    if output is not None:
        check_output(output, force)
    names = _names(models)
    with out.step("load"):
        loaded = {name: load(path) for name, path in zip(names, models, strict=True)}
    first = loaded[names[0]].proto
    with out.progress() as progress:
        found = benchmark(
            loaded,
            _settings(**settings),
            shapes=by_name(input_shapes, first, "--input-shape", "OP603"),
            inputs=read_arrays(inputs, first) if inputs else None,
            progress=progress,
        )
    changes = () if baseline is None else compare(found, baseline)
    most = 0.05 if max_regression is None else max_regression
    report = benchmark_document(found, changes)
    if output is not None:
        write_text(output, to_json(report))
    out.data(report, benchmark_tables(found), *([changes_tables(changes, most)] if changes else []))
    if found.environment.busy:
        out.warn(f"the machine was busy (load {found.environment.load}): times are too long")
    if output is not None:
        out.note(f"wrote {output}")
    if changes:
        check(changes, most)


def _settings(
    providers: Sequence[str],
    provider_options: Sequence[str],
    batches: Sequence[str] | None,
    **rest: Any,
) -> BenchmarkSettings:
    """Convert options to settings.

    Raises:
        UsageError: a provider isn't known (OP608), or an option can't be read (OP602).
    """
    from onnxprune.benchmarking import parse_provider
    from onnxprune.settings.benchmarking import BenchmarkSettings

    found = [parse_provider(name) for name in providers]
    for text in provider_options:
        found = _with_option(found, text)
    if batches is not None:
        if not all(b.isdecimal() for b in batches):
            raise UsageError("OP602", f"--batch takes whole numbers, not {','.join(batches)}")
        rest["batches"] = tuple(map(int, batches))
    return BenchmarkSettings(providers=tuple(found), **rest)


def _with_option(providers: list[Provider], text: str) -> list[Provider]:
    head, equals, value = text.partition("=")
    name, dot, key = head.rpartition(".")
    if not (equals and dot and key):
        raise UsageError("OP602", f"--provider-option {text!r} is not of the form NAME.KEY=VALUE")
    if not any(name in (p.short, p.name) for p in providers):
        raise UsageError("OP602", f"--provider-option {text!r} names a provider that isn't in --providers")
    return [p.with_option(key, value) if name in (p.short, p.name) else p for p in providers]


def _names(models: Sequence[Path]) -> list[str]:
    """Return the models' file names, or their paths if file names repeat.

    Raises:
        UsageError: a model is given twice (OP602).
    """
    short = [path.name for path in models]
    names = short if len(set(short)) == len(short) else [str(path) for path in models]
    if len(set(names)) < len(names):
        raise UsageError("OP602", "a model is given twice", where=next(n for n in names if names.count(n) > 1))
    return names

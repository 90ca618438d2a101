"""`onnxprune benchmark`: measure and compare the latency of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, check_output, reporting, warn_of_uncertain, write_text
from onnxprune.cli.receipts import receipts
from onnxprune.errors import PlanError, UsageError
from onnxprune.runtime.provider import Provider, parse_provider
from onnxprune.settings import BenchmarkSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune benchmark model.onnx small.onnx                    speed-up
  onnxprune benchmark model.onnx small.onnx --profile          also by operator and layer
  onnxprune benchmark model.onnx --providers cpu,cuda --batch 1,8,64
  onnxprune benchmark model.onnx small.onnx --min-speedup 1.3  fail if it isn't as fast
  onnxprune benchmark model.onnx small.onnx -o base.json       save a baseline, and later:
  onnxprune benchmark model.onnx small.onnx --compare base.json --max-regression 5%
"""


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


@click.command("benchmark", cls=Command, epilog=_EXAMPLES)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(path_type=Path))
@click.option(
    "--providers",
    type=options.list_of("NAME,...", str),
    default=("cpu",),
    help="Execution providers: cpu, cuda, tensorrt, openvino, ... or ONNX Runtime's names of them. [default: cpu]",
)
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="Option of a provider, such as cuda.use_tf32=0. Repeatable.",
)
@click.option(
    "--batch", "batches", type=options.list_of("N,...", _whole), help="Batch sizes. [default: the model's own, or 1]"
)
@options.of(BenchmarkSettings, "given")
@options.input_shapes
@options.inputs
@click.option(
    "--compare",
    "baseline",
    type=click.Path(path_type=Path),
    metavar="BASELINE.json",
    help="Compare with an earlier result, written with -o.",
)
@click.option(
    "--max-regression",
    type=options.SHARE,
    help="With --compare: exit with status 1 if a value is worse than the baseline's by more than this. [default: 5%]",
)
@click.option(
    "--min-speedup",
    type=options.Parsed("FACTOR", options.factor),
    help="Exit with status 1 if a model isn't at least this many times as fast as the first one, timed in turns: 1.3.",
)
@click.option(
    "--max-size",
    type=options.Parsed("SIZE|SHARE", options.file_limit),
    help="Exit with status 1 if a model's file is larger than this: 5MB, or 50% of the first one's. With several "
    "models, the first one isn't limited.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT.json", help="Also write the result as JSON."
)
@options.plot("With --profile and two models: plot the time of the slowest layers.")
@options.force
@receipts()
@reporting
@options.custom_ops
def command(
    models: tuple[Path, ...],
    providers: tuple[str, ...],
    provider_options: tuple[str, ...],
    batches: tuple[int, ...] | None,
    given: dict[str, Any],
    input_shapes: list[Any],
    inputs: list[Any],
    baseline: Path | None,
    max_regression: float | None,
    min_speedup: float | None,
    max_size: tuple[float, bool] | None,
    output: Path | None,
    plot: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Measure the latency of each MODEL, and compare the others with the first.

    Models are timed in an interleaved order, so background load affects all of them equally. A provider that isn't
    available, or that runs no node, is an error; ONNX Runtime would fall back to the CPU silently.
    """
    from onnxprune.benchmarking import benchmark, check, compare
    from onnxprune.cli.models import by_name, read_arrays
    from onnxprune.model.file import load
    from onnxprune.plot import plot_layers
    from onnxprune.report.benchmark import benchmark_document, benchmark_tables, changes_tables
    from onnxprune.report.checks import checks_of
    from onnxprune.report.documents import to_json
    from onnxprune.report.gates import gate_tables
    from onnxprune.workflow.gates import regression_gates, require, size_gates, speed_gates

    if max_regression is not None and baseline is None:
        raise PlanError("OP302", "--max-regression needs a baseline", hint="pass one with --compare")
    if min_speedup is not None and len(models) < 2:
        raise PlanError("OP302", "--min-speedup needs a second model", hint="give the original first")
    if max_size is not None and not max_size[1] and len(models) < 2:
        raise PlanError("OP302", "a share for --max-size needs a second model", hint="give the original first")
    if plot is not None and not (given.get("profile") and len(models) == 2):
        raise PlanError("OP302", "--plot needs the time of layers", hint="compare two models with --profile")
    for file in filter(None, (output, plot)):
        check_output(file, force, inputs=models)
    if batches is not None:
        given["batches"] = batches
    settings = build(BenchmarkSettings, {**given, "providers": _providers(providers, provider_options)})
    names = _names(models)
    with out.step("load"):
        loaded = {name: load(path) for name, path in zip(names, models, strict=True)}
    first = loaded[names[0]].proto
    with out.progress() as progress:
        found = benchmark(
            loaded,
            settings,
            shapes=by_name(input_shapes, first, "--input-shape", "OP603"),
            inputs=read_arrays(inputs, first) if inputs else None,
            progress=progress,
        )
    changes = () if baseline is None else compare(found, baseline)
    most = 0.05 if max_regression is None else max_regression
    gates = (
        *(() if min_speedup is None else speed_gates(found, min_speedup)),
        *(() if max_size is None else size_gates(found, *max_size)),
    )
    slower = regression_gates(changes, most)
    report = benchmark_document(found, changes, [*gates, *slower])
    if output is not None:
        write_text(output, to_json(out.completed(report)))
    if plot is not None:
        case = found.cases[0]
        plot_layers(case.layers, (names[0], names[1]), f"on {case.provider}", plot)
        out.note(f"wrote {plot}")
    tables = [benchmark_tables(found), *([changes_tables(changes, most)] if changes else []), gate_tables(gates)]
    out.data(report, *tables, checks=checks_of([*gates, *slower]))
    if found.environment.busy:
        out.warn(f"the machine was busy (load {found.environment.load}), so the measured times are too long")
    if output is not None:
        out.note(f"wrote {output}")
    if changes:
        check(changes, most)
    require(gates)
    warn_of_uncertain(out, gates)


def _providers(names: Sequence[str], provider_options: Sequence[str]) -> tuple[Provider, ...]:
    """Return providers with their options.

    Raises:
        UsageError: a provider is unknown (OP608), or an option is malformed (OP602).
    """
    found = [parse_provider(name) for name in names]
    for text in provider_options:
        head, equals, value = text.partition("=")
        name, dot, key = head.rpartition(".")
        if not (equals and dot and key):
            raise UsageError("OP602", f"--provider-option {text!r} is not of the form NAME.KEY=VALUE")
        if not any(name in (p.short, p.name) for p in found):
            raise UsageError("OP602", f"--provider-option {text!r} names a provider that isn't in --providers")
        found = [p.with_option(key, value) if name in (p.short, p.name) else p for p in found]
    return tuple(found)


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

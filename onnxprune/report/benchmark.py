"""A benchmark as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from onnxprune.benchmarking.gate import FORMAT, Change
from onnxprune.benchmarking.paid import LayerChange
from onnxprune.benchmarking.result import Benchmark, Case, Result
from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Name,
    change,
    count,
    dims,
    heading,
    line,
    paragraph,
    percent,
    si,
    stack,
    table,
)
from onnxprune.runtime.environment import Environment

_LAYERS = 20
_OPERATORS = 8


def benchmark_tables(found: Benchmark) -> RenderableType:
    """Tabulate a benchmark: its cases, then where it was measured."""
    parts = [part for case in found.cases for part in _case(case, found)]
    return stack(*parts, *_environment(found.environment, found))


def changes_table(changes: Sequence[Change], most: float) -> RenderableType:
    """Tabulate what changed since a baseline."""
    rows = (
        (
            Name(c.model),
            c.provider,
            str(c.batch),
            c.figure,
            _figure(c, c.before),
            _figure(c, c.after),
            line((f"{-c.slower if c.figure == 'speed-up' else c.slower:+.1%}", BAD if c.slower > most else GOOD)),
        )
        for c in changes
    )
    return stack(
        heading("against the baseline", f"at most {most:.1%} worse"),
        table("model ~|provider|batch >|figure|before >|now >|change >", rows),
    )


def _figure(change: Change, value: float) -> str:
    return f"{value:.2f}x" if change.figure == "speed-up" else milliseconds(value)


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds with three significant digits: 0.01234 is "12.3 ms"."""
    value = seconds * 1e3
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f} ms"


def _case(case: Case, found: Benchmark) -> Iterator[RenderableType]:
    shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in case.shapes.items())
    yield heading(f"latency on {case.provider}", f"batch {case.batch}: {shapes}")
    rows = [
        (
            Name(r.model),
            milliseconds(r.latency.median),
            milliseconds(r.latency.p90),
            milliseconds(r.latency.p99),
            f"{si(round(r.throughput))}/s" if r.throughput >= 10 else f"{r.throughput:.2f}/s",
            *_speedup(r.speedup),
        )
        for r in case.results
    ]
    paired = len(case.results) > 1
    columns = "model ~|median >|p90 >|p99 >|samples >" + ("|speed-up >|" if paired else "")
    yield table(columns, rows if paired else [row[:5] for row in rows])
    yield line("")
    yield table(
        "model ~|weights|load >|first run >|peak memory >|file >|runs >"
        + ("|copies in >|out >" if _copied(case) else ""),
        (_once(r, _copied(case)) for r in case.results),
    )
    if paired:
        text = f"Speed-up over {case.results[0].model}, with its {found.settings.confidence:.0%} interval."
        yield paragraph(text, FAINT)
    if any(len(r.placement) > 1 for r in case.results):
        yield from _placement(case)
    for note in case.notes:
        yield paragraph(line(("note: ", CODE), note))
    if found.settings.profile:
        yield from _operators(case.results)
        if case.layers:
            yield from _layers(case.layers)


def _once(result: Result, copied: bool) -> tuple[str | Name, ...]:
    cells = (
        Name(result.model),
        result.weights,
        milliseconds(result.load),
        milliseconds(result.first),
        "?" if result.peak_memory is None else si(result.peak_memory, "B"),
        si(result.file_size, "B"),
        f"{result.latency.runs} in {count(result.latency.rounds, 'turn')}",
    )
    if not copied:
        return cells
    return (*cells, *(("-", "-") if result.copies is None else map(milliseconds, result.copies)))


def _copied(case: Case) -> bool:
    return any(r.copies is not None for r in case.results)


def _speedup(speedup: Estimate | None) -> tuple[str, str]:
    if speedup is None:
        return "", ""
    return f"{speedup.value:.2f}x", f"{speedup.low:.2f} to {speedup.high:.2f}"


def _placement(case: Case) -> Iterator[RenderableType]:
    rows = [(Name(r.model), p.provider, percent(p.nodes), percent(p.time)) for r in case.results for p in r.placement]
    yield heading("who runs it")
    yield table("model ~|provider|nodes >|time >", rows)


def _operators(results: Sequence[Result]) -> Iterator[RenderableType]:
    kinds = list(dict.fromkeys(o.op for r in results for o in r.operators))[:_OPERATORS]
    rows = []
    for kind in kinds:
        own = [next((o for o in r.operators if o.op == kind), None) for r in results]
        cells = (("-", "-") if o is None else (str(o.count), milliseconds(o.seconds)) for o in own)
        rows.append((kind, *(cell for pair in cells for cell in pair)))
    yield heading("time by operator", "as ONNX Runtime runs them, profiled")
    yield table("operator" + "".join(f"|nodes >|{r.model.replace('|', ' ')} >" for r in results), rows)


def _layers(changes: Sequence[LayerChange]) -> Iterator[RenderableType]:
    slow = sorted(changes, key=lambda c: -c.seconds[0])
    rows = (
        (
            Name(c.name),
            "" if not c.shapes[0] else f"{dims(c.shapes[0])} → {dims(c.shapes[1])}",
            change(c.macs[0], c.macs[1]),
            milliseconds(c.seconds[0]),
            milliseconds(c.seconds[1]),
            f"{share_of(c):+.1%}" if c.seconds[0] else "-",
            line((c.reason, CODE)),
        )
        for c in slow[:_LAYERS]
    )
    lost = [c for c in changes if c.paid is False]
    more = f"; {len(changes) - _LAYERS} more with --format json" if len(changes) > _LAYERS else ""
    yield heading("time by layer", f"with what follows each, slowest first{more}")
    yield table("layer ~|weight|MACs >|before >|after >|time >|why it didn't pay ~", rows)
    if lost:
        part = percent(share_of_time(lost, changes))
        yield paragraph(f"Pruning did not pay in {count(len(lost), 'layer')} with {part} of the time before.", FAINT)


def share_of(change: LayerChange) -> float:
    """Return by what share a layer's time changed."""
    return change.seconds[1] / change.seconds[0] - 1


def share_of_time(some: Sequence[LayerChange], of: Sequence[LayerChange]) -> float:
    """Return the share of some layers in the time that all took before."""
    whole = sum(c.seconds[0] for c in of)
    return sum(c.seconds[0] for c in some) / whole if whole else 0.0


def _environment(where: Environment, found: Benchmark) -> Iterator[RenderableType]:
    settings = found.settings
    options = {
        f"{case.provider}: {key}={value}"
        for case in found.cases
        for r in case.results
        for key, value in r.provider_options.items()
    }
    threads = "default" if settings.threads is None else str(settings.threads)
    rows = [
        ("processor", f"{where.cpu}, {count(where.cores, 'core')}"),
        ("GPU", "; ".join(where.gpus)),
        ("clock governor", where.governor or "can't be read"),
        ("load", "?" if where.load is None else f"{where.load}{', busy: times are too long' if where.busy else ''}"),
        ("system", where.system),
        ("ONNX Runtime", where.onnxruntime),
        ("versions", f"Python {where.python}, " + ", ".join(f"{k} {v}" for k, v in where.packages.items())),
        ("session", f"threads {threads}, optimization {settings.level}, arena {'on' if settings.arena else 'off'}"),
        ("process", "one for each model" if settings.isolate else "one for all models"),
        ("provider options", ", ".join(sorted(options))),
    ]
    yield heading("environment", where.date)
    yield table("|~", [(name, text) for name, text in rows if text])


def benchmark_fields(found: Benchmark, changes: Sequence[Change] = ()) -> Mapping[str, Any]:
    """Describe a benchmark; ``format`` grows when what `gate` reads changes its meaning."""
    return {
        "format": FORMAT,
        "hardware": list(found.environment.hardware),
        **asdict(found),
        "changes": [asdict(change) for change in changes],
    }

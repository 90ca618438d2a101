"""A benchmark as tables and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from rich.text import Text

from onnxprune.benchmarking.gate import FORMAT, Change
from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.benchmarking.result import Benchmark, Case, Result
from onnxprune.report.documents import Document, document, fields
from onnxprune.report.labels import Labels
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Cell,
    Name,
    Rows,
    Tables,
    change,
    count,
    dims,
    flexible,
    heading,
    left,
    line,
    milliseconds,
    paragraph,
    percent,
    right,
    share,
    si,
    table,
)
from onnxprune.workflow.gates import Gate

_LAYERS = 20
_OPERATORS = 8


def benchmark_document(found: Benchmark, changes: Sequence[Change] = (), gates: Sequence[Gate] = ()) -> Document:
    """Return the document of a benchmark; a later `compare` reads it, and its ``format`` is about what that reads.

    Args:
        found: the benchmark.
        changes: its changes from a baseline.
        gates: limits on its speed-ups.
    """
    hardware = found.environment.hardware
    return document("benchmark", format=FORMAT, hardware=hardware, **fields(found), changes=changes, gates=gates)


def benchmark_tables(found: Benchmark) -> Tables:
    """Show a benchmark: its cases, then the environment."""
    for case in found.cases:
        yield from _case(case, found)
    yield from _environment(found)


def changes_tables(changes: Sequence[Change], most: float) -> Tables:
    """Show the changes from a baseline; those that are worse by more than ``most`` are marked."""
    rows = (
        (
            Name(c.model),
            c.provider,
            str(c.batch),
            c.figure,
            _figure(c, c.before),
            _figure(c, c.after),
            line((f"{-c.slower if c.figure == 'speed-up' else c.slower:+z.1%}", BAD if c.slower > most else GOOD)),
        )
        for c in changes
    )
    yield heading("against the baseline", f"at most {most:.1%} worse")
    columns = flexible("model") + left("provider") + right("batch") + left("figure") + right("before", "now", "change")
    yield table(columns, rows)


def _figure(change: Change, value: float) -> str:
    return f"{value:.2f}x" if change.figure == "speed-up" else milliseconds(value)


def _case(case: Case, found: Benchmark) -> Tables:
    shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in case.shapes.items())
    yield heading(f"latency on {case.provider}", f"batch {case.batch}: {shapes}")
    paired = len(case.results) > 1
    columns = flexible("model") + right("median", "p90", "p99", "samples")
    timings = [_timings(r, paired) for r in case.results]
    yield table(columns + right("speed-up") + left("") if paired else columns, timings)
    yield line("")
    copied = any(r.copies is not None for r in case.results)
    columns = flexible("model") + left("weights") + right("load", "first run", "peak memory", "file", "runs")
    yield table(columns + right("copies in", "out") if copied else columns, [_once(r, copied) for r in case.results])
    if paired:
        text = f"Speed-up over {case.results[0].model}, with its {found.settings.confidence:.0%} interval."
        yield paragraph(text, FAINT)
    if any(len(r.placement) > 1 for r in case.results):
        rows = [
            (Name(r.model), p.provider, percent(p.nodes), percent(p.time)) for r in case.results for p in r.placement
        ]
        yield heading("placement", "share of nodes and time of each provider")
        yield table(flexible("model") + left("provider") + right("nodes", "time"), rows)
    for note in case.notes:
        yield paragraph(line(("note: ", CODE), note))
    if found.settings.profile:
        yield from _operators(case.results)
        if case.layers:
            yield from _layers(case.layers)


def _timings(result: Result, paired: bool) -> Sequence[Cell]:
    latency, speedup = result.latency, result.speedup
    rate = f"{si(round(result.throughput))}/s" if result.throughput >= 10 else f"{result.throughput:.2f}/s"
    cells: tuple[Cell, ...] = (Name(result.model), *map(milliseconds, (latency.median, latency.p90, latency.p99)), rate)
    if not paired:
        return cells
    return *cells, *((f"{speedup.value:.2f}x", f"{speedup.low:.2f} to {speedup.high:.2f}") if speedup else ("", ""))


def _once(result: Result, copied: bool) -> Sequence[Cell]:
    cells: tuple[Cell, ...] = (
        Name(result.model),
        result.weights,
        milliseconds(result.load),
        milliseconds(result.first),
        "?" if result.peak_memory is None else si(result.peak_memory, "B"),
        si(result.file_size, "B"),
        f"{result.latency.runs} in {count(result.latency.rounds, 'round')}",
    )
    if not copied:
        return cells
    return *cells, *(("-", "-") if result.copies is None else map(milliseconds, result.copies))


def _operators(results: Sequence[Result]) -> Tables:
    kinds = list(dict.fromkeys(o.op for r in results for o in r.operators))[:_OPERATORS]
    rows = []
    for kind in kinds:
        own = [next((o for o in r.operators if o.op == kind), None) for r in results]
        cells = (("-", "-") if o is None else (str(o.count), milliseconds(o.seconds)) for o in own)
        rows.append((kind, *(cell for pair in cells for cell in pair)))
    yield heading("time by operator", "as ONNX Runtime runs them, profiled")
    yield table(left("operator") + right(*(title for r in results for title in ("nodes", r.model))), rows)


def _layers(changes: Sequence[LayerChange]) -> Tables:
    slow = sorted(changes, key=lambda c: -c.seconds[0])[:_LAYERS]
    letters = dict(zip(dict.fromkeys(c.reason for c in slow if c.reason), ascii_lowercase, strict=False))
    labels = Labels.numbered({c.name: c.number for c in changes if c.number})
    rows: Rows = (
        (
            labels.name(c.name),
            "" if not c.shapes[0] else f"{dims(c.shapes[0])} → {dims(c.shapes[1])}",
            change(*c.macs),
            *map(milliseconds, c.seconds),
            f"{c.seconds[1] / c.seconds[0] - 1:+z.1%}" if c.seconds[0] else "-",
            Text(letters.get(c.reason, ""), CODE),
        )
        for c in slow
    )
    more = f"; {len(changes) - _LAYERS} more in the JSON output" if len(changes) > _LAYERS else ""
    yield heading("time by layer", f"each with the operators up to the next, slowest first{more}")
    yield from labels.note()
    figures = right("MACs", "before", "after", "time")
    yield table(flexible("layer") + left("weight") + figures + left(""), rows)
    if lost := [c for c in changes if c.paid is False]:
        part = percent(share(sum(c.seconds[0] for c in lost), sum(c.seconds[0] for c in changes)))
        text = f"Pruning didn't pay off in {count(len(lost), 'layer')} with {part} of the time before:"
        yield paragraph(f"{text} the time fell by less than half the share that the MACs fell by.", FAINT)
        yield table(left("") + flexible(""), [(Text(letter, CODE), reason) for reason, letter in letters.items()])


def _environment(found: Benchmark) -> Tables:
    where, settings = found.environment, found.settings
    options = {
        f"{case.provider}: {key}={value}"
        for case in found.cases
        for r in case.results
        for key, value in r.provider_options.items()
    }
    threads = "default" if settings.threads is None else str(settings.threads)
    busy = ", busy: times are too long" if where.busy else ""
    rows = [
        ("processor", f"{where.cpu}, {count(where.cores, 'core')}"),
        ("GPU", "; ".join(where.gpus)),
        ("clock governor", where.governor or "unknown"),
        ("load", "unknown" if where.load is None else f"{where.load}{busy}"),
        ("system", where.system),
        ("ONNX Runtime", where.onnxruntime),
        ("versions", f"Python {where.python}, " + ", ".join(f"{k} {v}" for k, v in where.packages.items())),
        ("session", f"threads {threads}, optimization {settings.level}, arena {'on' if settings.arena else 'off'}"),
        ("process", "one for each model" if settings.isolate else "one for all models"),
        ("provider options", ", ".join(sorted(options))),
    ]
    yield heading("environment", where.date)
    yield table(left("") + flexible(""), [(name, text) for name, text in rows if text])

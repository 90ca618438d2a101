"""Which commands work on which models, by exporter and task: ``python -m benchmarks.compatibility``.

Every model goes through the commands as a user would run them, with generated data, in processes of their own. Results
are kept in the JSON file; a run that was stopped goes on with the models that are missing. Packages that hold models
take part where they are installed (the ``bench`` extra); nothing of theirs is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import onnx

from benchmarks.common import DOCS, ROOT, Column, Report, Table, chosen, log
from benchmarks.packages import packaged
from benchmarks.zoo import FAMILIES
from onnxprune.report.layout import percent

CASES = ROOT.parent / "shared" / "cases"

# By the beginning of the name; the first that fits.
TASKS: Mapping[str, tuple[str, ...]] = {
    "image classification": (
        *("cifar", "mobilenet", "squeezenet", "mlptiny_resnet8", "winml", "mnist", "convnext", "densenet"),
        *("efficientnet", "resnet", "resnext", "shufflenet", "vit", "light_", "ch_ppocr_mobile_v2.0_cls"),
    ),
    "detection": ("ultraface", "yunet", "yolo", "320n", "640m", "ch_PP-OCRv4_det", "best"),
    "text recognition": ("ch_PP-OCRv4_rec",),
    "pose": ("fsanet",),
    "style transfer": ("fns",),
    "audio": ("basic_pitch", "mlptiny_kws"),
    "speech enhancement": ("dtln", "gtcrn"),
    "voice activity": ("silero",),
    "bytes": ("magika",),
    "text embedding": ("all_minilm",),
}

NOTES = (
    "Each model goes through the commands as a user would run them: `inspect`; `prune --target macs=50%` with its "
    "proof; the same with `--data random --allocation uniform`, which repairs; `finetune` of the result for one epoch "
    "on 4 synthetic inputs, with the original as teacher; and `evaluate --against`. *yes* means that the command "
    "succeeded, for `prune` that the result is proved. A code is that of the error; *time* means more than the time "
    "allowed, *bug* an exception that isn't an error of the tool.",
    "Where half of the MACs is out of reach (OP301), the smallest possible target is taken. The last table has the "
    "causes. Models that aren't trained have seeded random weights. See [coverage](coverage.md) for what is pinned, "
    "and `onnxprune explain CODE` for the codes. The models of ../shared/cases are the smallest ones of kinds that an "
    "earlier version got wrong; they come with data where these matter.",
)


@dataclass(frozen=True, slots=True)
class Step:
    """The end of a command.

    Attributes:
        end: "yes", "time", "bug", or the code of the error.
        cause: the error's cause.
    """

    end: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Results of a model.

    Attributes:
        model: its name.
        source: where it comes from.
        exporter: who wrote the file.
        task: what it does.
        prunable: share of its parameters that can be removed; None if it can't be read.
        macs: share of the MACs that is left, None if it wasn't pruned.
        steps: the end of each command.
    """

    model: str
    source: str
    exporter: str
    task: str
    prunable: float | None
    macs: float | None
    steps: Mapping[str, Step] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Compatibility:
        """Return a result that was read from JSON."""
        steps = {name: Step(**step) for name, step in stored["steps"].items()}
        return cls(**{**stored, "steps": steps})


COMMANDS = ("inspect", "prune", "repair", "finetune", "evaluate")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is tried.

    Attributes:
        name: its name.
        source: where it comes from.
        proto: the model.
        data: its inputs, for the option ``--data``.
    """

    name: str
    source: str
    proto: onnx.ModelProto
    data: str = "random"

    @property
    def key(self) -> str:
        """What identifies it."""
        return f"{self.source}/{self.name}"


def candidates(folder: Path) -> Iterator[Candidate]:
    """Yield everything that is present; small models that need to be written first are written to a folder."""
    for family in FAMILIES:
        for name, path in family.models().items():
            yield Candidate(name, family.where, family.read(path))
    for name, package, proto in packaged():
        yield Candidate(name, package, proto)
    for script in sorted(CASES.glob("*.py")):
        subprocess.run([sys.executable, script.resolve()], cwd=folder, check=True)
        data = folder / f"{script.stem}.npz"
        proto = onnx.load(folder / f"{script.stem}.onnx")
        yield Candidate(script.stem, "../shared/cases", proto, str(data) if data.exists() else "random")


def walk(candidate: Candidate, seconds: float) -> Compatibility:
    """Run all commands on a model."""
    name, source, model = candidate.name, candidate.source, candidate.proto
    steps: dict[str, Step] = {}
    prunable = macs = None
    with tempfile.TemporaryDirectory() as folder:
        paths = {part: Path(folder) / f"{part}.onnx" for part in ("model", "pruned", "repaired", "tuned")}
        onnx.save(model, paths["model"])

        def run(step: str, *args: object) -> dict[str, Any] | None:
            command = [sys.executable, "-m", "onnxprune", *map(str, args), "--format", "json"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                steps[step] = Step("time", f"more than {seconds:.0f} s")
                return None
            try:
                found: dict[str, Any] = json.loads(done.stdout)
            except ValueError:
                steps[step] = Step("bug", " ".join((done.stdout + done.stderr)[-300:].split()))
                return None
            if done.returncode:
                steps[step] = Step(
                    found.get("code") or "bug", " ".join(str(found.get("cause", done.stderr[-300:])).split())
                )
                return None
            steps[step] = Step("yes")
            return found

        seen = run("inspect", "inspect", paths["model"])
        if seen is not None:
            prunable = seen["prunable"]["share"]
        for target in ("macs=0.5", "macs=0.75", "macs=0.9"):
            made = run("prune", "prune", paths["model"], "-o", paths["pruned"], "--target", target)
            if steps["prune"].end != "OP301":
                break
        if made is not None:
            macs = made["cost"]["after"]["macs"] / max(1, made["cost"]["before"]["macs"])
            data = ("--data", candidate.data, "--limit", "4", "--seed", "0")
            budget = ("--target", target, "--allocation", "uniform")
            run("repair", "prune", paths["model"], "-o", paths["repaired"], *budget, *data)
            teach = ("--teacher", paths["model"], "--epochs", "1", "--batch", "2", "--hold-out", "0")
            run("finetune", "finetune", paths["pruned"], "-o", paths["tuned"], *teach, *data)
            run("evaluate", "evaluate", paths["pruned"], "--against", paths["model"], *data)
    exporter = f"{model.producer_name or 'unknown'} {model.producer_version}".strip()
    task = next((task for task, names in TASKS.items() if name.startswith(names)), "other")
    return Compatibility(name, source, exporter, task, prunable, macs, steps)


def report(results: Sequence[Compatibility], settings: Mapping[str, Any]) -> Report:
    """Return the page."""
    counts = {step: Counter(r.steps[step].end for r in results if step in r.steps) for step in COMMANDS}

    def cell(step: str, result: Compatibility) -> str:
        return result.steps[step].end if step in result.steps else "-"

    def share(value: float | None) -> str:
        return "-" if value is None else percent(value)

    def of(step: str) -> Column[Compatibility]:
        return Column(step, lambda result: cell(step, result), text=True)

    columns: list[Column[Compatibility]] = [
        Column("model", lambda r: r.model, text=True),
        Column("exporter", lambda r: r.exporter, text=True),
        Column("task", lambda r: r.task, text=True),
        Column("prunable", lambda r: share(r.prunable)),
        Column("MACs left", lambda r: share(r.macs)),
        *map(of, COMMANDS),
    ]
    sources = list(dict.fromkeys(r.source for r in results))
    tables = [Table.of(source, columns, [r for r in results if r.source == source]) for source in sources]
    failed = [(r.model, step, s.end, s.cause) for r in results for step, s in r.steps.items() if s.end != "yes"]
    causes: list[Column[tuple[str, str, str, str]]] = [
        Column(header, lambda row, i=i: row[i].replace("|", "/"), text=True)  # type: ignore[misc]
        for i, header in enumerate(("model", "command", "end", "cause"))
    ]
    tables.append(Table.of("What failed, and why", causes, failed))
    totals = ", ".join(f"{step} {c['yes']} of {c.total()}" for step, c in counts.items())
    notes = (f"Of {len(results)} models: {totals}.", *NOTES)
    page = "compatibility.md"
    title = "Which commands work on which models"
    return Report("compatibility", title, notes, tables, settings, {"models": list(results)}, page=page)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option("--only", metavar="PATTERN", default="*", help="Only models with matching names; writes nothing.")
@click.option("--seconds", default=300.0, show_default=True, help="Time allowed for each command.")
@click.option("--again", is_flag=True, help="Forget earlier results.")
def main(output: Path, only: str, seconds: float, again: bool) -> None:
    """Run the commands on every model that is present."""
    store = output / "benchmarks" / "compatibility.json"
    known: dict[str, Compatibility] = {}
    if store.exists() and not again and only == "*":
        stored = json.loads(store.read_text(encoding="utf-8"))["results"]["models"]
        known = {f"{entry['source']}/{entry['model']}": Compatibility.of(entry) for entry in stored}
    settings = {"seconds": seconds, "clock": "wall"}
    results: list[Compatibility] = []
    with tempfile.TemporaryDirectory() as folder:
        every = list(candidates(Path(folder)))
        names = set(chosen([candidate.name for candidate in every], only))
        for candidate in every:
            if candidate.name not in names:
                continue
            found = known.get(candidate.key) or walk(candidate, seconds)
            results.append(found)
            log.print(f"{found.model}: {' '.join(f'{step}={s.end}' for step, s in found.steps.items())}")
            if only == "*":
                report(results, settings).write(output)
    report(results, settings).publish(output, whole=only == "*")


if __name__ == "__main__":
    main()

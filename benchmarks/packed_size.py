"""One budget on the packed file, for channels and zeros together and for zeros alone: what each leaves of accuracy.

What is measured is kept in a file (`--state`), so that an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

import onnxprune as op
from benchmarks.common import ROOT, Column, Kept, Report, Table, options, with_state
from benchmarks.recovery_cases import SEED, SUBJECTS
from onnxprune.data import Dataset
from onnxprune.report.layout import percent

SIZES: Mapping[str, tuple[str, ...]] = {
    "digits": ("8%", "5%"),
    "mlptiny_kws_dscnn": ("40%", "25%"),
    "cifar_resnet20_ts": ("25%", "10%"),
}
WAYS = ("channels first", "zeros only")

NOTES = (
    "`sparsify --packed-size` with 512 samples without labels (digits: of its training images, keyword spotting: 250), "
    "as it is and with `--no-channels`. *Size* is the packed file, of the given file's bytes. *Channels* is the share "
    "of the weights' bytes that left with them, chosen on a part of the samples. Top-1 is on samples that nothing was "
    "fitted to, with the change against the given model and its 95 % interval.",
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a way leaves.

    Attributes:
        model: the network.
        size: what was asked for.
        way: the way.
        packed: packed bytes as a share of the file.
        channels: the share of the weights' bytes that left with channels.
        zeros: the share of zeros in the rest.
        macs: the share of MACs that is left.
        top1: accuracy.
        change: its change, with its interval.
    """

    model: str
    size: str
    way: str
    packed: float
    channels: float
    zeros: float
    macs: float
    top1: float
    change: tuple[float, float, float]


def subject(name: str) -> tuple[Path, Dataset, Dataset]:
    """Return a model, samples to solve on, and others that judge."""
    if name == "digits":
        path = ROOT / "models" / "digits_resnet.onnx"
        data = [op.open_data(ROOT / "models" / f"digits_{part}.npz", op.load(path).proto) for part in ("train", "test")]
        return path, data[0], data[1]
    found = next(s for s in SUBJECTS if s.name == name)
    calibration, judged = found.data(op.analyze(found.path))
    return found.path, calibration["own"], list(judged.values())[-1]


def measured(name: str, size: str, way: str) -> Found:
    """Make a network sparse and judge it."""
    path, work, judged = subject(name)
    made = op.sparsify(path, packed_size=size, channels=way == WAYS[0], data=work, seed=SEED, threads=1)
    score = op.evaluate(made.model.proto, judged, against=path, metrics=("top1",), seed=SEED)["top1"]
    assert score.difference is not None
    change = score.difference.value, score.difference.low, score.difference.high
    plan = None if made.pruned is None else made.pruned.plan
    best = min(made.tried, key=lambda each: each.error, default=None)
    return Found(
        name,
        size,
        way,
        made.sizes["packed"][1] / made.sizes["file"][0],
        0.0 if best is None else best.channels,
        made.zeros,
        1.0 if plan is None else plan.after["macs"] / plan.before["macs"],
        score.model.value,
        change,
    )


@click.command()
@options
@with_state
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None) -> None:
    """Meet packed sizes with channels and zeros, and with zeros alone."""
    everything = {f"{n}/{s}/{w}": (n, s, w) for n, sizes in SIZES.items() for s in sizes for w in WAYS}
    found = Kept(Found, state).measure(list(everything), only, lambda case: measured(*everything[case]))
    columns: list[Column[Found]] = [
        Column("size asked", lambda f: f.size, True),
        Column("way", lambda f: f.way, True),
        Column("size", lambda f: percent(f.packed)),
        Column("channels", lambda f: percent(f.channels)),
        Column("zeros in the rest", lambda f: percent(f.zeros)),
        Column("MACs", lambda f: percent(f.macs)),
        Column("top-1", lambda f: percent(f.top1)),
        Column("change", lambda f: "{:+.1f} pt ({:+.1f} to {:+.1f})".format(*(100 * v for v in f.change))),
    ]
    tables = [
        Table.of(name, columns, [f for f in found if f.model == name]) for name in dict.fromkeys(f.model for f in found)
    ]
    title = "A packed size for channels and zeros"
    report = Report("packed_size", title, NOTES, tables, {"clock": clock}, {"cases": found})
    report.publish(output, whole=only == "*" or state is not None)


if __name__ == "__main__":
    main()

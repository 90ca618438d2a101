"""What other bases and merging tokens bring a vision transformer: ``python -m benchmarks.tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

import onnxprune as op
from benchmarks.common import ROOT, Column, Kept, Report, Table, options, with_state
from benchmarks.tokens_network import BLOCKS, EPOCHS, PATCH, SIZE, WIDTH, export, prepared, trained
from onnxprune.report.layout import percent
from onnxprune.workflow.axes import in_words

_DATA = ROOT.parent / "shared" / "data" / "mnist_6000.npz"
_TRAINED, _CALIBRATION = 4500, 512
SHARES = (0.75, 0.5, 0.3, 0.2, 0.1)
AXES = ("channels", "channels,basis", "tokens", "channels,tokens", "channels,basis,tokens")
_REACHED = 0.3  # by tokens alone

NOTES = (
    f"A vision transformer of {BLOCKS} blocks of width {WIDTH}, on {(SIZE // PATCH) ** 2} patches and a class token, "
    f"is trained with PyTorch on {_TRAINED:,} handwritten digits for {EPOCHS} epochs and exported. `prune --data` "
    f"brings it to a share of its MACs along the axes that are named, with {_CALIBRATION} of these images, without "
    "labels, and repairs it. All that is chosen (channels, whether and where tokens merge, and in which blocks) is "
    "chosen on these images. The other 1,500 judge the result.",
    "*Basis* lets the residual stream have another basis before channels are removed. *Top-1* and *agreement* (the "
    "share of answers that equal the original's) have intervals of 95 %. *Change* is that of top-1 on the same images, "
    "in points. *Tried* are the points that were compared on images held back from the repair, by the divergence from "
    "the original's predictions in nats; `tokens 2x2` has the means of blocks of 2x2 patches behind some block.",
)

Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Found:
    """What is left along some axes.

    Attributes:
        asked: the share of MACs that was asked for; 1 for the original.
        axes: the axes.
        macs: the share that is left.
        taken: what was taken.
        tried: what was compared, with its error.
        top1: accuracy with its interval.
        change: its change, with its interval.
        agreement: with the original, with its interval.
    """

    asked: float
    axes: str
    macs: float
    taken: str
    tried: str
    top1: Interval
    change: Interval
    agreement: Interval


def network(path: Path, images: NDArray[np.float32], labels: NDArray[np.int64]) -> onnx.ModelProto:
    """Return the trained network: the one in a file, or one that is trained and written there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        export(trained(images, labels), path, dynamo=True)
    return onnx.load(path)


def measured(model: onnx.ModelProto, name: str, data: Mapping[str, Mapping[str, NDArray[Any]]]) -> Found:
    """Prune along some axes, and judge the result."""
    share, _, axes = name.partition("/")
    source = op.analyze(model)
    calibration, judged = (op.open_data(data[part], model, seed=0) for part in ("calibration", "judged"))
    if axes == "none":
        proto, taken, tried, macs = source.original, "the original", "", 1.0
    else:
        target = op.Target("macs", float(share))
        plan = op.plan(source, target=target, data=calibration, axes=tuple(axes.split(",")))
        small = op.prune(source, plan)
        op.repair(small, calibration)
        proto, taken = small.proto, " and ".join([*in_words(plan.moves), *(["channels"] if plan.removed else [])])
        tried = ", ".join(f"{_words(point)} {point['error']:.3g}" for point in plan.settings.get("tried", ()))
        macs = plan.after["macs"] / plan.before["macs"]
    found = op.evaluate(proto, judged, against=source.original, seed=0)
    top1, agreement, change = found["top1"].model, found["agreement"].model, found["top1"].difference
    assert change is not None
    intervals = ((e.value, e.low, e.high) for e in (top1, change, agreement))
    return Found(float(share), axes, macs, taken, tried, *intervals)


def _words(point: Mapping[str, Any]) -> str:
    blocks = sorted(f"tokens {rows}x{columns}" for rows, columns in point["tokens"].values())
    return " ".join(blocks) or "channels"


def _interval(value: Interval, unit: str = " %") -> str:
    middle, low, high = (100 * v for v in value)
    return f"{middle:.1f}{unit} ({low:.1f} to {high:.1f})"


def tables(found: list[Found]) -> list[Table]:
    """Return one table."""
    columns: list[Column[Found]] = [
        Column("MACs asked", lambda f: percent(f.asked)),
        Column("axes", lambda f: f.axes, True),
        Column("MACs left", lambda f: percent(f.macs)),
        Column("taken", lambda f: f.taken, True),
        Column("top-1", lambda f: _interval(f.top1)),
        Column("change", lambda f: _interval(f.change, "")),
        Column("agreement", lambda f: _interval(f.agreement)),
        Column("tried", lambda f: f.tried, True),
    ]
    return [Table.of("Axes, on digits", columns, found)]


@click.command()
@options
@with_state
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "tokens.onnx",
    help="File of the network; it is trained if missing.",
)
def main(output: Path, only: str, repeats: int, clock: str, state: Path | None, model: Path) -> None:
    """Measure what other bases and merging tokens bring."""
    stored = np.load(_DATA)
    images, labels = prepared(stored["images"]), stored["labels"]
    order = np.random.default_rng(0).permutation(len(images))
    first, last = order[:_TRAINED], order[_TRAINED:]
    proto = network(model, images[first], labels[first])
    data = {
        "calibration": {"image": images[first[:_CALIBRATION]]},
        "judged": {"image": images[last], "labels": labels[last]},
    }
    cases = [(share, axes) for share in SHARES for axes in AXES if axes != "tokens" or share >= _REACHED]
    names = ["1/none", *(f"{share}/{axes}" for share, axes in cases)]
    found = Kept(Found, state).measure(names, only, lambda name: measured(proto, name, data))
    settings = {"clock": clock, "shares": SHARES, "epochs": EPOCHS, "calibration": _CALIBRATION}
    report = Report("tokens", "A vision transformer", NOTES, tables(found), settings, {"found": found})
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()

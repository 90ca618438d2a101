"""What numbers of channels cost on this processor: ``python -m benchmarks.blocks``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from benchmarks.common import Column, Report, Table, log, options
from benchmarks.recovery_cases import SHARED
from onnxprune.benchmarking.session import TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import speedups
from onnxprune.evaluation import Estimate
from onnxprune.runtime.provider import CPU, Provider

_WIDTHS = (16, 20, 24, 28, 32, 40, 48, 56, 64)
_REFERENCE = 32
_LAYERS, _SIZE = 8, 32
_SHARES, _MULTIPLES = (0.85, 0.7), (4, 8, 16)

NOTES = (
    f"*Layers* are {_LAYERS} convolutions of 3x3 in a row, with as many channels in as out, on images of {_SIZE} x "
    f"{_SIZE} pixels: their speed relative to {_REFERENCE} channels, timed in turns, and the multiply-accumulates.",
    "*A pruned network* is a ResNet-56 for CIFAR-10 of which the same share of every layer is removed, with channels "
    "in multiples: its speed against the whole network, both in float and both in INT8.",
    "One thread of ONNX Runtime's CPU provider. With AVX-512 it lays channels out in blocks of 16, which is why "
    "`shrink` keeps such multiples on processors that have it.",
)


@dataclass(frozen=True, slots=True)
class Width:
    """The speed of layers of a width, relative to that of the reference."""

    channels: int
    speed: Estimate


@dataclass(frozen=True, slots=True)
class Pruned:
    """The speed of a pruned network against the whole one, in float and in INT8."""

    multiple: int
    macs: float
    float32: Estimate
    int8: Estimate


def layers(channels: int) -> ModelProto:
    """Return convolutions in a row."""
    rng, shape = np.random.default_rng(0), (channels, channels, 3, 3)
    weights = [numpy_helper.from_array(rng.normal(0, 0.05, shape).astype(np.float32), f"w{i}") for i in range(_LAYERS)]
    nodes = []
    for i in range(_LAYERS):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"y{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"], name=f"relu{i}"))
    sizes: list[str | int | None] = ["n", channels, _SIZE, _SIZE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x0", f"x{_LAYERS}")]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def timed(models: list[ModelProto]) -> list[Estimate]:
    """Return the speed of models relative to the first."""
    rng, subjects = np.random.default_rng(0), []
    for model in models:
        entry = model.graph.input[0]
        shape = [1, *(d.dim_value for d in entry.type.tensor_type.shape.dim[1:])]
        feeds: Any = {entry.name: rng.normal(size=shape).astype(np.float32)}
        subjects.append(TimedSession(model, feeds, SessionSettings(Provider(CPU), 1)))
    return speedups(subjects)


def widths() -> list[Width]:
    """Return the speeds of layers."""
    others = [channels for channels in _WIDTHS if channels != _REFERENCE]
    found = timed([layers(channels) for channels in (_REFERENCE, *others)])
    return [Width(channels, speed) for channels, speed in zip(others, found, strict=True)]


def pruned() -> Iterator[Pruned]:
    """Yield the speeds of a pruned network."""
    path, data = SHARED / "models/cifar_resnet56_dynamo.onnx", SHARED / "data/cifar10_calib4660.npz"
    if not (path.is_file() and data.is_file()):
        return

    def int8(model: ModelProto) -> ModelProto:
        form: dict[str, Any] = {"kind": ("static",), "calibration": "minmax", "timed": False, "max_error": 1.0}
        return op.quantize(model, data=data, limit=64, **form).model.proto

    whole = op.clean(path).model.proto
    whole8 = int8(whole)
    for share in _SHARES:
        for multiple in _MULTIPLES:
            log.print(f"{share:.0%} of the MACs, multiples of {multiple}", style="dim")
            limits = op.Constraints(round_to=multiple)
            plan = op.plan(whole, target=op.Target("macs", share), allocation="uniform", constraints=limits)
            small = op.prune(whole, plan=plan).proto
            yield Pruned(
                *(multiple, plan.after["macs"] / plan.before["macs"]),
                *(timed([whole, small])[0], timed([whole8, int8(small)])[0]),
            )


def _shown(speed: Estimate) -> str:
    return f"{speed.value:.2f}x ({speed.low:.2f} to {speed.high:.2f})"


@click.command()
@options
def main(output: Path, only: str, repeats: int, clock: str) -> None:
    """Time layers and networks of several numbers of channels."""
    single, networks = widths(), list(pruned())
    columns: list[Column[Width]] = [
        Column("channels", lambda w: str(w.channels)),
        Column("MACs", lambda w: f"{(w.channels / _REFERENCE) ** 2:.2f}"),
        Column("speed", lambda w: _shown(w.speed)),
    ]
    of_networks: list[Column[Pruned]] = [
        Column("MACs", lambda p: f"{p.macs:.2f}"),
        Column("multiples of", lambda p: str(p.multiple)),
        Column("float", lambda p: _shown(p.float32)),
        Column("INT8", lambda p: _shown(p.int8)),
    ]
    tables = [Table.of("Layers", columns, single), Table.of("A pruned network", of_networks, networks)]
    settings = {"clock": "wall", "threads": 1, "layers": _LAYERS, "size": _SIZE}
    found = {"widths": single, "networks": networks}
    Report("blocks", "Numbers of channels", NOTES, tables, settings, found).publish(output, whole=only == "*")


if __name__ == "__main__":
    main()

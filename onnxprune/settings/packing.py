"""How to pack a model, and how to unpack one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.pruning import READING, DataSettings
from onnxprune.settings.running import RunSettings
from onnxprune.settings.types import Share


@dataclass(frozen=True, slots=True)
class PackSettings(Settings):
    """How to pack a model."""

    _rules: ClassVar = (
        Rule(
            "clusters",
            ["direct", "bit_price", "max_drop", "keep", "data"],
            "{other} is for weights that share values",
            "set their number with {first}",
            forbids=False,
        ),
        Rule(
            "data", [*READING, "max_drop"], "{other} needs inputs", "give some with {first}; labels are optional", False
        ),
    )

    clusters: int | None = setting(
        None,
        "Let the weights of each tensor share this many values, zero included, and of the inputs (`data`) judge what "
        "that loses. Zeros stay zeros.",
        at_least=2,
        at_most=256,
        shown="weights stay as they are, and nothing is lost",
    )
    bit_price: float | None = setting(
        None,
        "With `clusters`: what a bit of a weight costs, relative to the mean square of the tensor's weights. The "
        "higher it is, the more weights become zero, and the smaller is the file.",
        at_least=0,
        shown="0.05 with `data`, else 0",
    )
    direct: bool = setting(
        False,
        "With `clusters`: write an ONNX file that ONNX Runtime loads as it is, of indices and codebooks, in place of a "
        "packed one.",
    )
    max_drop: Share | None = setting(
        None,
        "Allow this drop in accuracy, or without labels this disagreement with the model; if more is lost, nothing is "
        "written.",
        at_least=0,
        below=1,
    )
    keep: tuple[str, ...] = setting(
        (), "Leave weights that match this pattern, or whose nodes do, as they are.", metavar="PATTERN"
    )
    samples: DataSettings = setting(DataSettings, "Inputs.")
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1)
    seed: int = setting(0, "Random seed.", at_least=0)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")


@dataclass(frozen=True, slots=True)
class UnpackSettings(Settings):
    """How to unpack a model."""

    max_size: int | None = setting(
        None,
        "Refuse to write more bytes than this.",
        at_least=1,
        metavar="BYTES",
        shown="256 MiB, or a thousand times the packed file if that is more",
    )

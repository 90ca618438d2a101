"""How to store and compute a model in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.pruning import DataSettings
from onnxprune.settings.running import RunSettings

Kind = Literal["static", "dynamic", "int8-weights", "int4-weights", "float16"]
Calibration = Literal["minmax", "percentile", "entropy"]

FORMS: Mapping[Kind, str] = {
    "static": "INT8 weights and activations",
    "dynamic": "INT8, scales of activations at run time",
    "int8-weights": "INT8 weights, products in blocks of them",
    "int4-weights": "INT4 weights, products in blocks of them",
    "float16": "half the bits",
}
"""What each kind is."""


@dataclass(frozen=True, slots=True)
class QuantizeSettings(Settings):
    """How to quantize a model."""

    _rules: ClassVar = (
        Rule(
            "form",
            ["kind", "calibration", "weight_bits"],
            "{first} says which form, so {other} has no effect",
            "drop one",
        ),
        Rule("data", ["calibration", "preprocess", "limit", "labels"], "{other} needs inputs", "give {first}", False),
    )

    kind: tuple[Kind, ...] = setting(
        (),
        f"Kind of numbers: {', '.join(f'{kind} ({what})' for kind, what in FORMS.items())}.",
        shown="all, and the best is kept",
    )
    objective: Literal["latency", "size"] = setting(
        "latency",
        "What the best kind is: the fastest that is faster than the model, or the smallest that isn't slower.",
    )
    timed: bool = setting(
        True, "Leave out what isn't faster on this machine; else the smallest form within the error is the best."
    )
    max_error: float | None = setting(
        None,
        "Largest squared error of the outputs, relative to their variance.",
        at_least=0,
        shown="what a shift of the images by one pixel does to the model's own outputs, or noise of 1% in other inputs",
    )
    calibration: Calibration | Literal["auto"] = setting(
        "auto",
        "How ranges of activations are found for static: their extremes, a percentile, or by entropy; auto takes the "
        "one with the smallest error.",
    )
    weight_bits: int | None = setting(
        None,
        "Bits of INT8 weights: 7 where a processor's sums of 16 bits overflow (x86 without VNNI), else 8.",
        at_least=7,
        at_most=8,
        shown="those with the smaller error on this machine",
    )
    form: Any = setting(
        None,
        "Make this form only, as the metadata of a quantized model describes it, whatever it takes in time.",
        by_hand=True,
    )
    keep: tuple[str, ...] = setting((), "Keep nodes whose name matches in float.", metavar="PATTERN")
    samples: DataSettings = setting(DataSettings, "Inputs.")
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1)
    seed: int = setting(0, "Random seed.", at_least=0)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")

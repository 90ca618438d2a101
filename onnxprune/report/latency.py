"""What a target on latency came to: predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from onnxprune.report.benchmark import milliseconds
from onnxprune.report.layout import FAINT, count, heading, paragraph, stack, table


def latency_table(found: Mapping[str, Any]) -> RenderableType:
    """Tabulate how the latency was predicted and measured.

    Args:
        found: the field "latency" of a plan's settings, as `onnxprune.latency.Found.fields` writes it.
    """
    original, measured = found["original_seconds"], found["measured_share"]
    rows = [
        ("original", milliseconds(original), "", ""),
        ("predicted", milliseconds(original * found["predicted_share"]), f"{found['predicted_share']:.1%}", ""),
        (
            "measured",
            milliseconds(original * measured["value"]),
            f"{measured['value']:.1%}",
            f"{measured['low']:.1%} to {measured['high']:.1%}",
        ),
    ]
    layers = found["layers"]
    note = (
        f"{count(layers['measured'], 'layer')} measured, {layers['known']} known from before;"
        f" {count(len(found['tries']), 'plan')} measured as a whole."
        f" Layers still read {found['importance_kept']:.1%} of the importance."
    )
    return stack(
        heading("latency", f"on {found['provider']}"),
        table("|median >|of the original >|95% interval >", rows),
        paragraph(note, FAINT),
    )

"""Chance: what any criterion has to beat."""

from __future__ import annotations

from onnxprune.importance.base import Scores, View
from onnxprune.importance.registry import criterion


@criterion("random")
def random(view: View) -> Scores:
    """Score units by lot, uniform in [0, 1), the same for the same seed and group."""
    return view.rng.random(len(view.group.units))

"""How much each unit matters: criteria score the units of a group over all its weights.

A criterion is a function from a `View` of a group to one raw score per unit: of its weights, or of what the layers that
read it were given when the network ran on inputs (`readings`). Another package adds one through the entry-point group
"onnxprune.criteria"; `score` makes the scores of groups compare.
"""

from __future__ import annotations

from onnxprune.importance import (  # noqa: F401, importing them registers them
    activations,
    chance,
    fpgm,
    gradients,
    magnitude,
    surgeon,
)
from onnxprune.importance.base import Criterion, Rows, Scores, View
from onnxprune.importance.registry import criteria, criterion
from onnxprune.importance.roles import Role
from onnxprune.importance.scoring import score, views

__all__ = [
    "Criterion",
    "Role",
    "Rows",
    "Scores",
    "View",
    "criteria",
    "criterion",
    "score",
    "views",
]

"""How much each unit matters: criteria score the units of a group over all its weights.

A criterion is a function from a `GroupView` to one raw score per unit: of its weights, or of what the layers that read
it were given when the network ran on inputs (`readings`). Another package adds one through the entry-point group
"onnxprune.criteria"; `score` makes the scores of groups compare.
"""

from __future__ import annotations

from onnxprune.importance import (  # noqa: F401, importing them registers them
    activations,
    magnitude,
    surgeon,
)
from onnxprune.importance.base import Criterion, GroupView, Scores, SlotRows
from onnxprune.importance.registry import criteria, criterion
from onnxprune.importance.roles import Role
from onnxprune.importance.scoring import score, views

__all__ = [
    "Criterion",
    "GroupView",
    "Role",
    "Scores",
    "SlotRows",
    "criteria",
    "criterion",
    "score",
    "views",
]

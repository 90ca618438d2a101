"""Importance criteria: score the units of a group over all its weights.

A criterion is a function from a `GroupView` to one raw score per unit, by its weights or by activations on inputs.
Other packages add criteria through the entry-point group "onnxprune.criteria". `score` makes the scores of different
groups comparable.
"""

from __future__ import annotations

from onnxprune.importance import builtin  # noqa: F401, importing it registers its criteria
from onnxprune.importance.base import Criterion, GroupView, Scores, SlotRows
from onnxprune.importance.registry import criteria, criterion
from onnxprune.importance.roles import Role
from onnxprune.importance.scoring import score, views

__all__ = ["Criterion", "GroupView", "Role", "Scores", "SlotRows", "criteria", "criterion", "score", "views"]

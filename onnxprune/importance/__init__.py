"""How much each unit matters: criteria score the units of a group over all its weights.

A criterion is a function from a `View` of a group to one raw score per unit. Another package adds
one through the entry-point group "onnxprune.criteria"; `score` makes the scores of layers comparable.
"""

from __future__ import annotations

from onnxprune.importance.base import Criterion, Role, Rows, View
from onnxprune.importance.registry import criteria, criterion
from onnxprune.importance.scoring import score, views

__all__ = ["Criterion", "Role", "Rows", "View", "criteria", "criterion", "score", "views"]

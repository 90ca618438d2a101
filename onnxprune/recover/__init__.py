"""Recover accuracy after pruning without gradients, from a few hundred unlabeled inputs."""

from __future__ import annotations

from onnxprune.model.stream import Batches, Inputs
from onnxprune.recover.repair import Repair, recover, repeat
from onnxprune.settings.shrinking import Method

__all__ = ["Batches", "Inputs", "Method", "Repair", "recover", "repeat"]

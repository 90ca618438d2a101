"""Recover accuracy after pruning without gradients, from a few hundred unlabeled inputs."""

from __future__ import annotations

from onnxprune.model.stream import Batches, Inputs
from onnxprune.recover.layers import LeftOut
from onnxprune.recover.repair import Repair, recover, repeat, unrepaired
from onnxprune.settings.pruning import Method

__all__ = ["Batches", "Inputs", "LeftOut", "Method", "Repair", "recover", "repeat", "unrepaired"]

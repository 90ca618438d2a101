"""Recovery without gradients: what pruning lost is won back from a few hundred unlabelled inputs."""

from __future__ import annotations

from onnxprune.recover.repair import Method, Repair, recover, repeat
from onnxprune.recover.stream import Batches, Inputs

__all__ = ["Batches", "Inputs", "Method", "Repair", "recover", "repeat"]

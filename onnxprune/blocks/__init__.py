"""Residual blocks: what a sum adds to the tensor that it came from can leave as a whole (depth pruning)."""

from __future__ import annotations

from onnxprune.blocks.find import Block, find_blocks
from onnxprune.blocks.removal import without_blocks
from onnxprune.blocks.score import choose_blocks, rank_blocks, score_blocks

__all__ = [
    "Block",
    "choose_blocks",
    "find_blocks",
    "rank_blocks",
    "score_blocks",
    "without_blocks",
]

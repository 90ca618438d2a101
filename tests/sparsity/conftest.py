"""Fixtures that tests of sparse models share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune as op
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.settings.sparsity import Pattern
from onnxprune.sparsity import network
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.sparsifying import Sparsified
from tests.sparsity.support import DIGITS, TEST, TRAIN


@pytest.fixture(scope="package")
def images() -> dict[str, np.ndarray]:
    with np.load(TEST) as found:
        return {"image": found["images"][:64]}


@pytest.fixture(scope="package")
def pairs() -> Sparsified:
    """The digits network with zeros in 2:4."""
    return op.sparsify(DIGITS, pattern="2:4", data=TRAIN, limit=32, threads=1)


@pytest.fixture(scope="package")
def made(images: dict[str, np.ndarray]) -> tuple[ModelProto, Any, dict[str, np.ndarray]]:
    """The dense model, the same with zeros in 2:4 by magnitude, and inputs."""
    graph = op.analyze(DIGITS).graph
    found = network.sparsify(PrunedGraph(graph), Way("magnitude", Pattern.read("2:4"), False), 0.5, None)
    return rewrite(PrunedGraph(graph)), found, images

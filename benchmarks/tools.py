"""The tools that `benchmarks.peers` compares, each called as documented, on the same weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxsim
import torch
import torch_pruning
from onnx import ModelProto
from torch import nn

import onnxprune as op
from benchmarks.torch_layers import Attention
from benchmarks.torch_models import INPUT, NETWORKS, build
from onnxprune import PlanSettings, analyze, prune

__all__ = ["NETWORKS", "RATIO", "TOOLS", "Case", "Tool", "case", "torch_pruned"]

RATIO = 0.5
OPSET = 17
_MULTIPLE = 8  # Torch-Pruning has one multiple for all layers, including narrow ones; onnxsim can't round


@dataclass(frozen=True, slots=True)
class Case:
    """A network in PyTorch and ONNX.

    Attributes:
        module: the network in PyTorch.
        proto: its export by the TorchScript exporter, BN folded where the exporter does so.
    """

    module: nn.Module
    proto: ModelProto


@dataclass(frozen=True, slots=True)
class Tool:
    """A pruner.

    Attributes:
        name: its name in the tables.
        prepare: makes the input of ``prune``; not timed.
        prune: removes half of the channels of each layer that it reaches.
        export: converts the result to ONNX; not timed.
    """

    name: str
    prepare: Callable[[Case], Any]
    prune: Callable[[Any], Any]
    export: Callable[[Any], ModelProto] = lambda pruned: pruned


def case(name: str) -> Case:
    """Build and export a network."""
    module = build(name)
    return Case(module, _export(module))


def _export(module: nn.Module) -> ModelProto:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        file = Path(folder, "model.onnx")
        torch.onnx.export(module, (torch.zeros(INPUT),), file, dynamo=False, opset_version=OPSET)
        return onnx.load(file)


def _onnxprune(proto: ModelProto, *, check: bool) -> ModelProto:
    analysis = analyze(proto)
    return prune(analysis, op.plan(analysis, PlanSettings(ratio=RATIO)), check=check).proto


def torch_pruned(case: Case, ratio: float) -> ModelProto:
    """Prune a network with Torch-Pruning at another ratio, and export it."""
    return _export(_torch_pruning(copy.deepcopy(case.module), ratio))


def _torch_pruning(module: nn.Module, ratio: float = RATIO) -> nn.Module:
    *_, classifier = (m for m in module.modules() if isinstance(m, nn.Linear))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that it prunes ViT's token and positions along their last axis, which is right
        pruner = torch_pruning.pruner.BasePruner(
            module,
            torch.zeros(INPUT),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=_MULTIPLE,
            ignored_layers=[classifier],
            num_heads={m.qkv: m.heads for m in module.modules() if isinstance(m, Attention)},
        )
        pruner.step()
    return module


def _simplified(case: Case) -> ModelProto:
    proto: ModelProto = onnxsim.simplify(case.proto)[0]
    return proto


TOOLS: Sequence[Tool] = (
    Tool("onnxprune", lambda c: c.proto, lambda p: _onnxprune(p, check=False)),
    Tool("onnxprune, proved", lambda c: c.proto, lambda p: _onnxprune(p, check=True)),
    Tool("Torch-Pruning", lambda c: copy.deepcopy(c.module), _torch_pruning, _export),
    Tool("onnxsim, Python", _simplified, lambda p: onnxsim.apply_structured_pruning(p, RATIO)),
    Tool("onnxsim, C++", _simplified, lambda p: onnxsim.apply_structured_pruning_cpp(p, RATIO)),
)

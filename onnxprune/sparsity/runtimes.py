"""Which runtimes make use of zeros in a layer: facts with their sources, in one place.

Nothing is measured here. What a runtime does changes with its version; the sources say of which one a fact is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from onnx import ModelProto

from onnxprune.model.graph import GraphIndex
from onnxprune.model.metadata import sparse_weights
from onnxprune.model.tensors import Weights
from onnxprune.operators.linear import LinearLayer
from onnxprune.recover.layers import find_layers
from onnxprune.settings.sparsity import Pattern

Use = Literal["likely", "perhaps", "no"]
Verdict = tuple[Use, str]


@dataclass(frozen=True, slots=True)
class SparseUse:
    """What one layer offers a runtime.

    Attributes:
        layer: the layer.
        pattern: where its zeros are.
        share: its share of zeros.
        inputs: input channels of a group.
        outputs: output channels.
        quantized: whether its input is quantized (QDQ form).
    """

    layer: LinearLayer
    pattern: Pattern
    share: float
    inputs: int
    outputs: int
    quantized: bool

    @property
    def product(self) -> bool:
        """Whether the layer is a matrix product."""
        return not self.layer.kernel


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What is known of a runtime.

    Attributes:
        name: the runtime.
        what: what it does with zeros.
        source: where that is said.
        judge: says whether it uses the zeros of a layer, and why.
    """

    name: str
    what: str
    source: str
    judge: Callable[[SparseUse], Verdict]


def _onnxruntime(use: SparseUse) -> Verdict:
    return "no", "it computes with zeros as with other numbers"


_TENSORRT_CHANNELS = 256


def _tensorrt(use: SparseUse) -> Verdict:
    if not (use.pattern.of and 4 % use.pattern.of == 0 and 2 * use.pattern.keep <= use.pattern.of):
        return "no", "it has kernels for 2:4 only"
    if use.layer.groups > 1 or use.layer.node.op_type not in ("Conv", "Gemm", "MatMul"):
        return "no", "it has them for convolutions without groups and matrix products only"
    if use.quantized:
        return "perhaps", "with quantized inputs no sparse kernel was picked in version 8.6"
    if min(use.inputs, use.outputs) < _TENSORRT_CHANNELS:
        return "perhaps", f"it seldom picks them below {_TENSORRT_CHANNELS} channels"
    if use.layer.node.op_type == "MatMul":
        return "perhaps", "a MatMul is to be written as Gemm"
    return "likely", f"2:4 and at least {_TENSORRT_CHANNELS} channels"


_OPENVINO_SHARE = 0.5


def _openvino(use: SparseUse) -> Verdict:
    if not use.product:
        return "no", "it packs weights of matrix products only"
    if use.share < _OPENVINO_SHARE:
        return "no", "too few zeros"
    return "perhaps", "once its weights are INT8, and the sparse rate is set; shown on 4th generation Xeon"


_COREML_SHARE, _COREML_RUN = 0.75, 16


def _coreml(use: SparseUse) -> Verdict:
    runs = use.pattern
    if use.product and runs.of and _COREML_RUN % runs.of == 0 and 2 * runs.keep <= runs.of:
        return "likely", "N:M in matrix products, on recent processors"
    if use.share >= _COREML_SHARE:
        return "likely", f"the Neural Engine skips zeros from {_COREML_SHARE:.0%} on"
    if runs.rows % 2 == 0 or runs.columns % 2 == 0:
        return "likely", "the Neural Engine skips blocks of two zeros and their multiples"
    return "perhaps", f"below {_COREML_SHARE:.0%}, zeros save memory only"


RUNTIMES = (
    RuntimeFacts(
        "ONNX Runtime",
        "no kernel skips zeros, on any provider of its own; sparse initializers are made dense at load",
        "microsoft/onnxruntime issues 2121 and 5578",
        _onnxruntime,
    ),
    RuntimeFacts(
        "TensorRT",
        "2:4 along the input channels of convolutions and matrix products, if it is allowed and faster; at most 15 % "
        "on CNNs is usual",
        "NVIDIA/TensorRT issues 2310, 3282, 4065 and 4694",
        _tensorrt,
    ),
    RuntimeFacts(
        "OpenVINO (CPU)",
        "weights of matrix products are held packed above CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE, which saves memory "
        "traffic",
        "OpenVINO 2025, CPU properties and the notebook on sparse transformers",
        _openvino,
    ),
    RuntimeFacts(
        "Core ML",
        "sparse weights take less memory; the Neural Engine skips many zeros in a row, CPUs N:M in matrix products",
        "coremltools guide, pruning, performance",
        _coreml,
    ),
)


@dataclass(frozen=True, slots=True)
class Eligible:
    """Whether a runtime uses the zeros of a layer.

    Attributes:
        node: the layer.
        runtime: the runtime, see `RUNTIMES`.
        use: whether it does.
        why: why.
    """

    node: str
    runtime: str
    use: Use
    why: str


def eligibility(model: ModelProto) -> tuple[Eligible, ...]:
    """Return for the sparse layers of a model, by its metadata, which runtimes use their zeros."""
    noted, weights, index = sparse_weights(model), Weights(model), GraphIndex(model.graph)
    found = []
    for layer in find_layers(model):
        if layer.weight in noted:
            array = weights[layer.weight]
            maker = index.makers.get(layer.x)
            use = SparseUse(
                layer,
                Pattern.read(noted[layer.weight]),
                share=1 - float(np.count_nonzero(array)) / max(array.size, 1),
                inputs=layer.features(array.shape) // prod(layer.kernel),
                outputs=int(layer.outputs(array.shape).max()) + 1,
                quantized=maker is not None and maker.op_type == "DequantizeLinear",
            )
            found += [Eligible(layer.node.name, facts.name, *facts.judge(use)) for facts in RUNTIMES]
    return tuple(found)

"""Exported networks after other tools had them: quantized in every format, fused by ONNX Runtime's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from onnx import ModelProto

from onnxprune.rewrite.verify import ROUNDED
from onnxprune.settings.planning import Attention
from tests.integration.checks import TOLERANCE, analyzed, assert_no_rule_failed, assert_prunes, unreached
from tests.integration.conftest import Export
from tests.toolbox import run_once

pytest.importorskip("torch")
pytest.importorskip("onnxruntime.transformers")

from tests.zoo.catalog import NETWORKS
from tests.zoo.rewritten import Feeds, dynamically_quantized, fused, optimized, quantized
from tests.zoo.spec import Network

pytestmark = pytest.mark.dev

Rewriter = Callable[[ModelProto, Network], ModelProto]


@dataclass(frozen=True, slots=True)
class Case:
    """A network, what is done to it, and operators that this must give.

    Attributes:
        name: the network.
        exporter: who exports it.
        how: a key of `REWRITERS`.
        operators: types that must be found afterwards, or the case tests nothing.
        mode: the attention policy.
        unreached: layers that can't be made smaller.
        tolerance: largest error allowed.
    """

    name: str
    exporter: str
    how: str
    operators: tuple[str, ...]
    mode: Attention = "heads"
    unreached: tuple[str, ...] = ()
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return f"{self.name}-{self.exporter}-{self.how}-{self.mode}"


def _batches(network: Network) -> list[Feeds]:
    return [network.draw(network.sizes, seed) for seed in range(3)]


REWRITERS: dict[str, Rewriter] = {
    "QDQ": lambda m, n: quantized(m, _batches(n), "QDQ", per_channel=False),
    "QDQ-channel": lambda m, n: quantized(m, _batches(n), "QDQ", per_channel=True),
    "QDQ-unsigned": lambda m, n: quantized(m, _batches(n), "QDQ", per_channel=False, signed=False),
    "QOperator": lambda m, n: quantized(m, _batches(n), "QOperator", per_channel=False),
    "QOperator-channel": lambda m, n: quantized(m, _batches(n), "QOperator", per_channel=True),
    "dynamic": lambda m, n: dynamically_quantized(m, per_channel=False),
    "dynamic-channel": lambda m, n: dynamically_quantized(m, per_channel=True),
    "optimized": lambda m, n: optimized(m),
    "QOperator-all": lambda m, n: optimized(quantized(m, _batches(n), "QOperator", per_channel=True), "ALL"),
    "fused-bert": lambda m, n: fused(m, "bert", 4, 32),
    "fused-bert-dynamic": lambda m, n: dynamically_quantized(fused(m, "bert", 4, 32), per_channel=False),
    "fused-gpt2": lambda m, n: fused(m, "gpt2", 4, 32),
    "fused-vit": lambda m, n: fused(m, "vit", 4, 32),
}

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_QCONV = ("QLinearConv", "QLinearAdd", "QGemm", "QLinearGlobalAveragePool")
_EMBED = ("EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu")
CASES = [
    Case("bert", "torchscript", "QDQ", _QDQ),
    Case("bert", "torchscript", "QOperator", ("QLinearMatMul", "QLinearAdd", "QLinearSoftmax", "QLinearMul")),
    Case("bert", "torchscript", "QOperator-channel", ("QLinearMatMul", "QGemm"), "width"),
    Case("bert", "torchscript", "dynamic", ("MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear")),
    Case("bert", "torchscript", "dynamic-channel", ("MatMulInteger",), "width"),
    Case("lstm_tagger", "torchscript", "QDQ", _QDQ),
    Case("lstm_tagger", "torchscript", "dynamic", ("DynamicQuantizeLSTM", "MatMulInteger"), tolerance=ROUNDED),
    Case("mobilenet_v3", "torchscript", "QDQ", _QDQ),
    Case("mobilenet_v3", "torchscript", "QOperator-channel", ("QLinearConv", "QLinearMul", "QLinearAdd")),
    Case("resnet", "torchscript", "QDQ", _QDQ),
    Case("resnet", "dynamo", "QDQ-channel", _QDQ),
    Case("resnet", "torchscript", "QDQ-unsigned", _QDQ),
    Case("resnet", "torchscript", "QOperator", _QCONV),
    Case("resnet", "dynamo", "QOperator-channel", ("QLinearConv", "QLinearAdd", "QGemm")),
    Case("resnet", "torchscript", "dynamic", ("ConvInteger", "MatMulInteger")),
    Case("resnet", "torchscript", "QOperator-all", ("QLinearConv", "QLinearAdd", "QGemm")),
    Case("shufflenet_v2", "torchscript", "QOperator-channel", ("QLinearConv", "QLinearConcat")),
    Case("unet", "torchscript", "QDQ-channel", (*_QDQ, "ConvTranspose")),
    Case("unet", "torchscript", "QOperator", ("QLinearConv", "QLinearConcat", "QLinearSigmoid")),
    Case("unet", "torchscript", "QOperator-all", ("QLinearConv", "NhwcMaxPool", "QLinearConcat")),
    Case("vit_chunk", "torchscript", "QDQ-channel", _QDQ, "width"),
    Case("vit_chunk", "torchscript", "QOperator", ("QLinearMatMul", "QLinearConcat")),
    Case("bert", "dynamo", "optimized", ("SkipLayerNormalization", "BiasGelu", "FusedMatMul", "FusedGemm")),
    Case("bert", "torchscript", "optimized", ("BiasGelu", "FusedMatMul", "FusedGemm"), "width"),
    Case("convnext", "torchscript", "optimized", ("BiasGelu",)),
    Case("llama", "torchscript", "optimized", ("QuickGelu", "FusedMatMul")),
    Case("lstm_tagger", "dynamo", "optimized", ("LSTM",)),
    Case("mobilenet_v3", "dynamo", "optimized", ("FusedConv",)),
    Case("resnet", "torchscript", "optimized", ("FusedConv",)),
    Case("seq2seq", "dynamo", "optimized", ("SkipLayerNormalization", "BiasGelu")),
    Case("swin", "dynamo", "optimized", ("FusedMatMul", "BiasGelu")),
    Case("vit_chunk", "dynamo", "optimized", ("FastGelu", "SkipLayerNormalization"), "width"),
    Case("vit_unbind", "torchscript", "optimized", ("FusedMatMul",)),
    Case("bert", "torchscript", "fused-bert", _EMBED),
    Case("bert", "torchscript", "fused-bert-dynamic", ("QAttention", "MatMulInteger", "SkipLayerNormalization")),
    Case("bert", "torchscript", "fused-bert-dynamic", ("QAttention", "QEmbedLayerNormalization"), "width"),
    Case("bert_tied", "torchscript", "fused-bert", _EMBED, "width"),
    Case("llama", "dynamo", "fused-gpt2", ("SkipSimplifiedLayerNormalization",)),
    Case("vit_chunk", "torchscript", "fused-vit", ("SkipLayerNormalization", "FastGelu")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rewritten(exported: Export, case: Case) -> None:
    network = NETWORKS[case.name]
    model = REWRITERS[case.how](exported(case.name, case.exporter), network)
    assert set(case.operators) <= {node.op_type for node in model.graph.node}
    analysis = analyzed(model, network.shapes(network.sizes), case.mode)
    assert_no_rule_failed(analysis.graph)
    assert tuple(unreached(analysis.graph)) == case.unreached
    elsewhere = network.draw(network.other_sizes(case.exporter), seed=2)
    run_once(model, elsewhere)
    assert_prunes(analysis, "macs", network.draw(network.sizes, seed=1), elsewhere, case.tolerance)

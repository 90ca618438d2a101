"""Operators without channels of their own: deliberately left alone, or made of parameters only."""

from __future__ import annotations

from onnxprune.operators.card import flat, leave, traces
from onnxprune.operators.traced import TraceNode

_BLOCKED = "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample"


@traces("Constant")
def constant(op: TraceNode) -> None:
    """A weight."""
    op.give(op.constant())


@traces("AffineGrid", "BlackmanWindow", "HammingWindow", "HannWindow", "ImageDecoder")
def positions(op: TraceNode) -> None:
    """Made from parameters: its axes hold positions."""
    op.give_up("OP209", "it is made from parameters")


leave("its body runs as a graph of its own", "If", "Loop", "Scan", "SequenceMap")


leave(
    "sequences and optionals are passed on as they are",
    *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct"),
    *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence"),
)


leave("text has no channels", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer")


leave("a loss is for training", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")


leave("it writes at positions known at run time", "Scatter", "TensorScatter")


leave("its state has the model's own layout", "LinearAttention")


leave(
    "it holds whole networks and runs them in a loop",
    *("com.microsoft:BeamSearch", "com.microsoft:GreedySearch", "com.microsoft:Sampling"),
    "com.microsoft:WhisperBeamSearch",
)


leave("it holds what another compiler made", "com.microsoft:EPContext")


leave(
    "its data lie in blocks of channels, as suits one processor: save the model with extended optimizations at most",
    *(f"com.microsoft.nchwc:{name}" for name in _BLOCKED.split()),
)


flat("BlackmanWindow", "Constant", "HammingWindow", "HannWindow", "ImageDecoder")

"""Operators without channels of their own: deliberately left alone, or made of parameters only."""

from __future__ import annotations

from onnxprune.operators.card import describe, flat, leave, traces
from onnxprune.operators.traced import TraceNode

flat("BlackmanWindow Constant HammingWindow HannWindow ImageDecoder")


@traces("Constant")
def constant(op: TraceNode) -> None:
    """A weight."""
    op.give(op.constant())


@traces("AffineGrid BlackmanWindow HammingWindow HannWindow ImageDecoder")
def positions(op: TraceNode) -> None:
    """Made from parameters: its axes hold positions."""
    op.give_up("OP209", "it is made from parameters")


def _contrib(names: str, domain: str = "com.microsoft") -> str:
    return " ".join(f"{domain}:{name}" for name in names.split())


leave(
    "sequences and optionals are passed on as they are",
    "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty",
    "SequenceErase SequenceInsert SequenceLength SplitToSequence",
)
describe("SequenceAt SplitToSequence", sizing=(1,))
describe("Scatter TensorScatter", picking=(1,))
leave("text has no channels", "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer")
leave("a loss is for training", "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss")
leave("it writes at positions known at run time", "Scatter TensorScatter")
leave("it holds whole networks and runs them in a loop", _contrib("BeamSearch GreedySearch Sampling WhisperBeamSearch"))
leave("it holds what another compiler made", "com.microsoft:EPContext")
leave(
    "its data lie in blocks of channels, as suits one processor: save the model with extended optimizations at most",
    _contrib(
        "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample",
        "com.microsoft.nchwc",
    ),
)
leave(
    "it is an attention with its own layout",
    _contrib(
        """
        DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DynamicSparseAttention
        LongformerAttention PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer
        PackedSparseAttentionIndexerMerge PagedAttention QOrderedLongformerAttention SparseAttention
        SparseAttentionIndexer SparsePagedAttention
        """
    ),
)
leave(
    "its state has the model's own layout",
    "LinearAttention",
    _contrib(
        """
        AttnLSTM ConvStateReplay EngramGate GatedDeltaNet GatedDeltaNetStateReplay HyperConnectionLowRankMix
        HyperConnectionPostMix HyperConnectionPreMix LinearAttention LinearAttentionGate Mamba2Verify
        SpeculativePrefixCommit VarlenCausalConvWithState
        """
    ),
)
leave(
    "its weights are packed",
    _contrib(
        """
        DequantizeBFP DequantizeWithOrder GemmFloat8 MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight
        MatMulNBitsMlp MatMulNBitsQLoRA MatMulNBitsQkv MatMulPacked QOrderedGelu QOrderedLayerNormalization
        QuantizeBFP QuantizeWithOrder
        """
    ),
)
leave("experts are chosen by values", _contrib("MoEGroupRouter MoEPacked RouterGateUpProj"))
leave("it needs the whole matrix", "com.microsoft:Inverse")
leave("it transforms the axis as a whole", _contrib("ComplexMul ComplexMulConj Irfft Rfft UnfoldTensor"))
leave(
    "positions of a head's width are rotated into each other",
    _contrib("GemmaRotaryEmbedding MRotaryEmbedding RMSNormRotary"),
)
leave(
    "it works on positions and values, not on channels",
    _contrib(
        """
        BifurcationDetector CDist DynamicTimeWarping GatedRelativePositionBias GatherPacked IsAllFinite MurmurHash3
        NGramHashMapping NGramRepeatBlock RelativePositionBias RemovePadding RestorePadding SparseToDenseMatMul
        Tokenizer VarlenNGramHashMapping WordConvEmbedding
        """
    ),
)
leave("dropout with a mask of bits is for training", _contrib("BitmaskBiasDropout BitmaskDropout"))
leave("its weights have channels last", "com.microsoft:NhwcConv")
leave("it normalizes over its last axes, and its bias broadcasts in its own way", "com.microsoft:BiasSoftmax")
leave("its padding is only known at run time", "com.microsoft:ConvTransposeWithDynamicPads")
leave("its axis holds several branches", "com.microsoft:BranchwiseRMSNorm")
leave("its gate is one number for each row", "com.microsoft:GatedAdd")
leave(
    "it computes with integers in a form of ONNX Runtime's own",
    _contrib("MatMulInteger16 MulInteger QLinearReduceMean ReduceSumInteger"),
)
leave("it is internal to ONNX Runtime", _contrib("MaxpoolWithMask SampleOp Snpe"))

"""Every network of the zoo by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from tests.zoo import convolutional, recurrent, transformers, windows
from tests.zoo.spec import Input, Network

Build = Callable[[], nn.Module]

_TOKENS, _OTHER_TOKENS = {"batch": 2, "sequence": 6}, {"batch": 3, "sequence": 9}
_STEPS, _OTHER_STEPS = {"sequence": 5, "batch": 2}, {"sequence": 7, "batch": 3}
_FEATURES = {"features": Input(("batch", "sequence", 6))}
_WITH_STATE = {"features": Input(("sequence", "batch", 6)), "context": Input(("batch", 4))}
_IMAGE16 = {"image": Input(("batch", 3, 16, 16))}
# torch.export may fix the number of a recurrence's steps (whether it does depends on what it exported before).
_UNROLLED = {"dynamo": ("sequence", "width")}


def _text(build: Build, *, mask: bool = False) -> Network:
    ids = {"ids": Input(("batch", "sequence"), 13)}
    given = ids | ({"mask": Input(("batch", "sequence"), 2)} if mask else {})
    return Network(build, given, _TOKENS, _OTHER_TOKENS, attention=True)


def _tagger(kind: Callable[..., nn.RNNBase], **options: int) -> Network:
    ids = {"ids": Input(("batch", "sequence"), 13)}
    return Network(partial(recurrent.Tagger, kind, **options), ids, _TOKENS, _OTHER_TOKENS, baked=_UNROLLED)


def _state(kind: Callable[..., nn.RNNBase], apart: str | None = None) -> Network:
    build = partial(recurrent.LastState, kind)
    return Network(build, _WITH_STATE, _STEPS, _OTHER_STEPS, baked=_UNROLLED, apart=apart)


def _images(
    build: Build, channels: int = 3, size: int = 16, other: int = 24, unreached: Mapping[str, str] | None = None
) -> Network:
    return Network(
        build,
        {"image": Input(("batch", channels, "height", "width"))},
        {"batch": 2, "height": size, "width": size},
        {"batch": 3, "height": other, "width": size},
        unreached=unreached or {},
    )


def _vit(how: transformers.Fused, *, scaled: bool = False) -> Network:
    return Network(partial(transformers.VisionTransformer, how, scaled=scaled), _IMAGE16, attention=True)


TRANSFORMERS: Mapping[str, Network] = {
    "bert": _text(partial(transformers.Bert, tied=False), mask=True),
    "bert_tied": _text(partial(transformers.Bert, tied=True), mask=True),
    "einsum_attention": Network(transformers.EinsumAttention, _FEATURES, _TOKENS, _OTHER_TOKENS, attention=True),
    "gpt2": _text(transformers.GPT2),
    "gpt2_cached": Network(
        transformers.CachedGPT2,
        {"ids": Input(("batch", "sequence"), 13)}
        | {name: Input(("batch", 4, "past", 8)) for name in ("key0", "value0", "key1", "value1")},
        {"batch": 2, "sequence": 3, "past": 5},
        {"batch": 3, "sequence": 4, "past": 7},
    ),
    "linear_attention": Network(
        transformers.LinearAttention,
        {"image": Input(("batch", 4, "height", "width"))},
        {"batch": 2, "height": 4, "width": 6},
        {"batch": 3, "height": 5, "width": 7},
        attention=True,
    ),
    "llama": _text(transformers.Llama),
    "llama_fused_gate": _text(partial(transformers.Llama, gated="fused", tied=True)),
    "llama_interleaved": _text(partial(transformers.Llama, interleaved=True)),
    "llama_multi_query": _text(partial(transformers.Llama, shared=4)),
    "llama_partly_rotated": _text(partial(transformers.Llama, rotated=4)),
    "seq2seq": Network(
        transformers.Seq2Seq,
        {"features": Input(("batch", "source", 6)), "ids": Input(("batch", "target"), 13)},
        {"batch": 2, "source": 5, "target": 6},
        {"batch": 3, "source": 8, "target": 4},
        attention=True,
        baked={"torchscript": ("source", "target")},
        apart="TorchScript slices a bias twice: the places that neither slice reads are groups of their own",
    ),
    "swin": Network(windows.Swin, _IMAGE16, attention=True),
    "t5": _text(transformers.T5),
    "vit_chunk": _vit("chunk"),
    "vit_scaled": _vit("unbind", scaled=True),
    "vit_slice": _vit("slice"),
    "vit_split": _vit("split"),
    "vit_unbind": _vit("unbind"),
}

RECURRENT: Mapping[str, Network] = {
    "attentive_gru": Network(recurrent.AttentivePool, _FEATURES, _TOKENS, _OTHER_TOKENS, baked=_UNROLLED),
    "crnn": Network(
        recurrent.ConvolutionalRecurrent,
        {"image": Input(("batch", 1, 8, "width"))},
        {"batch": 2, "width": 6},
        {"batch": 3, "width": 9},
        baked=_UNROLLED,
    ),
    "gru_state": _state(nn.GRU),
    "gru_tagger": _tagger(nn.GRU),
    "lstm_one_way": _tagger(nn.LSTM, directions=1, layers=3),
    "lstm_state": _state(nn.LSTM),
    "lstm_tagger": _tagger(nn.LSTM),
    "rnn_state": _state(nn.RNN, apart="torch.export unrolls a plain recurrence into linear layers"),
}

CONVOLUTIONAL: Mapping[str, Network] = {
    "convnext": _images(convolutional.ConvNeXt),
    "cross_stage": _images(convolutional.CrossStage),
    "densenet": _images(convolutional.DenseNet),
    "depth_multiplier": _images(convolutional.DepthMultiplier, channels=1),
    "detector": _images(convolutional.Detector),
    "many_ends": Network(
        convolutional.ManyEnds,
        {
            "image": Input(("batch", 3, "height", "width")),
            "depth": Input(("batch", 1, "height", "width")),
            "vector": Input(("batch", 6)),
        },
        {"batch": 2, "height": 8, "width": 8},
        {"batch": 3, "height": 12, "width": 8},
    ),
    "mixer": Network(convolutional.Mixer, _IMAGE16),
    "mobilenet_v3": _images(convolutional.MobileNetV3),
    "resnet": _images(convolutional.ResNet),
    "resnet_group_norm": _images(partial(convolutional.ResNet, groups=4)),
    "shufflenet_v1": _images(partial(convolutional.ShuffleNetV1, width=36)),
    "shufflenet_v1_uneven": _images(convolutional.ShuffleNetV1),
    "shufflenet_v2": _images(convolutional.ShuffleNetV2),
    "super_resolution": _images(convolutional.SuperResolution, channels=1, size=8, other=12),
    "unet": _images(convolutional.UNet, channels=1),
    "volume": Network(convolutional.Volume, {"clip": Input(("batch", 1, 4, 6, 6))}),
    "wave": Network(
        convolutional.Wave,
        {"sound": Input(("batch", 2, "length"))},
        {"batch": 2, "length": 12},
        {"batch": 3, "length": 17},
    ),
}

NETWORKS: Mapping[str, Network] = {**TRANSFORMERS, **RECURRENT, **CONVOLUTIONAL}

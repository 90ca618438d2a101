"""Every network of the zoo by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from tests.zoo import convolutional, recurrent, transformers, windows
from tests.zoo.spec import Input, Network

_TOKENS = {"batch": 2, "sequence": 6}
_OTHER_TOKENS = {"batch": 3, "sequence": 9}


def _text(build: object, *, mask: bool = False, attention: bool = True) -> Network:
    ids = {"ids": Input(("batch", "sequence"), 13)}
    given = ids | ({"mask": Input(("batch", "sequence"), 2)} if mask else {})
    return Network(build, given, _TOKENS, _OTHER_TOKENS, attention=attention)  # type: ignore[arg-type]


_FEATURES = {"features": Input(("batch", "sequence", 6))}
_IMAGE16 = {"image": Input(("batch", 3, 16, 16))}

TRANSFORMERS: Mapping[str, Network] = {
    "bert": _text(partial(transformers.Bert, tied=False), mask=True),
    "bert_tied": _text(partial(transformers.Bert, tied=True), mask=True),
    "einsum_attention": Network(transformers.EinsumAttention, _FEATURES, _TOKENS, _OTHER_TOKENS, attention=True),
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
    "seq2seq": Network(
        transformers.Seq2Seq,
        {"features": Input(("batch", "source", 6)), "ids": Input(("batch", "target"), 13)},
        {"batch": 2, "source": 5, "target": 6},
        {"batch": 3, "source": 8, "target": 4},
        attention=True,
    ),
    "t5": _text(transformers.T5),
    "vit_chunk": Network(partial(transformers.VisionTransformer, "chunk"), _IMAGE16, attention=True),
    "vit_scaled": Network(partial(transformers.VisionTransformer, "unbind", scaled=True), _IMAGE16, attention=True),
    "vit_slice": Network(partial(transformers.VisionTransformer, "slice"), _IMAGE16, attention=True),
    "vit_split": Network(partial(transformers.VisionTransformer, "split"), _IMAGE16, attention=True),
    "vit_unbind": Network(partial(transformers.VisionTransformer, "unbind"), _IMAGE16, attention=True),
}

_STEPS = {"sequence": 5, "batch": 2}
_OTHER_STEPS = {"sequence": 7, "batch": 3}
_WITH_STATE = {"features": Input(("sequence", "batch", 6)), "context": Input(("batch", 4))}

RECURRENT: Mapping[str, Network] = {
    "attentive_gru": Network(recurrent.AttentivePool, _FEATURES, _TOKENS, _OTHER_TOKENS),
    "crnn": Network(
        recurrent.ConvolutionalRecurrent,
        {"image": Input(("batch", 1, 8, "width"))},
        {"batch": 2, "width": 6},
        {"batch": 3, "width": 9},
    ),
    "gru_tagger": _text(partial(recurrent.Tagger, nn.GRU), attention=False),
    "gru_state": Network(partial(recurrent.LastState, nn.GRU), _WITH_STATE, _STEPS, _OTHER_STEPS),
    "lstm_tagger": _text(partial(recurrent.Tagger, nn.LSTM), attention=False),
    "lstm_one_way": _text(partial(recurrent.Tagger, nn.LSTM, directions=1, layers=3), attention=False),
    "lstm_state": Network(partial(recurrent.LastState, nn.LSTM), _WITH_STATE, _STEPS, _OTHER_STEPS),
    "rnn_state": Network(partial(recurrent.LastState, nn.RNN), _WITH_STATE, _STEPS, _OTHER_STEPS),
}


def _images(build: Callable[[], nn.Module], channels: int = 3, size: int = 16, other: int = 24) -> Network:
    return Network(
        build,
        {"image": Input(("batch", channels, "height", "width"))},
        {"batch": 2, "height": size, "width": size},
        {"batch": 3, "height": other, "width": size},
    )


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
    "shufflenet_v1": _images(convolutional.ShuffleNetV1),
    "shufflenet_v2": _images(convolutional.ShuffleNetV2),
    "super_resolution": _images(convolutional.SuperResolution, channels=1, size=8, other=12),
    "swin": Network(windows.Swin, _IMAGE16, attention=True),
    "unet": _images(convolutional.UNet, channels=1),
    "volume": Network(convolutional.Volume, {"clip": Input(("batch", 1, 4, 6, 6))}),
    "wave": Network(
        convolutional.Wave,
        {"sound": Input(("batch", 2, "length"))},
        {"batch": 2, "length": 12},
        {"batch": 3, "length": 17},
    ),
}

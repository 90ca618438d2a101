"""The networks of `benchmarks.peers` in PyTorch, written briefly so that torchvision isn't needed.

Layers follow the papers and torchvision (parameter counts are the same). The forward passes are written so that
Torch-Pruning can follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.torch_layers import TransformerBlock, conv_bn, inverted_residuals

INPUT = (1, 3, 224, 224)
CLASSES = 1000


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a network of `NETWORKS` for inference, with seeded random weights and BN statistics of random images."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None  # the mean over all batches seen, here one
        with torch.no_grad():
            network(torch.randn(4, *INPUT[1:]))
    return network.eval()


def resnet50() -> nn.Module:
    """ResNet-50 version 1.5 (He et al., 2015): the stride of a bottleneck is in its 3x3 convolution."""
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(_Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, *_classifier(channels))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1 (Sandler et al., 2018)."""
    layers: list[nn.Module] = [*conv_bn(3, 32, 3, 2), nn.ReLU6()]
    layers += inverted_residuals(32, strides=(1, 2, 2, 2, 1, 2, 1))
    return nn.Sequential(*layers, *conv_bn(320, 1280, 1), nn.ReLU6(), *_classifier(1280))


def densenet121() -> nn.Module:
    """DenseNet-121 (Huang et al., 2017)."""
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for block, count in enumerate((6, 12, 24, 16)):
        if block:
            layers += [*_bn_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(_Dense(channels))
            channels += 32
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *_classifier(channels))


def vit_small() -> nn.Module:
    """ViT-S/16 (Dosovitskiy et al., 2021; the small one is DeiT's): 12 blocks of width 384, 6 heads."""
    return _VisionTransformer(width=384, blocks=12, heads=6, patch=16)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "densenet121": densenet121,
    "vit_small": vit_small,
}


class _VisionTransformer(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int, patch: int) -> None:
        super().__init__()
        tokens = (INPUT[2] // patch) * (INPUT[3] // patch) + 1
        self.embed = nn.Conv2d(INPUT[1], width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x))[:, 0]))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(*conv_bn(channels, width, 1), nn.ReLU()),
            *(*conv_bn(width, width, 3, stride), nn.ReLU()),
            *conv_bn(width, 4 * width, 1),
        )
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels, 4 * width, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.relu(self.body(x) + self.shortcut(x)))


class _Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_bn_relu_conv(channels, 128, 1), *_bn_relu_conv(128, 32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def _bn_relu_conv(channels: int, width: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(), convolution]


def _classifier(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]

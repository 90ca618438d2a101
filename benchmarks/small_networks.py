"""The networks of `benchmarks.training` in PyTorch, for images of 3x32x32."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from benchmarks.torch_layers import TransformerBlock, conv_bn, inverted_residuals

CLASSES = 10
SIZE = 32


def resnet18() -> nn.Module:
    """ResNet-18 (He et al., 2015) with the stem for small images that is usual for CIFAR."""
    layers: list[nn.Module] = [*conv_bn(3, 64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Basic(channels, width, stride), _Basic(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018) with stride 1 in its stem and first stages."""
    layers: list[nn.Module] = [*conv_bn(3, 32), nn.ReLU6()]
    layers += inverted_residuals(32, strides=(1, 1, 2, 2, 1, 2, 1))
    head = [*conv_bn(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers, *head)


def vit() -> nn.Module:
    """A vision transformer of 6 blocks of width 192 on patches of 4x4."""
    return _VisionTransformer(width=192, blocks=6, heads=6, patch=4)


def tiny() -> nn.Module:
    """A convolution, a normalization and a classifier, to warm up a trainer."""
    return nn.Sequential(*conv_bn(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))


TINY = "tiny"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "vit": vit}


def build(name: str) -> nn.Module:
    """Return a network of `NETWORKS`, or the tiny one, with seeded random weights."""
    torch.manual_seed(0)
    return tiny() if name == TINY else NETWORKS[name]()


def export(module: nn.Module) -> ModelProto:
    """Export a network to ONNX without folding its normalizations."""
    with TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, SIZE, SIZE),),
            path,
            dynamo=False,
            opset_version=18,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
            training=torch.onnx.TrainingMode.PRESERVE,
        )
        return onnx.load(path)


class _Basic(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        first = [*conv_bn(channels, width, 3, stride), nn.ReLU()]
        self.body = nn.Sequential(*first, *conv_bn(width, width))
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _VisionTransformer(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x)).mean(1)))

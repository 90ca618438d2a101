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

from benchmarks.torch_models import Attention

CLASSES = 10
SIZE = 32


def resnet18() -> nn.Module:
    """ResNet-18 (He et al., 2015) with a stem for small images, as CIFAR's trainings have it."""
    layers: list[nn.Module] = [*_conv_bn(3, 64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Basic(channels, width, stride), _Basic(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018) with the strides of its first three stages taken out."""
    layers: list[nn.Module] = [*_conv_bn(3, 32), nn.ReLU6()]
    channels = 32
    for expansion, width, blocks, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(blocks):
            layers.append(_Inverted(channels, width, expansion, stride if block == 0 else 1))
            channels = width
    head = [*_conv_bn(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers, *head)


def vit() -> nn.Module:
    """A vision transformer of 6 blocks of width 192 on patches of 4x4."""
    return _VisionTransformer(width=192, blocks=6, heads=6, patch=4)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "vit": vit}


def build(name: str) -> nn.Module:
    """A network of `NETWORKS` with seeded random weights."""
    torch.manual_seed(0)
    return NETWORKS[name]()


def export(module: nn.Module) -> ModelProto:
    """A network as ONNX, its normalisations not folded."""
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


def _conv_bn(channels: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


class _Basic(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        first = [*_conv_bn(channels, width, 3, stride), nn.ReLU()]
        self.body = nn.Sequential(*first, *_conv_bn(width, width))
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _Inverted(nn.Module):
    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        wide = [*_conv_bn(channels, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        deep = [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.body = nn.Sequential(*wide, *deep, *_conv_bn(hidden, width, 1))
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x) if self.residual else self.body(x))


class _VisionTransformer(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x)).mean(1)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))

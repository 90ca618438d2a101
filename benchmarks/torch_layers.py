"""PyTorch layers shared by the networks of several benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn


def conv_bn(channels: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size, except for its stride, and its batch normalization."""
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width)]


def inverted_residuals(channels: int, strides: Sequence[int]) -> Iterator[nn.Module]:
    """Yield the stages of MobileNetV2 (Sandler et al., 2018, table 2) with these strides; they end in 320 channels."""
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for (expansion, width, blocks), stride in zip(stages, strides, strict=True):
        for block in range(blocks):
            yield InvertedResidual(channels, width, expansion, stride if block == 0 else 1)
            channels = width


class InvertedResidual(nn.Module):
    """A depthwise convolution between two pointwise ones, plus the input if shapes allow (Sandler et al., 2018)."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * channels
        expand = [*conv_bn(channels, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *conv_bn(hidden, width, 1))
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x) if self.residual else self.body(x))


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width]; the width of a head follows from the weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token attend to all tokens."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return cast(Tensor, self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, -1)))


class TransformerBlock(nn.Module):
    """Attention and an MLP of four times the width, both pre-normalized and residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))

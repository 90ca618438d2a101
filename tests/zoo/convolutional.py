"""Convolutional networks."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(channels: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, and its norm."""
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(width)
    )


def classifier(channels: int, classes: int = 5) -> nn.Sequential:
    """Mean over positions and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class ResNet(nn.Module):
    """Two stages of basic blocks; the norms are batch or group norms."""

    def __init__(self, *, groups: int = 0, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = _norm(width, groups)
        self.blocks = nn.Sequential(
            BasicBlock(width, width, 1, groups),
            BasicBlock(width, 2 * width, 2, groups),
            BasicBlock(2 * width, 2 * width, 1, groups),
        )
        self.head = classifier(2 * width)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(F.relu(self.norm(self.stem(image))))))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            _norm(width, groups),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm(width, groups),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), _norm(width, groups))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _norm(width: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, width) if groups else nn.BatchNorm2d(width)


class ConvNeXt(nn.Module):
    """Depthwise 7x7, channels-last norm and MLP, layer scale; norms over channels in front of strided convolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 2, 2), ChannelNorm(width))
        self.first = nn.Sequential(_NextBlock(width), _NextBlock(width))
        self.down = nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2))
        self.second = _NextBlock(2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(self.down(self.first(self.stem(image))))
        return cast(Tensor, self.head(self.norm(x.mean((-2, -1)))))


class ChannelNorm(nn.Module):
    """LayerNorm over channels in front of rows and columns, as arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class _NextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return cast(Tensor, x + y.permute(0, 3, 1, 2))


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, skips by concatenation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = _double(1, width), _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(2 * c, c, 2, 2) for c in (2 * width, width))
        self.join2, self.join1 = _double(4 * width, 2 * width), _double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([second, self.up2(x)], 1))
        x = self.join1(torch.cat([self.up1(x), first], 1))
        return torch.sigmoid(self.head(x))


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(channels, width), nn.ReLU(), conv_bn(width, width), nn.ReLU())


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with shuffles between."""

    def __init__(self, groups: int = 3, width: int = 24) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.blocks = nn.Sequential(*(_ShuffleBlock1(width, groups, stride) for stride in (1, 2)))
        self.head = classifier(2 * width)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(F.relu(self.stem(image)))))


class _ShuffleBlock1(nn.Module):
    def __init__(self, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        self.squeeze = conv_bn(width, width // 2, 1, groups=groups)
        self.depthwise = conv_bn(width // 2, width // 2, 3, stride, width // 2)
        self.expand = conv_bn(width // 2, width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(F.relu(self.squeeze(x)), self.groups)
        y = self.expand(self.depthwise(y))
        return F.relu(x + y) if self.stride == 1 else F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleNetV2(nn.Module):
    """Half of the channels pass a block untouched; then they are shuffled."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.blocks = nn.Sequential(*(_ShuffleBlock2(width, stride) for stride in (1, 2, 1)))
        self.head = classifier(width)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(F.relu(self.stem(image)))))


class _ShuffleBlock2(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        half, self.stride = width // 2, stride
        source = width if stride > 1 else half
        self.main = nn.Sequential(
            *(
                conv_bn(source, half, 1),
                nn.ReLU(),
                conv_bn(half, half, 3, stride, half),
                conv_bn(half, half, 1),
                nn.ReLU(),
            )
        )
        self.side = nn.Sequential(conv_bn(source, source, 3, 2, source), conv_bn(source, half, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, 1)
            return shuffle(torch.cat([left, self.main(right)], 1), 2)
        return shuffle(torch.cat([self.side(x), self.main(x)], 1), 2)


class MobileNetV3(nn.Module):
    """Inverted residuals with squeeze and excitation, hard activations."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, 2)
        self.blocks = nn.Sequential(_Inverted(width, width, 1), _Inverted(width, 24, 2), _Inverted(24, 24, 1))
        self.last = conv_bn(24, 48, 1)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.Hardswish(), nn.Linear(32, 5))

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.hardswish(self.stem(image)))
        return cast(Tensor, self.head(F.hardswish(self.last(x)).mean((2, 3))))


class _Inverted(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.expand, self.project = conv_bn(channels, hidden, 1), conv_bn(hidden, width, 1)
        self.depthwise = conv_bn(hidden, hidden, 5, stride, hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.project(y * F.hardsigmoid(gate))
        return cast(Tensor, x + y if self.residual else y)


class CrossStage(nn.Module):
    """C2f blocks of YOLOv8: split, bottlenecks in a row, everything concatenated; SiLU, nearest upsampling."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.down = conv_bn(3, width, 3, 2), conv_bn(width, 2 * width, 3, 2)
        self.first, self.second = _C2f(width, width, True), _C2f(2 * width, 2 * width, True)
        self.pool = _SPPF(2 * width)
        self.join = _C2f(3 * width, width, False)
        self.head = nn.Conv2d(width, 7, 1)

    def forward(self, image: Tensor) -> Tensor:
        small = self.first(F.silu(self.stem(image)))
        x = self.pool(self.second(F.silu(self.down(small))))
        return cast(Tensor, self.head(self.join(torch.cat([F.interpolate(x, scale_factor=2.0), small], 1))))


class _C2f(nn.Module):
    def __init__(self, channels: int, width: int, residual: bool, blocks: int = 2) -> None:
        super().__init__()
        self.part, self.residual = width // 2, residual
        self.enter = conv_bn(channels, width, 1)
        self.leave = conv_bn((2 + blocks) * self.part, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(self.part, self.part), nn.SiLU(), conv_bn(self.part, self.part), nn.SiLU())
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.split(F.silu(self.enter(x)), [self.part, self.part], 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.residual else block(parts[-1]))
        return F.silu(self.leave(torch.cat(parts, 1)))


class _SPPF(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = conv_bn(channels, channels // 2, 1), conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.silu(self.enter(x))]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return F.silu(self.leave(torch.cat(parts, 1)))


class DenseNet(nn.Module):
    """Every layer reads all before it: norms in front of convolutions, which can't be folded."""

    def __init__(self, growth: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(_dense(16 + i * growth, growth) for i in range(layers))
        width = 16 + layers * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 1, bias=False), nn.AvgPool2d(2)
        )
        self.last = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), classifier(16))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return cast(Tensor, self.last(self.transition(x)))


def _dense(channels: int, growth: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 16, 1, bias=False)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, growth, 3, padding=1, bias=False)),
    )


class SuperResolution(nn.Module):
    """ESPCN with a residual body, PReLU, and the image itself added, resized."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.slope = nn.Conv2d(1, width, 5, padding=2), nn.PReLU(width)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.middle = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.slope(self.enter(image))
        x = F.relu(F.pixel_shuffle(self.middle(x + self.body(x)), 2))
        sharp = F.pixel_shuffle(self.last(x), 2)
        return sharp + F.interpolate(image, scale_factor=4.0, mode="bilinear", align_corners=False)


class DepthMultiplier(nn.Module):
    """Depthwise convolutions that make two or three channels of each; a grouped and a dilated one; unshuffle."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.doubled = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2, groups=4)
        self.tripled = nn.Conv2d(2 * width, 6 * width, 3, padding=1, groups=2 * width, bias=False)
        self.head = classifier(6 * width)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(F.pixel_unshuffle(image, 2)))
        x = F.relu(self.grouped(F.leaky_relu(self.doubled(x), 0.1)))
        return cast(Tensor, self.head(F.elu(self.tripled(x))))


class ManyEnds(nn.Module):
    """An image modulated by a vector (FiLM) and joined with another image; three outputs at different depths."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(1, width, 3, padding=1)
        self.modulation = nn.Linear(6, 2 * width)
        self.joint = nn.Conv2d(2 * width, width, 1)
        self.mask, self.coarse = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.label, self.embedding = nn.Linear(2 * width, 4), nn.Linear(2 * width, 8)

    def forward(self, image: Tensor, depth: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, shift = self.modulation(vector).chunk(2, 1)
        x = F.relu(self.image(image) * (1 + scale[..., None, None]) + shift[..., None, None])
        x = F.relu(self.joint(torch.cat([x, F.softplus(self.depth(depth))], 1)))
        pooled = F.relu(self.coarse(x)).mean((2, 3))
        return self.mask(x), self.label(pooled), F.normalize(self.embedding(pooled), dim=-1)


class Wave(nn.Module):
    """One-dimensional: weight norm, causal padding, dilations, gated residuals, instance norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, width, 1)
        self.gates = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width, 2 * width, 3, dilation=2**i)) for i in range(2)
        )
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.norm = nn.InstanceNorm1d(width, affine=True)
        self.head = nn.Conv1d(width, 3, 1)

    def forward(self, sound: Tensor) -> Tensor:
        x, skip = self.enter(sound), cast(Tensor, 0)
        for i, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2 ** (i + 1), 0))).chunk(2, 1)
            y = out(torch.tanh(a) * torch.sigmoid(b))
            x, skip = x + y, skip + y
        return cast(Tensor, self.head(self.norm(F.relu(skip))))


class Volume(nn.Module):
    """Three-dimensional, a factorized convolution, flattened before the linear layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.space, self.time = nn.Conv3d(1, width, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(width, width, (3, 1, 1))
        self.norm = nn.BatchNorm3d(width)
        self.hidden, self.head = nn.Linear(width * 2 * 3 * 3, 24), nn.Linear(24, 4)

    def forward(self, clip: Tensor) -> Tensor:
        x = F.relu(self.norm(self.time(F.relu(self.space(clip)))))
        return cast(Tensor, self.head(F.relu(self.hidden(F.max_pool3d(x, (1, 2, 2)).flatten(1)))))


class Mixer(nn.Module):
    """MLP-Mixer: the tokens' own MLP works on the transposed activations, positions are its features."""

    def __init__(self, width: int = 16, tokens: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.within = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.within(self.norm2(x))
        return cast(Tensor, self.head(x.mean(1)))


class Detector(nn.Module):
    """Two scales, each with a box and a class branch; boxes decoded by an expectation over bins (DFL)."""

    def __init__(self, width: int = 16, bins: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.stem, self.down = conv_bn(3, width, 3, 2), conv_bn(width, 2 * width, 3, 2)
        self.boxes = nn.ModuleList(
            nn.Sequential(conv_bn(c, width), nn.SiLU(), nn.Conv2d(width, 4 * bins, 1)) for c in (width, 2 * width)
        )
        self.labels = nn.ModuleList(
            nn.Sequential(conv_bn(c, width), nn.SiLU(), nn.Conv2d(width, classes, 1)) for c in (width, 2 * width)
        )
        self.register_buffer("ladder", torch.arange(bins, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        fine = F.silu(self.stem(image))
        maps = [fine, F.silu(self.down(fine))]
        found = [
            torch.cat([box(x), label(x)], 1).flatten(2)
            for x, box, label in zip(maps, self.boxes, self.labels, strict=True)
        ]
        boxes, scores = torch.split(torch.cat(found, 2), [4 * self.bins, self.classes], 1)
        b, _, n = boxes.shape
        sides = boxes.view(b, 4, self.bins, n).softmax(2) * cast(Tensor, self.ladder)[:, None]
        near, far = sides.sum(2).chunk(2, 1)
        return torch.cat([(far - near) / 2, far + near, scores.sigmoid()], 1)

"""Swin: attention within windows, shifted by rolling."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

WINDOW = 4


class Swin(nn.Module):
    """Two blocks, plain and shifted, a merger of patches, and one more block."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 2, 2), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_SwinBlock(width, heads, 8, shift) for shift in (0, WINDOW // 2))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.last = _SwinBlock(2 * width, 2 * heads, WINDOW, 0)
        self.last_norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.patches(image).permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.last(self.merge(self.merge_norm(torch.cat(corners, -1))))
        return cast(Tensor, self.head(self.last_norm(x).mean((1, 2))))


class _SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, size: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift, self.size = heads, shift, size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.table = nn.Parameter(torch.randn((2 * WINDOW - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
        offset = places[:, :, None] - places[:, None] + WINDOW - 1
        self.register_buffer("index", offset[0] * (2 * WINDOW - 1) + offset[1], persistent=False)
        self.register_buffer("mask", self._mask(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self._attend(y)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return cast(Tensor, x + self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        windows = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(-1, WINDOW * WINDOW, c)
        n = windows.shape[0]
        q, k, v = self.qkv(windows).reshape(n, WINDOW**2, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[cast(Tensor, self.index).view(-1)].view(WINDOW**2, WINDOW**2, -1).permute(2, 0, 1)
        scores = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias[None]
        if self.shift:
            mask = cast(Tensor, self.mask)
            scores = scores.view(-1, mask.shape[0], self.heads, WINDOW**2, WINDOW**2) + mask[:, None]
            scores = scores.view(-1, self.heads, WINDOW**2, WINDOW**2)
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, WINDOW**2, c))
        y = y.view(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c)
        return cast(Tensor, y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c))

    def _mask(self) -> Tensor:
        region = torch.zeros(self.size, self.size)
        cuts = (slice(0, -WINDOW), slice(-WINDOW, -self.shift), slice(-self.shift, None)) if self.shift else ()
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                region[rows, columns] = 3 * i + j
        count = self.size // WINDOW
        region = region.view(count, WINDOW, count, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)
        return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)

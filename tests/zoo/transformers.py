"""Transformers in the spellings that model libraries use."""

from __future__ import annotations

from math import sqrt
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fused = Literal["unbind", "chunk", "slice", "split"]


class SelfAttention(nn.Module):
    """Separate queries, keys and values, as in BERT; an additive mask."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.query, self.key, self.value = (nn.Linear(width, heads * head) for _ in range(3))
        self.out = nn.Linear(heads * head, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attend to `memory`, or to itself."""
        memory = x if memory is None else memory
        q, k, v = self._split(self.query(x)), self._split(self.key(memory)), self._split(self.value(memory))
        scores = q @ k.transpose(-1, -2) / sqrt(self.head)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        mixed = (weights @ v).permute(0, 2, 1, 3).contiguous()
        return cast(Tensor, self.out(mixed.view(x.shape[0], x.shape[1], self.heads * self.head)))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head).permute(0, 2, 1, 3)


class Bert(nn.Module):
    """An encoder with norms behind the residual sums; a masked language model or a classifier on the first token."""

    def __init__(self, *, tied: bool, vocabulary: int = 29, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(16, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_BertLayer(width, heads) for _ in range(layers))
        self.tied = tied
        self.transform = nn.Linear(width, width)
        self.last_norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocabulary if tied else 5)
        if tied:
            self.decoder.weight = self.words.weight
        self.register_buffer("order", torch.arange(16)[None], persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        order = cast(Tensor, self.order)[:, : ids.shape[1]]
        x = self.words(ids) + self.types(torch.zeros_like(ids)) + self.positions(order)
        x = self.norm(x)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        if not self.tied:
            return cast(Tensor, self.decoder(torch.tanh(self.transform(x[:, 0]))))
        return cast(Tensor, self.decoder(self.last_norm(F.gelu(self.transform(x)))))


class _BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, 8)
        self.attention_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, bias=bias))
        return cast(Tensor, self.norm(x + self.down(F.gelu(self.up(x)))))


class FusedAttention(nn.Module):
    """One projection for queries, keys and values, taken apart in one of four ways."""

    def __init__(self, width: int, heads: int, how: Fused, *, scaled: bool = False) -> None:
        super().__init__()
        self.heads, self.head, self.how, self.scaled = heads, width // heads, how, scaled
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        joint = self.qkv(x)
        if self.how == "unbind":
            q, k, v = joint.reshape(b, n, 3, self.heads, self.head).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            if self.how == "slice":
                parts = [joint[..., i * c : (i + 1) * c] for i in range(3)]
            elif self.how == "chunk":
                parts = list(joint.chunk(3, -1))
            else:  # GPT-NeoX and T5X: the three lie next to each other within a head
                parts = list(torch.split(joint.view(b, n, self.heads, 3 * self.head), self.head, -1))
            q, k, v = (p.reshape(b, n, self.heads, self.head).transpose(1, 2) for p in parts)
        if self.scaled:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.head**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(b, n, c)))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, norms in front of the residual branches."""

    def __init__(self, how: Fused, *, scaled: bool = False, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(_VisionBlock(width, heads, how, scaled) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return cast(Tensor, self.head(self.norm(self.blocks(x))[:, 0]))


class _VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, how: Fused, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, heads, how, scaled=scaled)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU("tanh"), nn.Linear(3 * width, width))
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.scale * self.mlp(self.norm2(x)))


class RMSNorm(nn.Module):
    """RMSNorm as arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Llama(nn.Module):
    """A decoder: grouped queries, rotary positions, gated MLP, a causal mask."""

    def __init__(
        self,
        *,
        interleaved: bool = False,
        heads: int = 4,
        shared: int = 2,
        gated: Literal["two", "fused"] = "two",
        width: int = 32,
        layers: int = 2,
        vocabulary: int = 29,
        tied: bool = False,
        rotated: int = 8,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_LlamaLayer(width, heads, shared, interleaved, gated) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        frequency = 1.0 / 100 ** (torch.arange(0, rotated, 2) / rotated)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        n = ids.shape[1]
        steps = torch.arange(n, device=ids.device)
        angles = steps[:, None].to(x.dtype) * cast(Tensor, self.frequency)[None]
        mask = torch.where(steps[None, :] <= steps[:, None], 0.0, -1e9)[None, None]
        for layer in self.layers:
            x = layer(x, angles, mask)
        return cast(Tensor, self.head(self.norm(x)))


class _LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, interleaved: bool, gated: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attention = GroupedAttention(width, heads, shared, 8, interleaved)
        self.mlp = FusedGate(width, 3 * width) if gated == "fused" else Gate(width, 3 * width)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), angles, mask)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class GroupedAttention(nn.Module):
    """Several heads of queries share one of keys and values; rotary positions."""

    def __init__(self, width: int, heads: int, shared: int, head: int, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.head, self.interleaved = heads, shared, head, interleaved
        self.query = nn.Linear(width, heads * head, bias=False)
        self.key = nn.Linear(width, heads // shared * head, bias=False)
        self.value = nn.Linear(width, heads // shared * head, bias=False)
        self.out = nn.Linear(heads * head, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.query(x).view(b, n, -1, self.head).transpose(1, 2)
        k = self.key(x).view(b, n, -1, self.head).transpose(1, 2)
        v = self.value(x).view(b, n, -1, self.head).transpose(1, 2)
        q, k = self._rotate(q, angles), self._rotate(k, angles)
        k, v = self._repeat(k), self._repeat(v)
        scores = q @ k.transpose(2, 3) / sqrt(self.head) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return cast(Tensor, self.out(mixed))

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        if self.interleaved:
            cos, sin = angles.cos(), angles.sin()
            even, odd = x[..., ::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        half = angles.shape[-1]
        angles = torch.cat([angles, angles], -1)
        turned, rest = x[..., : 2 * half], x[..., 2 * half :]
        swapped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
        turned = turned * angles.cos() + swapped * angles.sin()
        return torch.cat([turned, rest], -1) if 2 * half < self.head else turned

    def _repeat(self, x: Tensor) -> Tensor:
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, self.shared, n, d).reshape(b, h * self.shared, n, d)


class Gate(nn.Module):
    """SwiGLU with two projections up."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x)) * self.up(x)))


class FusedGate(nn.Module):
    """SwiGLU with one projection up, cut in halves."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return cast(Tensor, self.down(F.silu(gate) * up))


class Seq2Seq(nn.Module):
    """PyTorch's own layers: an encoder, and a decoder that attends to it and, causally, to itself."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(6, width), nn.Embedding(13, width)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 48, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 48, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 13)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        memory = self.encoder(self.source(features))
        steps = torch.arange(ids.shape[1], device=ids.device)
        mask = torch.where(steps[None, :] <= steps[:, None], 0.0, -1e9)
        return cast(Tensor, self.head(self.decoder(self.target(ids), memory, tgt_mask=mask)))


class T5(nn.Module):
    """An encoder with a bias of its own for each head and distance; norms without means, no scaling."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.tokens = nn.Embedding(17, width)
        self.distances = nn.Embedding(8, heads)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2 * layers))
        self.attentions = nn.ModuleList(SelfAttention(width, heads, 8) for _ in range(layers))
        self.gates = nn.ModuleList(Gate(width, 2 * width) for _ in range(layers))
        self.last = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        steps = torch.arange(ids.shape[1], device=ids.device)
        distance = (steps[None, :] - steps[:, None]).abs().clamp(max=7)
        bias = self.distances(distance).permute(2, 0, 1)[None]
        x = self.tokens(ids)
        for i, (attention, gate) in enumerate(zip(self.attentions, self.gates, strict=True)):
            x = x + attention(self.norms[2 * i](x), bias=bias)
            x = x + gate(self.norms[2 * i + 1](x))
        return cast(Tensor, self.last(x.mean(1)))


class EinsumAttention(nn.Module):
    """Projections to [heads, width of a head] and products, all written as einsum."""

    def __init__(self, width: int = 32, heads: int = 4, head: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, width)
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, heads, head) / sqrt(width)) for _ in range(3)
        )
        self.out = nn.Parameter(torch.randn(heads, head, width) / sqrt(width))
        self.last = nn.Linear(width, 3)

    def forward(self, features: Tensor) -> Tensor:
        x = self.tokens(features)
        q, k, v = (torch.einsum("bnc,chd->bnhd", x, w) for w in (self.query, self.key, self.value))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights, v)
        return cast(Tensor, self.last(x + torch.einsum("bnhd,hdc->bnc", mixed, self.out)))


class LinearAttention(nn.Module):
    """Keys meet values before queries do, as in EfficientViT: the matrix between is [head, head]."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(4, 3 * width, 1)
        self.out = nn.Conv2d(width, 8, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        b, _, h, w = image.shape
        q, k, v = self.qkv(image).reshape(b, 3, self.heads, -1, h * w).unbind(1)
        q, k = F.relu(q), F.relu(k)
        context = v @ k.transpose(-1, -2)
        total = k.sum(-1, keepdim=True).transpose(-1, -2) @ q
        mixed = context @ q / (total + 1.0)
        return cast(Tensor, self.last(F.relu(self.out(mixed.reshape(b, -1, h, w)))))


class GPT2(nn.Module):
    """A decoder as GPT-2's: weights stored [in, out], one projection split in three, a causal mask cut from a buffer,
    the output tied to the embedding."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(29, width), nn.Embedding(48, width)
        self.layers = nn.ModuleList(_GPT2Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("order", torch.arange(48)[None], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decode(ids, 0, [(), ()])[0]

    def decode(self, ids: Tensor, before: int, past: list[tuple[Tensor, ...]]) -> tuple[Tensor, list[Tensor]]:
        """Return logits and the keys and values of all layers."""
        order = cast(Tensor, self.order)[:, before : before + ids.shape[1]]
        x = self.tokens(ids) + self.positions(order)
        present: list[Tensor] = []
        for layer, given in zip(self.layers, past, strict=True):
            x, *kept = layer(x, given)
            present += kept
        return self.norm(x) @ self.tokens.weight.T, present


class CachedGPT2(GPT2):
    """As GPT2, keys and values of earlier tokens handed in and out: heads are part of the interface."""

    def forward(  # type: ignore[override]
        self, ids: Tensor, key0: Tensor, value0: Tensor, key1: Tensor, value1: Tensor
    ) -> tuple[Tensor, ...]:
        logits, present = self.decode(ids, key0.shape[2], [(key0, value0), (key1, value1)])
        return logits, *present


class _GPT2Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = _Conv1D(width, 3 * width), _Conv1D(width, width)
        self.up, self.down = _Conv1D(width, 3 * width), _Conv1D(3 * width, width)
        self.register_buffer("causal", torch.ones(48, 48, dtype=torch.bool).tril()[None, None], persistent=False)

    def forward(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        parts = self.attend(self.norm1(x)).split(self.width, 2)
        q, k, v = (p.view(b, n, self.heads, self.width // self.heads).permute(0, 2, 1, 3) for p in parts)
        if past:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        total = k.shape[2]
        causal = cast(Tensor, self.causal)[:, :, total - n : total, :total]
        scores = torch.where(causal, q @ k.transpose(-1, -2) / sqrt(v.shape[-1]), torch.tensor(-1e4))
        mixed = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(b, n, self.width)
        x = x + self.project(mixed)
        return x + self.down(_gelu_by_hand(self.up(self.norm2(x)))), k, v


class _Conv1D(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out) / sqrt(width)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.bias.shape[0])


def _gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))

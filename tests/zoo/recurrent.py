"""Recurrent networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Embeddings, stacked recurrent layers in both directions, a linear layer for each token."""

    def __init__(
        self, kind: Callable[..., nn.RNNBase], *, directions: int = 2, layers: int = 2, hidden: int = 16
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(23, 12)
        self.recurrent = kind(12, hidden, layers, batch_first=True, bidirectional=directions == 2)
        self.hidden = nn.Linear(directions * hidden, 20)
        self.tags = nn.Linear(20, 5)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.recurrent(self.tokens(ids))
        return cast(Tensor, self.tags(torch.relu(self.hidden(states))))


class LastState(nn.Module):
    """Classifies by the last hidden state; the first one is given by a linear layer."""

    def __init__(self, kind: Callable[..., nn.RNNBase], hidden: int = 16) -> None:
        super().__init__()
        self.start = nn.Linear(4, hidden)
        self.lstm = kind is nn.LSTM
        self.recurrent = kind(6, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        first = torch.tanh(self.start(context))[None]
        _, last = self.recurrent(features, (first, torch.zeros_like(first)) if self.lstm else first)
        return cast(Tensor, self.head((last[0] if self.lstm else last).squeeze(0)))


class ConvolutionalRecurrent(nn.Module):
    """CRNN: image columns are the time steps, channels and rows their features."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = nn.MaxPool2d((2, 1))
        self.recurrent = nn.LSTM(channels * 4, 12, bidirectional=True)
        self.head = nn.Linear(24, 7)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.features(image))
        steps = x.flatten(1, 2).permute(2, 0, 1)
        return cast(Tensor, self.head(self.recurrent(steps)[0]))


class AttentivePool(nn.Module):
    """A GRU whose states are weighed by an attention over time."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * hidden, 1)
        self.head = nn.Linear(2 * hidden, 3)

    def forward(self, features: Tensor) -> Tensor:
        states, _ = self.recurrent(features)
        weights = self.score(torch.tanh(states)).softmax(1)
        return cast(Tensor, self.head((states * weights).sum(1)))

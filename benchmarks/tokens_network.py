"""The network of `benchmarks.tokens`: a small vision transformer, trained on handwritten digits with PyTorch."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.torch_layers import TransformerBlock

SIZE, PATCH, WIDTH, HEADS, BLOCKS, CLASSES = 32, 4, 64, 4, 6, 10
EPOCHS, BATCH, RATE = 30, 50, 2e-3
_SHIFT = 2  # pixels by which a training image moves at most

Images = NDArray[np.float32]


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., 2021): patches of 4x4 of an image of 32x32, and a token for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.Sequential(*(TransformerBlock(WIDTH, HEADS) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x))[:, 0]))


def prepared(images: NDArray[np.uint8]) -> Images:
    """Return images of 28x28 as the network takes them: of 32x32, from -1 to 1."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return (padded / 127.5 - 1).astype(np.float32)[:, None]


def trained(images: Images, labels: NDArray[np.int64], seed: int = 0) -> VisionTransformer:
    """Return a network trained on images that are moved by up to two pixels, with AdamW and a falling rate."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = VisionTransformer()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            moved = np.stack([np.roll(images[i], rng.integers(-_SHIFT, _SHIFT + 1, 2), (1, 2)) for i in chosen])
            loss = nn.functional.cross_entropy(
                network(torch.from_numpy(moved)), torch.from_numpy(labels[chosen]), label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
    return network.eval()


def export(network: nn.Module, path: Path, *, dynamo: bool) -> None:
    """Write a network as ONNX by one of PyTorch's exporters, for any number of images."""
    many: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"image": {0: "n"}}}
    )
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 1, SIZE, SIZE),),
            path,
            dynamo=dynamo,
            opset_version=18,
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
            **many,
        )

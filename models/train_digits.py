"""Train the two digit classifiers of this folder and export them: `python -m models.train_digits`.

Data: the 1,797 handwritten digits of 8x8 gray levels that scikit-learn ships, a quarter held out.
Needs the `dev` extra. The results are committed, because a test must not depend on training.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
EPOCHS = 40
BATCH = 64
RATE = 3e-3

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def named(**layers: nn.Module) -> nn.Sequential:
    """Return layers in a row; the exporter names its nodes after them."""
    return nn.Sequential(OrderedDict(layers))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution without bias, and its BatchNormalization."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return named(conv=conv, bn=nn.BatchNorm2d(outputs))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        """Make layers that compute the gate through a quarter of `channels`."""
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))


class Residual(nn.Module):
    """A basic residual block, with a 1x1 convolution on the shortcut if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, gated: bool = False) -> None:
        """Make the layers; `gated` adds squeeze and excitation at the end of the branch."""
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        self.gate = SqueezeExcite(outputs) if gated else nn.Identity()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        branch = self.gate(self.second(torch.relu(self.first(x))))
        return torch.relu(branch + self.shortcut(x))


def digits_resnet() -> nn.Module:
    """Return three residual stages, squeeze and excitation, and a depthwise-separable block."""
    return named(
        stem=conv_bn(1, 16, 3),
        stem_relu=nn.ReLU(),
        stage1=Residual(16, 16, 1),
        stage2=Residual(16, 32, 2, gated=True),
        stage3=Residual(32, 64, 2),
        depthwise=conv_bn(64, 64, 3, groups=64),
        depthwise_relu=nn.ReLU(),
        pointwise=conv_bn(64, 96, 1),
        pointwise_relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(96, 10),
    )


def digits_cnn() -> nn.Module:
    """Return plain convolutions and poolings, flattened into two fully connected layers."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        return named(
            conv1=nn.Conv2d(inputs, outputs, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(outputs, outputs, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
        )

    return named(
        stage1=stage(1, 24),
        stage2=stage(24, 48),
        flatten=nn.Flatten(),
        hidden=nn.Linear(48 * 2 * 2, 96),
        relu=nn.ReLU(),
        classifier=nn.Linear(96, 10),
    )


def digits() -> tuple[Images, Images, Labels, Labels]:
    """Return training images, held-out images, training labels, held-out labels.

    Images are [N, 1, 8, 8], gray levels 0..16 mapped to -1..1.
    """
    data = load_digits()
    images = (data.images[:, None] / 8 - 1).astype(np.float32)
    labels = data.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    return parts[0], parts[1], parts[2], parts[3]


def train(make: Callable[[], nn.Module], images: Images, labels: Labels) -> nn.Module:
    """Train a network and return it in inference mode; training images are shifted by up to a pixel."""
    torch.manual_seed(0)
    model = make().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            loss = functional.cross_entropy(model(_shifted(x[batch])), y[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def _shifted(x: Tensor) -> Tensor:
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    row, column = torch.randint(0, 3, (2,)).tolist()
    return padded[:, :, row : row + 8, column : column + 8]


def export_torchscript(model: nn.Module, example: Tensor, path: Path) -> None:
    """Export by TorchScript, without folding BatchNormalization."""
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )


def export_dynamo(model: nn.Module, example: Tensor, path: Path) -> None:
    """Export by dynamo, without the stack traces, which contain paths of the exporting machine."""
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=18,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None
    exported = program.model_proto
    for node in exported.graph.node:
        kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, path)


def accuracy(path: Path, images: Images, labels: Labels) -> float:
    """Return the share of images that the file classifies correctly on ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def main() -> None:
    """Train, export and measure both, and write the records that the tests compare with."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_images, test_images, train_labels, test_labels = digits()
    np.savez_compressed(HERE / "digits_train.npz", images=train_images, labels=train_labels)
    np.savez_compressed(HERE / "digits_test.npz", images=test_images, labels=test_labels)
    records = []
    for name, make, exporter, export in (
        ("digits_resnet", digits_resnet, "TorchScript", export_torchscript),
        ("digits_cnn_dynamo", digits_cnn, "dynamo", export_dynamo),
    ):
        model = train(make, train_images, train_labels)
        path = HERE / f"{name}.onnx"
        export(model, torch.from_numpy(test_images[:2]), path)
        records.append(
            {
                "name": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "exporter": f"{exporter}, torch {torch.__version__.split('+')[0]}",
                "opset": onnx.load(path).opset_import[0].version,
                "parameters": sum(p.numel() for p in model.parameters()),
                "accuracy": accuracy(path, test_images, test_labels),
            }
        )
    (HERE / "models.json").write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()

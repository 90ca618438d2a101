"""A network as each of PyTorch's two exporters writes it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from tests.zoo.spec import Network

Exporter = Callable[[Network, int | None], ModelProto]


def torchscript(network: Network, opset: int | None = None) -> ModelProto:
    """Export with `torch.jit.trace`: Shape and Gather chains, constants as nodes."""
    axes = {name: dict(_dynamic(entry.axes)) for name, entry in network.inputs.items()}
    with _quietly(), TemporaryDirectory() as folder:
        module, inputs = _prepared(network)
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=opset or 17,
            input_names=list(inputs),
            dynamic_axes=axes,
        )
        return onnx.load(Path(folder) / "model.onnx")


def dynamo(network: Network, opset: int | None = None) -> ModelProto:
    """Export with `torch.export`: decomposed operators, symbolic value_info."""
    with _quietly():
        module, inputs = _prepared(network)
        named: dict[str, torch.export.Dim] = {}
        shapes = tuple(
            {i: named.setdefault(name, torch.export.Dim(name, min=1, max=4096)) for i, name in _dynamic(entry.axes)}
            for entry in network.inputs.values()
        )
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset or 20,
            input_names=list(inputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return ModelProto.FromString(program.model_proto.SerializeToString())


EXPORTERS: Mapping[str, Exporter] = {"dynamo": dynamo, "torchscript": torchscript}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give scales, shifts and running statistics values that a trained network might have, not ones and zeroes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.2, generator=generator)
            elif tensor.dim() == 1 and isinstance(tensor, nn.Parameter):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def _prepared(network: Network) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = randomize(network.build())
    return module, {name: torch.from_numpy(array) for name, array in network.draw(network.sizes).items()}


def _dynamic(axes: tuple[str | int, ...]) -> list[tuple[int, str]]:
    return [(i, name) for i, name in enumerate(axes) if isinstance(name, str)]


class _quietly:
    """Silence the exporters, which warn of each other and report progress."""

    def __enter__(self) -> None:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        self._out, self._err = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
        self._out.__enter__()
        self._err.__enter__()

    def __exit__(self, *error: object) -> None:
        self._err.__exit__(None, None, None)
        self._out.__exit__(None, None, None)
        logging.disable(self._level)
        self._filters.__exit__(None, None, None)

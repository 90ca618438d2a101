"""Runs in an interpreter with onnxruntime-training: turns a graph of a loss into a training session, and obeys.

It needs onnx, numpy and onnxruntime-training alone, not this package. Commands come on stdin, each a line of JSON
followed by as many bytes of arrays (.npz) as it says; answers go to stdout in the same form. It ends with its input.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx


def send(stream: BinaryIO, message: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
    """Write a message and its arrays."""
    content, arrays = io.BytesIO(), arrays or {}
    if arrays:
        np.savez(content, *arrays.values())  # by position: names may be those of savez's own parameters
    payload = content.getvalue()
    stream.write(json.dumps({**message, "names": list(arrays), "bytes": len(payload)}).encode() + b"\n" + payload)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Read a message and its arrays; None at the end of the input."""
    line = stream.readline()
    if not line:
        return None
    message = json.loads(line)
    names, payload = message.pop("names"), stream.read(message.pop("bytes"))
    if not payload:
        return message, {}
    with np.load(io.BytesIO(payload), allow_pickle=False) as found:
        return message, {name: found[f"arr_{i}"] for i, name in enumerate(names)}


class Trainer:
    """A training session.

    Attributes:
        inputs: names of what a step is fed with, in order.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Make the training graphs of ``forward.onnx``, whose first output is the loss."""
        artifacts, api = import_training()
        options = {"AdamW": artifacts.OptimType.AdamW, "SGD": artifacts.OptimType.SGD}
        with contextlib.redirect_stdout(sys.stderr):
            artifacts.generate_artifacts(
                onnx.load(folder / "forward.onnx"),
                requires_grad=settings["trained"],
                frozen_params=settings["statistics"],
                optimizer=options[settings["optimizer"]],
                artifact_directory=str(folder),
            )
        path = folder / "optimizer_model.onnx"
        update = onnx.load(path)
        update.ir_version = 10  # newer onnx packages write one that this runtime doesn't read
        for node in update.graph.node:
            for attribute in node.attribute:
                if attribute.name in settings["attributes"]:
                    attribute.f = settings["attributes"][attribute.name]
        onnx.save(update, path)
        self.state = api.CheckpointState.load_checkpoint(str(folder / "checkpoint"))
        self.module = api.Module(
            str(folder / "training_model.onnx"), self.state, session_options=_options(settings["threads"])
        )
        self.update = api.Optimizer(str(path), self.module)
        self.inputs = self.module.input_names()
        self.names = [*settings["trained"], *settings["statistics"]]

    def forward_backward(self, arrays: dict[str, np.ndarray]) -> list[float]:
        """Take a batch and return the losses; gradients are added up."""
        self.module.train()
        found = self.module(*(arrays[name] for name in self.inputs))
        return [float(np.asarray(loss)) for loss in (found if isinstance(found, (list, tuple)) else [found])]

    def step(self, rate: float) -> None:
        """Update the weights and forget the gradients."""
        self.update.set_learning_rate(rate)
        self.update.step()
        self.module.lazy_reset_grad()

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights and running statistics."""
        return {name: np.asarray(self.state.parameters[name].data) for name in self.names}


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def import_training() -> tuple[Any, Any]:
    """Import the training API; an empty package replaces its own, which would import torch."""
    import onnxruntime

    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [os.path.join(os.path.dirname(onnxruntime.__file__), "training")]
    sys.modules["onnxruntime.training"] = package
    from onnxruntime.training import api, artifacts

    return artifacts, api


def main() -> None:
    """Run commands until there are no more."""
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    trainer: Trainer | None = None
    while (received := receive(commands)) is not None:
        message, arrays = received
        try:
            if message["command"] == "open":
                trainer = Trainer(Path(message["folder"]), message["settings"])
                send(answers, {"inputs": trainer.inputs})
                continue
            assert trainer is not None
            if message["command"] == "batch":
                send(answers, {"losses": trainer.forward_backward(arrays), "cpu": time.process_time()})
            elif message["command"] == "step":
                trainer.step(message["rate"])
                send(answers, {"cpu": time.process_time()})
            elif message["command"] == "weights":
                send(answers, {}, trainer.weights())
        except Exception as error:  # the parent process reports it
            send(answers, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})


if __name__ == "__main__":
    main()

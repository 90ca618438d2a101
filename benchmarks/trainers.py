"""What `benchmarks.training` compares: a step of onnxprune, of torch and of onnxruntime-training, on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.small_networks import CLASSES, SIZE
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings.training import TrainSettings
from onnxprune.train.objective import objective, write_losses
from onnxprune.train.runner import runner_for
from onnxprune.train.step import build_step
from onnxprune.train.trainable import trainable

if TYPE_CHECKING:
    from onnxprune_ort_training.backend import Worker

Step = Callable[[], tuple[float, float]]
"""Runs a step; returns its loss, and the CPU seconds that another process has used so far."""

Arrays = Mapping[str, NDArray[Any]]

SETTINGS = TrainSettings(optimizer="adamw", clip=0.0, norms="batch", decay=0.01, rate=1e-3)


def draw_batch(size: int) -> Arrays:
    """Draw random images and labels."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 3, SIZE, SIZE)).astype(np.float32)
    return {"image": image, "labels": rng.integers(0, CLASSES, size)}


def native(model: ModelProto, batch: Arrays, threads: int, provider: Provider | None = None) -> Step:
    """Return steps of onnxprune for a normalized model, on the CPU or another provider."""
    place = provider or Provider(CPU)
    goal = objective(model, SETTINGS, labeled=True, teacher=False)
    step = build_step(model, goal, SETTINGS, batch, fast=place.name == CPU)
    runner = runner_for(step, providers=place.chain(threads), threads=threads)
    return lambda: (runner.step([batch], SETTINGS.peak)["loss"], 0.0)


def eager(module: torch.nn.Module, batch: Arrays, threads: int, device: str = "cpu") -> Step:
    """Return steps of torch."""
    torch.set_num_threads(threads)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=SETTINGS.peak, weight_decay=SETTINGS.decay)
    image, labels = (torch.from_numpy(batch[n]).to(device) for n in ("image", "labels"))

    def step() -> tuple[float, float]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(image), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item(), 0.0

    return step


def ort_training(model: ModelProto, batch: Arrays, threads: int, worker: Worker) -> Step:
    """Return steps of onnxruntime-training, in a worker, for a normalized model."""
    from onnxprune_ort_training.backend import loss_model, statistics_of
    from onnxprune_ort_training.forms import in_its_forms

    graph = forward(model, {"image": batch["image"].shape}, trainable(model), norms="frozen", fast=False)
    goal = objective(model, SETTINGS, labeled=True, teacher=False)
    losses = write_losses(graph, model, goal, SETTINGS, batch)
    in_its_forms(graph.tape, norms="batch")
    settings = {"optimizer": "AdamW", "attributes": {"weight_decay": SETTINGS.decay}}
    names = {"trained": list(graph.weights), "statistics": statistics_of(graph)}
    worker.open(loss_model(graph, losses, SETTINGS, feeds_of(graph, model)), {**settings, **names, "threads": threads})

    def step() -> tuple[float, float]:
        (loss,) = worker.ask({"command": "batch"}, batch)[0]["losses"]
        return loss, worker.ask({"command": "step", "rate": SETTINGS.peak})[0]["cpu"]

    return step

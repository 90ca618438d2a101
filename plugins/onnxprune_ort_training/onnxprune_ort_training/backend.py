"""The backend ort-training: Microsoft's onnxruntime-training in an interpreter of its own, as a worker process."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, save

from onnxprune.autodiff.backward import model_of
from onnxprune.autodiff.forward import Forward, feeds_of, forward
from onnxprune.errors import PlanError, TrainingError
from onnxprune.model.tape import Tensor
from onnxprune.settings.training import TrainSettings
from onnxprune.train.backend import Job, Trained
from onnxprune.train.batches import TrainingBatches, objective_of
from onnxprune.train.loop import Loop
from onnxprune.train.objective import write_losses
from onnxprune.train.trainable import trainable
from onnxprune_ort_training import worker as remote
from onnxprune_ort_training.forms import in_its_forms

Arrays = Mapping[str, NDArray[Any]]

_NEWEST_OPSET = 21
_OPTIMIZERS = ("adamw", "sgd")
_ADVICE = "make an environment with `python -m onnxprune_ort_training PATH`, and name its interpreter"


class OrtTraining:
    """Trains with onnxruntime-training."""

    def __init__(self, python: Path | None) -> None:
        """Take the interpreter in which onnxruntime-training is installed.

        Raises:
            TrainingError: none is given, or it isn't there (OP908).
        """
        if python is None:
            raise TrainingError("OP908", "ort-training needs an interpreter, `training_python`", hint=_ADVICE)
        if not python.exists():
            raise TrainingError("OP908", "there is no such interpreter", where=str(python), hint=_ADVICE)
        self._python = python

    def train(self, job: Job) -> Trained:
        """Train a model.

        Raises:
            TrainingError: the model or the settings are beyond it (OP908), or there is nothing to learn (OP904).
            PlanError: options contradict each other (OP302).
        """
        settings = job.settings
        _check(job)
        batches = TrainingBatches(job, goal := objective_of(job, job.model))
        shapes = {i.name: batches.example[i.name].shape for i in job.model.graph.input if i.name in batches.example}
        names = trainable(job.model, freeze=settings.freeze, also=settings.also)
        norms = settings.norms_for(batches.size)
        graph = forward(job.model, shapes, names, norms="frozen", fast=False)
        losses = write_losses(graph, job.model, goal, settings, batches.example, batches.scales)
        in_its_forms(graph.tape, norms=norms)
        statistics = statistics_of(graph) if norms == "batch" else []
        with Worker(self._python) as worker:
            model = loss_model(graph, losses, settings, feeds_of(graph, job.model))
            tensors = {"trained": list(graph.weights), "statistics": statistics}
            worker.open(model, {**_optimizer(settings), **tensors, "threads": job.threads})
            runner = RemoteRunner(worker, list(losses), settings.accumulate)
            return replace(Loop(job, batches, runner).all(), follows=goal.follows)


class Worker(AbstractContextManager["Worker"]):
    """The worker process, which ends with the ``with`` block, or when this process does."""

    def __init__(self, python: Path) -> None:
        """Start the worker."""
        command = [str(python), "-I", remote.__file__]
        self._where = str(python)
        self._folder = TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
        self._noise = (Path(self._folder.name) / "stderr").open("w+b")
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise)
        except OSError as error:
            raise TrainingError("OP908", f"the interpreter can't be started: {error}", where=self._where) from error

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def __exit__(self, *error: object) -> None:
        """Stop the worker."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._noise):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def open(self, model: ModelProto, settings: Mapping[str, Any]) -> None:
        """Make the training graphs of a model whose first output is the loss."""
        save(model, Path(self._folder.name) / "forward.onnx")
        self.ask({"command": "open", "folder": self._folder.name, "settings": dict(settings)})

    def ask(self, message: dict[str, Any], arrays: Arrays | None = None) -> tuple[dict[str, Any], Arrays]:
        """Send a command and return the answer.

        Raises:
            TrainingError: the worker failed or is gone (OP908).
        """
        stdin, stdout = _present(self._process.stdin), _present(self._process.stdout)
        try:
            remote.send(stdin, message, None if arrays is None else dict(arrays))
            answer = remote.receive(stdout)
        except OSError:
            answer = None
        if answer is None:
            self._noise.seek(0)
            last = self._noise.read().decode(errors="replace").strip().splitlines()[-1:]
            cause = f"the worker of onnxruntime-training has ended: {''.join(last) or 'it left no message'}"
            raise TrainingError("OP908", cause, where=self._where, hint=_ADVICE)
        if "error" in answer[0]:
            cause = f"onnxruntime-training failed: {answer[0]['error']}"
            raise TrainingError("OP908", cause, where=self._where, hint="set `backend` to native")
        return answer


class RemoteRunner:
    """Makes training steps in a worker."""

    def __init__(self, worker: Worker, losses: Sequence[str], accumulate: int) -> None:
        """Take a worker that has opened a model."""
        self._worker, self._losses, self._accumulate = worker, losses, accumulate

    def step(self, batches: Sequence[Arrays], rate: float) -> dict[str, float]:
        """Make one step from one batch, or from several whose gradients add up; return the mean losses."""
        found = [self._worker.ask({"command": "batch"}, batch)[0]["losses"] for batch in batches]
        self._worker.ask({"command": "step", "rate": rate})
        means = np.mean(found, axis=0)
        means[0] *= self._accumulate  # which its share in the step was divided by
        return dict(zip(self._losses, means.tolist(), strict=True))

    @property
    def weights(self) -> Arrays:
        """The model's initializers as they are now."""
        return self._worker.ask({"command": "weights"})[1]

    @property
    def state(self) -> Arrays:
        """Everything needed to resume, which the worker doesn't report.

        Raises:
            PlanError: always (OP302).
        """
        raise PlanError("OP302", "the `backend` ort-training keeps no checkpoints")

    def load_state(self, state: Arrays, number: int) -> None:
        """Resume from a state.

        Raises:
            PlanError: always (OP302).
        """
        raise PlanError("OP302", "the `backend` ort-training keeps no checkpoints")


def _check(job: Job) -> None:
    settings = job.settings
    if job.checkpoint is not None:
        raise PlanError("OP302", "the `backend` ort-training keeps no checkpoints", hint="leave `checkpoint` out")
    lacking = {
        f"the optimizer {settings.optimizer}": ("`optimizer` to adamw", settings.optimizer not in _OPTIMIZERS),
        "momentum": ("`momentum` to 0", settings.optimizer == "sgd" and settings.momentum),
        "clipping of gradients": ("`clip` to 0", settings.clip),
        "the group lasso": ("`lasso` to 0", settings.lasso),
    }
    found = {what: instead for what, (instead, wanted) in lacking.items() if wanted}
    if found:
        cause = f"onnxruntime-training lacks {' and '.join(found)}"
        raise TrainingError("OP908", cause, hint=f"set {', '.join(found.values())}")


def _optimizer(settings: TrainSettings) -> dict[str, Any]:
    if settings.optimizer == "adamw":
        return {"optimizer": "AdamW", "attributes": {"weight_decay": settings.decay}}
    return {"optimizer": "SGD", "attributes": {}}


def statistics_of(graph: Forward) -> list[str]:
    """Return the running statistics, which it keeps up to date if they are parameters that stay."""
    norms = [node for node in graph.tape.nodes if node.op_type == "BatchNormalization"]
    return [name for node in norms for name in node.input[3:5] if name in graph.tape.constants]


def loss_model(graph: Forward, losses: Mapping[str, Tensor], settings: TrainSettings, state: Arrays) -> ModelProto:
    """Make a model of the losses, the first divided by the number of batches that accumulate, with its weights inside.

    Raises:
        TrainingError: it is of a newer opset than onnxruntime-training knows (OP908).
    """
    if graph.tape.opset > _NEWEST_OPSET:
        cause = f"onnxruntime-training knows opsets up to {_NEWEST_OPSET}, and the model's is {graph.tape.opset}"
        raise TrainingError("OP908", cause, hint="set `backend` to native")
    model = model_of(graph.tape, {**losses, "loss": losses["loss"] * (1 / settings.accumulate)})
    inputs = [value for value in model.graph.input if value.name not in state]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), n) for n, array in state.items())
    return model


def _present(stream: IO[bytes] | None) -> Any:
    assert stream is not None
    return stream

"""The native backend: training steps as ONNX graphs, in the installed ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.train.backend import Job, Trained
from onnxprune.train.batches import Batches
from onnxprune.train.latent import rounded, with_latents
from onnxprune.train.loop import Loop
from onnxprune.train.machine import machine_for
from onnxprune.train.objective import objective
from onnxprune.train.step import build_step

_CPU = "CPUExecutionProvider"


class Native:
    """Trains on the installed ONNX Runtime, on any of its execution providers."""

    def train(self, job: Job) -> Trained:
        """Train a model.

        Raises:
            TrainingError: the model can't be trained as asked (OP901 to OP906).
        """
        data, teacher, settings = job.data, job.teacher, job.settings
        model = with_latents(job.model)
        goal = objective(model, settings, labelled=data.labelled, teacher=teacher is not None)
        batches = Batches(data, settings, goal, teacher, providers=job.providers, threads=job.threads)
        fast = all((p if isinstance(p, str) else p[0]) == _CPU for p in job.providers)
        step = build_step(model, goal, settings, batches.example, fast=fast)
        machine = machine_for(step, providers=job.providers, threads=job.threads)
        trained = Loop(replace(job, model=model), batches, machine).all()
        return trained if model is job.model else replace(trained, model=rounded(trained.model, job.model))

"""Fine-tuning on ONNX Runtime, without a framework.

A training step (forward pass, loss, gradients by reverse-mode differentiation, optimizer) is built as an ONNX graph of
standard operators, which any execution provider runs (`step`, `runner`, `loop`). Other implementations of `backend`
can train instead.
"""

from onnxprune.train.backend import Job, Trained, TrainingBackend, register_backend
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.train.history import Epoch

__all__ = [
    "Epoch",
    "FineTuned",
    "Job",
    "Trained",
    "TrainingBackend",
    "finetune",
    "register_backend",
]

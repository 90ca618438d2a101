"""Fine-tuning on ONNX Runtime, without a framework.

A training step (forward pass, loss, gradients by reverse-mode differentiation, optimizer) is built as an ONNX graph of
standard operators, which any execution provider runs (`step`, `runner`, `loop`). Other implementations of `backend`
can train instead.
"""

from onnxprune.train.augment import Augmentation
from onnxprune.train.backend import Job, Trained, TrainingBackend, register_backend
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.train.history import Epoch, Progress
from onnxprune.train.losses import LossSettings
from onnxprune.train.settings import TrainSettings

__all__ = [
    "Augmentation",
    "Epoch",
    "FineTuned",
    "Job",
    "LossSettings",
    "Progress",
    "TrainSettings",
    "Trained",
    "TrainingBackend",
    "finetune",
    "register_backend",
]

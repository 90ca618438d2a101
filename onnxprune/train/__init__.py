"""Fine-tuning on ONNX Runtime, without a framework.

A training step (forward, loss, gradients by reverse-mode differentiation, optimizer) is written as an ONNX graph of
standard operators, which any execution provider runs. `rules` has the gradient of each operator, `tape` is what they
are written on, `native` is the loop; `backend` lets plug-ins train instead.
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

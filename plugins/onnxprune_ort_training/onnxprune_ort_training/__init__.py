"""The training backend ort-training for onnxprune: Microsoft's onnxruntime-training in an interpreter of its own.

An installed package is found by its entry point; where it is only imported, it registers itself.
"""

from onnxprune.train import register_backend
from onnxprune_ort_training.backend import OrtTraining

__all__ = ["OrtTraining"]

register_backend("ort-training", OrtTraining)

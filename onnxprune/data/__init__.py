"""Data to calibrate on and to judge by: opened from what the user names, preprocessed, checked and given in batches.

Samples come in a fixed order and are never all in memory: arrays are mapped from their files, images are decoded batch
by batch, functions are asked for their batches anew. Everything read is taken to come from strangers.
"""

from onnxprune.data.batch import IGNORED, Batch, Dataset
from onnxprune.data.dataset import Data, split
from onnxprune.data.guess import guess_recipe
from onnxprune.data.opening import open_data
from onnxprune.data.ports import InputSpec, fixed_batch, inputs_of
from onnxprune.data.recipe import Recipe, read_recipe

__all__ = [
    "IGNORED",
    "Batch",
    "Data",
    "Dataset",
    "InputSpec",
    "Recipe",
    "fixed_batch",
    "guess_recipe",
    "inputs_of",
    "open_data",
    "read_recipe",
    "split",
]

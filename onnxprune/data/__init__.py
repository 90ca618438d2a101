"""Data for calibration and evaluation: opened, preprocessed, checked and batched.

Samples come in a fixed order and are never all in memory: arrays are memory-mapped, images are decoded batch by batch,
functions are called again for each pass. All files are treated as untrusted.
"""

from onnxprune.data.batch import IGNORED, Batch, Dataset
from onnxprune.data.dataset import Data, some, split
from onnxprune.data.fit import guess_recipe
from onnxprune.data.inputs import InputSpec, fixed_batch, inputs_of
from onnxprune.data.opening import is_noise, open_data
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
    "is_noise",
    "open_data",
    "read_recipe",
    "some",
    "split",
]

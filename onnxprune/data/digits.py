"""The handwritten digits that scikit-learn ships: 1,797 images of 8x8 grey levels, for demonstrations."""

from __future__ import annotations

import numpy as np

from onnxprune.data.batch import Array
from onnxprune.errors import DataError, UsageError

PARTS = ("digits", "digits:train", "digits:test")
"""All of them, or three quarters to train on and the rest."""


def digits_arrays(part: str) -> dict[str, Array]:
    """Give the digits as images [N, 1, 8, 8] from -1 to 1, and their labels.

    The quarter held out is the same, stratified one with which this project's own models were tested.

    Raises:
        DataError: there is no such part (OP701).
        UsageError: scikit-learn isn't installed (OP605).
    """
    if part not in PARTS:
        raise DataError("OP701", f"there is no part {part!r} of the digits", hint=f"there are {', '.join(PARTS)}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        cause = "the digits come with scikit-learn, which isn't installed"
        raise UsageError("OP605", cause, hint="pip install scikit-learn") from error
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    labels = digits.target.astype(np.int64)
    if part != "digits":
        held = part == "digits:test"
        parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
        images, labels = parts[held], parts[2 + held]
    return {"images": images, "labels": labels}

"""Samples that are held back from a fit, to judge it by."""

from __future__ import annotations

from typing import TypeVar

_EVERY = 5

T = TypeVar("T")


def parts(samples: int, batch: int, fitted: T, held: T) -> list[tuple[slice, T]]:
    """Split a batch into held-back and fitted samples: one of every five is held back.

    Whole samples are, since positions within a sample are similar. Of single samples, every fifth batch is.

    Args:
        samples: the number of samples in the batch.
        batch: its number.
        fitted: what collects samples to fit to.
        held: what collects those held back.
    """
    if samples > 1:
        part = -(-samples // _EVERY)
        return [(slice(part), held), (slice(part, None), fitted)]
    return [(slice(None), held if batch % _EVERY == _EVERY - 1 else fitted)]

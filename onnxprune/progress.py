"""Progress reports of long-running work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the phase that is under way, how many of its parts are done, and how many there are if that is known.

What follows a colon in the phase is detail that may change from call to call: "train: epoch 3".
"""

_LEFT = re.compile(r", about \d+ (s|min) left")


def within(progress: Progress, name: str) -> Progress:
    """Return a callback for the phases of a part of the work: "repair" is reported as "trial 2 of 6: repair".

    If the name says what time is left, phases don't: there is one estimate, of the whole.
    """
    known = says_time_left(name)
    return lambda phase, done, total: progress(f"{name}: {_LEFT.sub('', phase) if known else phase}", done, total)


def time_left(seconds: float) -> str:
    """Return the end of a phase's name that says what time is left: ", about 3 min left"."""
    return f", about {duration(seconds)} left"


def says_time_left(phase: str) -> bool:
    """Whether a phase's name says what time is left."""
    return bool(_LEFT.search(phase))


def counted(progress: Progress, phase: str) -> Callable[[float], None]:
    """Return a callback for the completed share of a phase, 0 to 1, which is reported in percent."""
    progress(phase, 0, 100)
    return lambda share: progress(phase, round(100 * share), 100)


def silent(phase: str, done: int, total: int | None) -> None:
    """Report nothing."""


def duration(seconds: float) -> str:
    """Return a duration in words: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

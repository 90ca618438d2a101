"""Turns of the workers on one machine: while one measures time, the others rest."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Hold this machine's lock: alone to measure time, or together with others that don't.

    The system frees the lock of a process that dies.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"  # of Windows, whose folder is one of its own
    path = Path(tempfile.gettempdir()) / f"onnxprune-{user}.lock"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    opened = os.open(path, flags, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            if alone:  # Windows has no shared locks of this kind
                msvcrt.locking(opened, msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(opened)

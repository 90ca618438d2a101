"""The load that other processes put on this machine while something is measured."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic, process_time

BUSY = 0.2
"""The share of the cores' time taken by other processes from which measured times are unreliable."""

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # the columns idle and iowait, see proc_stat(5)
_WORK = 8  # columns that count; the others are parts of these


class Load:
    """The share of the usable cores' time that other processes take, from its creation on."""

    def __init__(self) -> None:
        """Start to observe."""
        self._start = _now()

    def share(self) -> float:
        """Return the share, 0 to 1. Systems without /proc/stat tell the average of the last minute; 0 if unknown."""
        (busy, total, own), (busy_now, total_now, own_now) = self._start, _now()
        if total_now > total:
            return min(1.0, max(0.0, (busy_now - busy) - (own_now - own)) / (total_now - total))
        with suppress(OSError, AttributeError):
            return 0.0 if total else min(1.0, max(0.0, os.getloadavg()[0] - 1) / (os.cpu_count() or 1))
        return 0.0


def _now() -> tuple[float, float, float]:
    """Return the busy seconds of the usable cores, all of their seconds, and the CPU seconds of this process."""
    busy = total = 0.0
    with suppress(OSError, AttributeError, ValueError):
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        tick = os.sysconf("SC_CLK_TCK")
        for line in _STAT.read_text(encoding="ascii").splitlines():
            name, *columns = line.split()
            if name in cores:
                ticks = [int(column) / tick for column in columns[:_WORK]]
                busy += sum(ticks) - sum(ticks[column] for column in _IDLE)
        total = len(cores) * monotonic() if busy else 0.0
    return busy, total, process_time()

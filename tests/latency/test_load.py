"""The load of other processes, from texts of /proc/stat with known answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxprune.runtime import load as module
from onnxprune.runtime.load import Load


class Machine:
    """Two cores, of which this process may use the given ones; times in hundredths of a second."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
        self.path, self.now, self.own = folder / "stat", 100.0, 5.0
        self.busy = [1000, 1000]
        monkeypatch.setattr(module, "_STAT", self.path)
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "process_time", lambda: self.own)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
        monkeypatch.setattr(os, "sysconf", lambda _: 100, raising=False)
        self.write()

    def write(self) -> None:
        # user nice system idle iowait irq softirq steal guest guest_nice; the guest's time is in user already
        lines = [f"cpu{i} {busy - 30} 0 20 {int(100 * self.now)} 7 0 0 10 55 0" for i, busy in enumerate(self.busy)]
        self.path.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5", ""]))

    def passes(self, seconds: float, busy: tuple[float, float], own: float) -> None:
        self.now, self.own = self.now + seconds, self.own + own
        self.busy = [round(a + 100 * b) for a, b in zip(self.busy, busy, strict=True)]
        self.write()


@pytest.mark.parametrize(
    ("cores", "busy", "own", "share"),
    [
        ({0, 1}, (0.0, 0.0), 0.0, 0.0),
        ({0, 1}, (2.0, 0.0), 2.0, 0.0),  # all of the work is this process's
        ({0, 1}, (2.0, 2.0), 2.0, 0.5),  # another process fills the other core
        ({0}, (2.0, 2.0), 2.0, 0.0),  # which this process may not use
        ({0, 1}, (1.0, 1.0), 1.0, 0.25),
    ],
)
def test_share_of_others(
    cores: set[int],
    busy: tuple[float, float],
    own: float,
    share: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(tmp_path, monkeypatch, cores)
    load = Load()
    machine.passes(2.0, busy, own)
    assert load.share() == pytest.approx(share, abs=0.01)


def test_systems_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STAT", tmp_path / "none")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert Load().share() == 0.5, "three processes, of which this is one, on four cores"
    monkeypatch.delattr(os, "getloadavg")
    assert Load().share() == 0.0

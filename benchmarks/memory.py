"""Peak memory of pruning a model, measured in a process of its own.

Resident memory is counted above what the process held before it loaded the model. A tiny model is pruned first, so that
all modules are imported. The peak is the kernel's counter, which is reset before, so this needs Linux.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxprune as op
from benchmarks.common import ROOT
from models.builders import synthetic_chain
from onnxprune import PlanSettings, Target, analyze, prune, save

SETTINGS = PlanSettings(target=Target("macs", 0.5))

_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def peak_memory(model: Path, *, check: bool) -> int | None:
    """Return the peak of bytes needed to load, plan, prune and save a model; None where that isn't counted.

    Args:
        model: a model's file.
        check: whether to prove the result.
    """
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", __name__, str(model.resolve()), "check" if check else ""]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(found.stdout)


def load_to_save(source: Path, target: Path, *, check: bool) -> None:
    """Prune a model to half its MACs."""
    analysis = analyze(source)
    save(prune(analysis, op.plan(analysis, SETTINGS), check=check).proto, target, force=True)


def _main(source: Path, check: bool) -> None:
    with TemporaryDirectory() as folder:
        tiny, target = Path(folder, "tiny.onnx"), Path(folder, "pruned.onnx")
        save(synthetic_chain(14), tiny)
        load_to_save(tiny, target, check=check)
        gc.collect()
        forget_peak()
        before = held()
        load_to_save(source, target, check=check)
        print(peak() - before)


def forget_peak(process: int | None = None) -> None:
    """Reset the kernel's peak memory counter of a process, this one by default."""
    Path(f"/proc/{process or 'self'}/clear_refs").write_text(_RESET_PEAK)


def held(process: int | None = None) -> int:
    """Return the bytes of resident memory of a process, this one by default."""
    return _status("VmRSS", process)


def peak(process: int | None = None) -> int:
    """Return the peak of resident memory of a process in bytes, this one by default."""
    return _status("VmHWM", process)


def _status(key: str, process: int | None) -> int:
    """Return a value of /proc/PID/status in bytes."""
    lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kibibytes) * 1024


if __name__ == "__main__":
    _main(Path(sys.argv[1]), check=bool(sys.argv[2]))

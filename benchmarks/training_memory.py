"""Peak memory of training steps, measured in a process of its own.

Resident memory is counted above what the process held before it had the model. A tiny network is trained first, so that
all modules are imported. For onnxruntime-training, it is the memory of the worker.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from benchmarks.common import ROOT
from benchmarks.memory import forget_peak, held, peak
from benchmarks.small_networks import TINY, build, export
from benchmarks.trainers import Arrays, draw_batch, eager, native, ort_training
from onnxprune.normalize import normalize
from onnxprune_ort_training.backend import Worker

_STEPS = 3


def peak_memory(trainer: str, network: str, size: int, threads: int, python: Path | None = None) -> int | None:
    """Return the peak of bytes that training a network takes; None where that isn't counted.

    Args:
        trainer: "torch", "onnxprune" or "ort-training".
        network: a network of `benchmarks.small_networks`.
        size: samples in a batch.
        threads: threads of the trainer.
        python: the interpreter of ort-training.
    """
    if sys.platform != "linux":
        return None
    with TemporaryDirectory() as folder:
        for name in (TINY, network):
            onnx.save(export(build(name)), Path(folder) / f"{name}.onnx")
        told = (trainer, network, str(size), str(threads), folder, str(python or ""))
        command = [sys.executable, "-m", __name__, *told]
        return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _main(trainer: str, network: str, size: int, threads: int, folder: Path, python: str) -> None:
    batch = draw_batch(size)
    if trainer == "ort-training":
        with Worker(Path(python)) as worker:

            def in_worker(name: str) -> None:
                step = ort_training(normalize(onnx.load(folder / f"{name}.onnx")), batch, threads, worker)
                for _ in range(_STEPS):
                    step()

            print(_extra(in_worker, network, worker.pid))
        return

    def here(name: str) -> None:
        _here(trainer, folder / f"{name}.onnx", batch, threads)

    print(_extra(here, network, None))


def _here(trainer: str, file: Path, batch: Arrays, threads: int) -> None:
    if trainer == "torch":
        step = eager(build(file.stem), batch, threads)
    else:
        step = native(normalize(onnx.load(file)), batch, threads)
    for _ in range(_STEPS):
        step()


def _extra(train: Callable[[str], None], network: str, process: int | None) -> int:
    """Return how far the memory of a process rises above what it held before, this process by default."""
    train(TINY)
    gc.collect()
    forget_peak(process)
    before = held(process)
    train(network)
    return peak(process) - before


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), sys.argv[6])

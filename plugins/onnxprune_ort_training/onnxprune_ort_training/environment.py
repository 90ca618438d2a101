"""An environment for the backend ort-training: onnxruntime and onnxruntime-training can't live in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnxprune.errors import TrainingError

REQUIREMENTS = ("onnxruntime-training-cpu==1.19.2", "onnx>=1.17,<2", "numpy<3")
PYTHONS = ("3.12", "3.11", "3.10", "3.9", "3.8")
"""Versions of Python that onnxruntime-training 1.19.2 is built for, the newest first."""

_CHECK = "import onnxruntime, onnx; print(onnxruntime.__version__)"


def create_environment(path: Path, python: str) -> Path:
    """Make a virtual environment with onnxruntime-training in it.

    Args:
        path: where; nothing may be there.
        python: an interpreter of a version that it is built for.

    Returns:
        The environment's interpreter.

    Raises:
        TrainingError: something is there, or a command failed (OP908).
    """
    if path.exists():
        raise TrainingError("OP908", "something is there already", where=str(path))
    folder = "Scripts" if sys.platform == "win32" else "bin"
    interpreter = path / folder / ("python.exe" if sys.platform == "win32" else "python")
    _run([python, "-m", "venv", str(path)], "making the environment")
    _run([str(interpreter), "-m", "pip", "install", "--quiet", *REQUIREMENTS], "installing onnxruntime-training")
    _run([str(interpreter), "-I", "-c", _CHECK], "importing it")
    return interpreter


def _run(command: list[str], what: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise TrainingError("OP908", f"{what} failed: {error}", where=command[0]) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["without a message"])[-1]
        raise TrainingError("OP908", f"{what} failed: {last}", where=command[0]) from error

"""Exported models, kept between runs: the exporters are slow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

import onnx
import pytest
from onnx import ModelProto


class Export(Protocol):
    """Exports a network of the zoo, or takes what an earlier run exported of the same sources."""

    def __call__(self, name: str, exporter: str, opset: int | None = None) -> ModelProto: ...


ZOO = Path(__file__).parents[1] / "zoo"
SOURCES = ("convolutional.py", "export.py", "recurrent.py", "transformers.py", "windows.py")


@pytest.fixture(scope="session")
def exported(pytestconfig: pytest.Config) -> Export:
    """Export a network of the zoo, or take what an earlier run exported of the same sources."""
    torch = pytest.importorskip("torch")
    from tests.zoo.catalog import NETWORKS
    from tests.zoo.export import EXPORTERS

    sources = b"".join((ZOO / name).read_bytes() for name in SOURCES) + torch.__version__.encode()
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("zoo")

    def export(name: str, exporter: str, opset: int | None = None) -> ModelProto:
        network = NETWORKS[name]
        what = repr((network.build, network.inputs, network.sizes, opset)).encode()
        path = folder / f"{name}.{exporter}.{hashlib.sha256(sources + what).hexdigest()[:12]}.onnx"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")  # another worker may be at it, too
            onnx.save(EXPORTERS[exporter](network, opset), temporary)
            temporary.replace(path)
        return onnx.load(path)

    return export

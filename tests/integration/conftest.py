"""Exported models, kept between runs: the exporters are slow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

ZOO = Path(__file__).parents[1] / "zoo"


@pytest.fixture(scope="session")
def exported(pytestconfig: pytest.Config) -> Callable[[str, str], ModelProto]:
    """Export a network of the zoo, or take what an earlier run exported from the same sources."""
    torch = pytest.importorskip("torch")
    from tests.zoo.catalogue import NETWORKS
    from tests.zoo.export import EXPORTERS

    sources = b"".join(path.read_bytes() for path in sorted(ZOO.glob("*.py")))
    digest = hashlib.sha256(sources + torch.__version__.encode()).hexdigest()[:16]
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"zoo-{digest}")

    def export(name: str, exporter: str) -> ModelProto:
        path = folder / f"{name}.{exporter}.onnx"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")  # another worker may be at it, too
            onnx.save(EXPORTERS[exporter](NETWORKS[name]), temporary)
            temporary.replace(path)
        return onnx.load(path)

    return export

"""Sessions of ONNX Runtime, and its failures."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.session import run, session
from onnxprune.runtime.library import import_onnxruntime, max_ir_version
from tests.model.support import small


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="OP601"):
        import_onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))  # hollow
    with pytest.raises(UsageError, match="incomplete"):
        session(small())


def test_the_newest_ir_version_is_the_newest_that_loads() -> None:
    proto = small()
    proto.ir_version = max_ir_version()
    session(proto)
    proto.ir_version += 1
    with pytest.raises(ModelError, match="OP122"):
        session(proto)


def test_failures_of_onnxruntime_are_ours_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    proto = small()
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="OP122") as caught:
        session(proto)
    assert "NoSuchOperator" in caught.value.cause and "onnxruntime_src" not in caught.value.cause
    with pytest.raises(ModelError, match="OP122"):
        run(session(small()), {"x": np.ones((2, 3), np.float32)})
    with pytest.raises(UsageError, match="OP608"):
        session(small(), providers=("NoSuchProvider",))
    assert capfd.readouterr() == ("", "")

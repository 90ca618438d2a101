"""Training backends that other packages bring, and what goes wrong with them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from onnxprune.errors import TrainingError, UsageError
from onnxprune.runtime import plugins
from onnxprune.train import Job, Trained, backend, register_backend
from onnxprune.train.finetune import Function, Native, find_backend


class Unchanged:
    """A backend that learns nothing."""

    def __init__(self, python: Path | None) -> None:
        self.python = python

    def train(self, job: Job) -> Trained:
        return Trained(job.model)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with two entry points, the second in vain."""
    module = ModuleType("some_package")
    module.__dict__.update(Unchanged=Unchanged, text="no class")
    monkeypatch.setitem(sys.modules, "some_package", module)
    names = {"unchanged": "some_package:Unchanged", "text": "some_package:text"}
    points = [EntryPoint(name, value, backend.GROUP) for name, value in names.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points if group == backend.GROUP else [])
    monkeypatch.setattr(backend, "_REGISTERED", {})


def test_a_package_brings_a_backend() -> None:
    found = find_backend("unchanged", Path("python"))
    assert isinstance(found, Unchanged) and found.python == Path("python")


def test_a_program_registers_one() -> None:
    with pytest.raises(TrainingError):
        find_backend("mine")
    register_backend("mine", Unchanged)
    assert isinstance(find_backend("mine"), Unchanged)


def test_those_built_in() -> None:
    assert isinstance(find_backend("native"), Native)
    assert isinstance(find_backend("os.path:join"), Function)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(TrainingError) as caught:
        find_backend("nativ")
    assert caught.value.code == "OP908"
    assert caught.value.hint == "there are native, module:function, text, unchanged"


def test_a_known_plug_in_that_is_not_installed() -> None:
    with pytest.raises(TrainingError) as caught:
        find_backend("ort-training")
    assert caught.value.code == "OP908"
    assert "install the package onnxprune-ort-training" in str(caught.value.hint)


def test_a_broken_package_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        find_backend("text")
    assert caught.value.code == "OP607"
    assert "some_package" in str(caught.value.where)

"""The doctor: what it makes of a sound installation, and of faults that are brought about or written down."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxprune.cli import cli
from onnxprune.errors import UsageError
from onnxprune.runtime import doctor
from onnxprune.runtime.doctor import (
    Finding,
    ProviderState,
    diagnose,
    missing_libraries,
    runtime_distributions,
    try_provider,
)


class TestProviders:
    def test_one_that_starts(self) -> None:
        assert try_provider("CPUExecutionProvider") == ProviderState("CPUExecutionProvider", True)

    def test_one_that_does_not(self) -> None:
        found = try_provider("NoSuchExecutionProvider")
        assert not found.works and "NoSuchExecutionProvider" in found.why

    @pytest.mark.parametrize(
        ("log", "names"),
        [
            (
                "[E:onnxruntime:Default, provider_bridge_ort.cc:2251] Failed to load library "
                "/x/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object "
                "file: No such file or directory",
                ("libcublasLt.so.13",),
            ),
            ("dlopen: /opt/lib/libcudnn.so.9: cannot open shared object file", ("libcudnn.so.9",)),
            ('Error loading "onnxruntime_providers_cuda.dll" which depends on "cudnn64_9.dll" which is missing', ()),
            ("all is well", ()),
        ],
    )
    def test_missing_libraries(self, log: str, names: tuple[str, ...]) -> None:
        found = missing_libraries(log)
        assert set(names) <= set(found) and (names or "well" not in log or not found)

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A loader that really fails, in a process of its own: the probe opens a library that isn't there."""
        monkeypatch.setattr(
            doctor, "_PROBE", "import ctypes; ctypes.CDLL('libcudnn_absent.so.9')  # {path}{model}{provider}"
        )
        found = try_provider("CUDAExecutionProvider")
        assert found == ProviderState("CUDAExecutionProvider", False, "missing libcudnn_absent.so.9")

    def test_a_crash_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_PROBE", "import os; os.abort()  # {path}{model}{provider}")
        assert "crashed (signal 6)" in try_provider("CUDAExecutionProvider").why


class TestDiagnosis:
    def test_extras_are_those_of_the_package(self) -> None:
        """What doctor calls an extra is one in pyproject.toml, and all that users may lack are shown."""
        declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        optional = declared["optional-dependencies"]
        own = {name: optional[name] for name in optional if name not in ("cpu", "gpu", "docs", "bench", "test", "dev")}
        asked = {re.split(r"[>=\[]", package)[0]: extra for extra, packages in own.items() for package in packages}
        assert {package: extra for package, extra in asked.items() if package != "onnxprune"} == doctor.EXTRAS

    def test_here(self) -> None:
        found = diagnose()
        assert found.packages["onnx"] == metadata.version("onnx")
        assert [p.name for p in found.providers if p.works][-1] == "CPUExecutionProvider"
        assert len(found.runtimes) == 1 or not found.healthy

    def test_two_builds_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = {"onnxruntime": ["onnxruntime", "onnxruntime", "onnxruntime-gpu"]}
        monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: both)
        assert runtime_distributions() == ("onnxruntime", "onnxruntime-gpu")
        monkeypatch.setattr(doctor, "versions", lambda *names: dict.fromkeys(names, "1.20.0"))
        found = diagnose()
        assert not found.healthy
        assert any("onnxruntime and onnxruntime-gpu" in f.what and "pip uninstall" in f.hint for f in found.findings)

    def test_none_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent() -> None:
            raise UsageError("OP601", "onnxruntime isn't installed", hint="pip install ...")

        monkeypatch.setattr(doctor, "import_onnxruntime", absent)
        found = diagnose()
        assert (
            not found.providers and Finding("error", "onnxruntime isn't installed", "pip install ...") in found.findings
        )

    def test_a_package_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = ["numpy>=99.1", "onnx>=1.0", "click"]
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
        (only,) = [f for f in diagnose().findings if f.level == "error"]
        assert only.what.startswith("numpy") and "99.1 is needed" in only.what

    def test_a_gpu_that_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "gpus", lambda: ("NVIDIA H100, driver 580",))
        monkeypatch.setattr(doctor, "_states", lambda names: [ProviderState("CPUExecutionProvider", True)])
        assert any(f.level == "warning" and "H100" in f.what for f in diagnose().findings)


class TestCommand:
    def test_healthy(self) -> None:
        result = CliRunner().invoke(cli, ["doctor"])
        assert result.exit_code == 0, result.output
        assert "CPUExecutionProvider" in result.stdout and "numpy" in result.stdout

    def test_a_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = ProviderState("CUDAExecutionProvider", False, "missing libcudnn.so.9")
        monkeypatch.setattr(doctor, "_states", lambda names: [broken])
        result = CliRunner().invoke(cli, ["doctor", "--format", "json"])
        assert result.exit_code == 1 and "error[OP609]" in result.stderr
        found = json.loads(result.stdout)
        assert found["healthy"] is False and found["providers"][0]["why"] == "missing libcudnn.so.9"

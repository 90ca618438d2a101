"""Diagnosis of the installation: packages, conflicts, and why an execution provider doesn't start."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx

from onnxprune.errors import UsageError
from onnxprune.runtime.environment import cpu_model, gpus, usable_cores, versions
from onnxprune.runtime.library import import_onnxruntime, max_ir_version, probe_model
from onnxprune.runtime.provider import CPU

Level = Literal["error", "warning", "note"]

EXTRAS: Mapping[str, str] = {
    "pillow": "data",
    "tokenizers": "text",
    "pycocotools": "metrics",
    "onnxsim": "clean",
    "onnx-ir": "quantize",
    "matplotlib": "plot",
    "optuna": "sweep",
    "grpcio": "sweep-cluster",
    "psycopg": "sweep-cluster",
    "ray": "ray",
    "distributed": "dask",
}
"""Packages that some features need, and the extra that installs each."""

_PACKAGES = ("onnxprune", "onnx", "onnx-graphsurgeon", "numpy", *EXTRAS)
_RUNTIME = "onnxruntime"  # the package that all builds of ONNX Runtime install
_REMOTE = "AzureExecutionProvider"  # calls a service and runs no nodes itself
_TIMEOUT = 120  # seconds; the first start of TensorRT is slow

_MISSING = re.compile(r"(\S+\.(?:so|dylib)[.\d]*): cannot open shared object file|(\S+\.dll)\b.* (?:is missing|126)")
_TROUBLE = re.compile(r"(?:\[E:onnxruntime|\[W:onnxruntime|[Ee]rror|EP Error).*")
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)>=([\d.]+)")

_PROBE = """
import sys
sys.path[:] = {path!r}
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 2
opened = onnxruntime.InferenceSession({model!r}, options, providers=[{provider!r}], enable_fallback=0)
sys.exit(0 if {provider!r} in opened.get_providers() else 3)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem or remark.

    Attributes:
        level: "error" if something can't work, "warning" if it may not, else "note".
        what: one line of description.
        hint: a remedy; may be empty.
    """

    level: Level
    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ProviderState:
    """Whether an execution provider of the installed ONNX Runtime starts.

    Attributes:
        name: the provider.
        works: whether a session starts with it.
        why: the reason if it doesn't: missing libraries, or ONNX Runtime's message.
    """

    name: str
    works: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of the installation.

    Attributes:
        python: version and path of Python.
        cpu: the processor.
        cores: number of usable cores.
        gpus: NVIDIA GPUs with their drivers.
        packages: versions of the relevant packages; None for those that aren't installed.
        runtimes: the distributions that install ONNX Runtime, with versions.
        providers: the execution providers of the installed ONNX Runtime.
        findings: problems and remarks, errors first.
    """

    python: str
    cpu: str
    cores: int
    gpus: tuple[str, ...]
    packages: Mapping[str, str | None]
    runtimes: Mapping[str, str]
    providers: tuple[ProviderState, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there are no errors."""
        return all(finding.level != "error" for finding in self.findings)


def diagnose() -> Diagnosis:
    """Diagnose the installation. Providers are tried in separate processes, since they may crash."""
    found = versions(*_PACKAGES)
    runtimes = versions(*runtime_distributions())
    providers: tuple[ProviderState, ...] = ()
    findings = list(_conflicts(runtimes))
    try:
        providers = tuple(_states(import_onnxruntime().get_available_providers()))
    except UsageError as error:
        findings.append(Finding("error", error.cause, error.hint or ""))
    else:
        findings += [*_unused_gpu(providers), *_model_versions()]
    findings += [Finding("error", f"{p.name} doesn't start: {p.why}", _hint(p)) for p in providers if not p.works]
    findings += _too_old()
    order: Sequence[Level] = ("error", "warning", "note")
    return Diagnosis(
        python=f"{sys.version.split()[0]}, {sys.executable}",
        cpu=cpu_model(),
        cores=usable_cores(),
        gpus=gpus(),
        packages={name: found.get(name) for name in _PACKAGES},
        runtimes=runtimes,
        providers=providers,
        findings=tuple(sorted(findings, key=lambda f: order.index(f.level))),
    )


def runtime_distributions() -> tuple[str, ...]:
    """Return the installed distributions that contain the package onnxruntime."""
    return tuple(sorted(set(metadata.packages_distributions().get(_RUNTIME, ()))))


def missing_libraries(log: str) -> tuple[str, ...]:
    """Return the names of missing shared libraries from a loader's messages."""
    found = (a or b for a, b in _MISSING.findall(log))
    return tuple(dict.fromkeys(Path(name).name for name in found))


def try_provider(name: str) -> ProviderState:
    """Open a small model with a provider, in a separate process."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model = Path(folder, "probe.onnx")
        model.write_bytes(probe_model())
        command = [sys.executable, "-c", _PROBE.format(path=sys.path, model=str(model), provider=name)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return ProviderState(name, False, f"it did not start within {_TIMEOUT} seconds")
    if done.returncode == 0:
        return ProviderState(name, True)
    log = done.stderr + done.stdout
    libraries = missing_libraries(log)
    if libraries:
        return ProviderState(name, False, f"missing {', '.join(libraries)}")
    if done.returncode < 0:
        return ProviderState(name, False, f"it crashed (signal {-done.returncode})")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "ONNX Runtime gives no reason"
    return ProviderState(name, False, next((line for line in lines if _TROUBLE.search(line)), last)[:300])


def _states(names: Sequence[str]) -> Iterator[ProviderState]:
    for name in names:
        yield ProviderState(name, True) if name in (CPU, _REMOTE) else try_provider(name)


def _conflicts(runtimes: Mapping[str, str]) -> Iterator[Finding]:
    if len(runtimes) > 1:
        hint = f"pip uninstall -y {' '.join(runtimes)}, then install one of them"
        yield Finding("error", f"{' and '.join(runtimes)} are installed at once and overwrite each other", hint)


def _unused_gpu(providers: Sequence[ProviderState]) -> Iterator[Finding]:
    """Warn of a GPU that this build of ONNX Runtime can't use."""
    if gpus() and not any(p.name not in (CPU, _REMOTE) for p in providers):
        hint = "pip uninstall -y onnxruntime, then pip install 'onnxprune[gpu]'"
        yield Finding("warning", f"{gpus()[0]} is not used: this ONNX Runtime is a CPU build", hint)


def _model_versions() -> Iterator[Finding]:
    if max_ir_version() < onnx.IR_VERSION:
        yield Finding(
            "note",
            f"onnx writes models of IR version {onnx.IR_VERSION} by default, this ONNX Runtime reads at most "
            f"{max_ir_version()}; models written by onnxprune are fine",
        )


def _too_old() -> Iterator[Finding]:
    """Compare installed versions with this distribution's requirements, which a source tree lacks."""
    try:
        requirements = metadata.requires("onnxprune") or []
    except metadata.PackageNotFoundError:
        return
    for name, least in (m.group(1, 2) for m in map(_REQUIREMENT.match, requirements) if m):
        installed = versions(name).get(name)
        if installed is not None and _number(installed) < _number(least):
            yield Finding("error", f"{name} {installed} is too old: {least} is needed", f"pip install -U {name}")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _hint(state: ProviderState) -> str:
    if "cud" in state.why.lower() or "cublas" in state.why or "nvrtc" in state.why:
        return "install the CUDA and cuDNN that this ONNX Runtime was built for, or add them to the library path"
    return "omit the provider, or install what it needs"

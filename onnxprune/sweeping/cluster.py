"""Workers of a sweep on a cluster that exists: Ray or Dask runs the same function on its machines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.errors.words import one_line
from onnxprune.progress import Progress, silent
from onnxprune.settings import SweepSettings
from onnxprune.settings.reading import plain, read
from onnxprune.sweeping.session import Sweep, found, sweep

log = logging.getLogger(__name__)

Job = Mapping[str, Any]


def worker(job: Job) -> int:
    """Work for a sweep until its trials are done; return the number of models that there are then."""
    return len(sweep(**read(SweepSettings, dict(job))).rows)


def on_cluster(model: Any, settings: SweepSettings, *, progress: Progress = silent) -> Sweep:
    """Begin a sweep here, and let a cluster work for it.

    Args:
        model: the model's file, which the cluster's machines have at the same path; None to join a sweep.
        settings: the settings; all machines must reach the store.
        progress: called with phases and their parts.

    Raises:
        UsageError: the cluster's package isn't installed (OP605), or the cluster or its name is wrong (OP602).
        OnnxPruneError: see `onnxprune.sweep`.
    """
    assert settings.on is not None
    kind, separator, address = settings.on.partition("://")
    run = _KINDS.get(kind)
    if run is None or not separator:
        raise UsageError(
            "OP602", f"{settings.on!r} is no cluster", where="on", hint="write ray://HOST:PORT or dask://HOST:PORT"
        )
    if find_spec(_PACKAGES[kind]) is None:
        raise UsageError(
            "OP605", f"this cluster needs the package {_PACKAGES[kind]}", hint=f"pip install 'onnxprune[{kind}]'"
        )
    here = replace(settings, on=None, count=None)
    if settings.join is None:
        sweep(model, replace(here, time="0s"), progress=progress)  # describes the sweep in the store
    store = settings.join or settings.store
    assert store is not None
    names = ("time", "threads", "keep_models")
    job = {"join": store, **{name: value for name, value in plain(settings).items() if name in names}}
    progress(f"work on {kind}", 0, None)
    run(address, settings.count, job)
    return found(store)


def _ray(address: str, count: int | None, job: Job) -> None:
    ray: Any = import_module(_PACKAGES["ray"])  # one of the two is installed, perhaps

    _connect(lambda: ray.init(f"ray://{address}" if address else "auto", log_to_driver=False), f"ray://{address}")
    try:
        count = count or max(1, len([node for node in ray.nodes() if node["Alive"]]))
        remote = ray.remote(max_retries=3, scheduling_strategy="SPREAD")(worker)
        ray.get([remote.remote(dict(job)) for _ in range(count)])
    finally:
        ray.shutdown()


def _dask(address: str, count: int | None, job: Job) -> None:
    dask: Any = import_module(_PACKAGES["dask"])
    client = _connect(lambda: dask.Client(f"tcp://{address}", timeout=30), f"dask://{address}")
    with client:
        count = count or max(1, len(client.scheduler_info()["workers"]))
        client.gather([client.submit(worker, dict(job), pure=False, retries=3) for _ in range(count)])


def _connect(open_: Callable[[], Any], name: str) -> Any:
    try:
        return open_()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError("OP602", f"the cluster can't be reached: {one_line(error, 200)}", where=name) from error


_KINDS: Mapping[str, Callable[[str, int | None, Job], None]] = {"ray": _ray, "dask": _dask}
_PACKAGES = {"ray": "ray", "dask": "distributed"}

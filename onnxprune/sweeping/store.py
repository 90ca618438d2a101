"""Where trials are kept: a storage of Optuna, which several machines may share."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError
from onnxprune.errors.words import one_line
from onnxprune.sweeping.space import Axis, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

log = logging.getLogger(__name__)

NAME = "onnxprune"
FORMAT = 1
_SPEC = "sweep"
_PATIENCE = 600.0  # seconds that a lost connection is retried for
_LONGEST = 30.0  # seconds between two tries
_PORT = 13000


@dataclass(frozen=True, slots=True)
class Spec:
    """A sweep as its store describes it: all that a worker needs besides the model and the data.

    Attributes:
        model: the model's file, with its digest.
        data: the data's file or name, with its digest; that is empty for what is no file.
        settings: what all recipes have in common, as `onnxprune.settings.reading.plain` writes it.
        objectives: what is traded.
        space: what can be tried.
        curves: the sensitivities of the model.
        metric: the metric that drops are measured in.
        costs: what the file costs.
        trials: number of trials.
        max_drop: the drop above which a model isn't measured any further.
        seed: random seed.
        tag: hardware that latency is measured on, if it is an objective; else empty.
    """

    model: tuple[str, str]
    data: tuple[str, str]
    settings: Mapping[str, Any]
    objectives: tuple[str, ...]
    space: Space
    curves: Sequence[Mapping[str, Any]]
    metric: str
    costs: Mapping[str, float]
    trials: int
    max_drop: float
    seed: int
    tag: str = ""
    format: int = FORMAT

    def identity(self) -> tuple[Any, ...]:
        """Return what must be the same for two sweeps to be one."""
        settings = json.dumps(self.settings, sort_keys=True)
        return self.model[1], self.data[1] or self.data[0], self.objectives, settings, self.seed, self.tag


def optuna() -> Any:
    """Return the module Optuna, quiet.

    Raises:
        UsageError: it isn't installed (OP605).
    """
    if find_spec("optuna") is None:
        raise UsageError("OP605", "a sweep needs the package optuna", hint="pip install 'onnxprune[sweep]'")
    import optuna as module

    module.logging.set_verbosity(module.logging.ERROR)
    return module


def shown(store: str) -> str:
    """Return the name of a store without a password."""
    return re.sub(r"//([^:/@]*):[^/@]*@", r"//\1@", store)


def file_of(store: str) -> Path | None:
    """Return the file of a store; None if it is no file."""
    if store.startswith("sqlite:///"):
        return Path(store.removeprefix("sqlite:///"))
    if store.startswith("journal:"):
        return Path(store.removeprefix("journal:").removeprefix("//"))
    return None if "://" in store else Path(store)


def open_store(store: str, *, create: bool) -> BaseStorage:
    """Open a store.

    Args:
        store: its name, see `SweepSettings`.
        create: whether a file that doesn't exist is made.

    Raises:
        UsageError: a package is missing (OP605), or there is no such store (OP613).
    """
    storages, file = optuna().storages, file_of(store)
    if file is not None and not create and not file.is_file():
        raise UsageError("OP613", "there is no such store", where=str(file), hint="make one with `store`")
    if file is not None and not file.absolute().parent.is_dir():
        raise UsageError("OP613", "the store's folder doesn't exist", where=str(file))
    try:
        if found := re.fullmatch(r"grpc://([^:/]+)(?::(\d+))?/?", store):
            _need("grpc", "grpcio")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is called experimental
                proxy = storages.GrpcStorageProxy(host=found[1], port=int(found[2] or _PORT))
            return _patient(proxy)
        if file is None or store.startswith("sqlite:"):
            url = store if file is not None else _with_driver(store)
            own = {"pool_pre_ping": True} if file is None else {"connect_args": {"timeout": 60}}
            return _patient(storages.get_storage(storages.RDBStorage(url, engine_kwargs=own)))
        backend = storages.journal.JournalFileBackend(os.fspath(file))
        own_file: BaseStorage = storages.JournalStorage(backend)
        return own_file
    except (ValueError, ImportError, OSError) as error:
        raise _unusable(store, error) from error
    except Exception as error:  # a driver may raise anything
        if not _is_lost(error) and "sqlalchemy" not in type(error).__module__:
            raise
        raise _unusable(store, error) from error


def _with_driver(store: str) -> str:
    """Return the URL of a database with the driver that the extra brings."""
    if store.startswith(("postgresql://", "postgres://")):
        _need("psycopg", "psycopg[binary]")
        return "postgresql+psycopg://" + store.partition("://")[2]
    return store


def _need(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise UsageError("OP605", f"this store needs the package {package}", hint=f"pip install '{package}'")


def _unusable(store: str, error: BaseException) -> UsageError:
    return UsageError("OP613", f"the store can't be opened: {one_line(error, 200)}", where=shown(store))


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that the connection to a store is lost, so that trying again may help."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "RpcError" in names:
        code = getattr(error, "code", lambda: None)()
        return getattr(code, "name", "") in ("UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED")
    cause = error.__cause__
    # PendingRollbackError: Optuna asks once more in the transaction that was lost
    return bool(names & {"OperationalError", "InterfaceError", "PendingRollbackError"}) or (
        cause is not None and _is_lost(cause)
    )


def _patient(storage: Any) -> BaseStorage:
    """Return a storage whose calls are tried again while its connection is lost."""

    def patient(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def again(*args: Any, **kwargs: Any) -> Any:
            began, pause = time.monotonic(), 1.0
            while True:
                try:
                    return call(*args, **kwargs)
                except Exception as error:
                    if not _is_lost(error) or time.monotonic() - began > _PATIENCE:
                        raise
                    log.warning("the connection to the store is lost; trying again in %.0f s", pause)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)

        return again

    base = optuna().storages.BaseStorage
    for name in base.__abstractmethods__:
        setattr(storage, name, patient(getattr(storage, name)))
    found: BaseStorage = storage
    return found


def create(storage: BaseStorage, spec: Spec, points: Sequence[Mapping[str, Any]]) -> Study:
    """Begin a sweep in a store, or go on with it.

    Args:
        storage: the store.
        spec: the sweep.
        points: what is tried first.

    Raises:
        UsageError: the store has another sweep (OP613).
    """
    study = optuna().create_study(
        storage=storage, study_name=NAME, directions=["minimize"] * len(spec.objectives), load_if_exists=True
    )
    known = read_spec(study)
    if known is not None:
        same_sweep(known, spec)
    for point in points if known is None else ():
        study.enqueue_trial(dict(point), skip_if_exists=True)
    study.set_user_attr(_SPEC, json.dumps(asdict(spec)))
    found: Study = study
    return found


def same_sweep(known: Spec, spec: Spec) -> None:
    """Check that a store's sweep is the one that is asked for.

    Raises:
        UsageError: it is another one (OP613).
    """
    if known.identity() != spec.identity():
        cause = "the store has another sweep: its model, data, objectives or settings differ"
        raise UsageError("OP613", cause, hint="name another store")


def join(storage: BaseStorage) -> tuple[Study, Spec]:
    """Return the sweep of a store.

    Raises:
        UsageError: there is none, or one of another version (OP613).
    """
    try:
        study = optuna().load_study(storage=storage, study_name=NAME, sampler=None)
    except KeyError as error:
        raise UsageError("OP613", "the store has no sweep", hint="begin one with `store`") from error
    spec = read_spec(study)
    if spec is None:
        raise UsageError("OP613", "the store's sweep hasn't begun", hint="begin one with `store`")
    return study, spec


def read_spec(study: Study) -> Spec | None:
    """Return what a study says of its sweep; None if it says nothing yet.

    Raises:
        UsageError: it is of another version (OP613).
    """
    text = study.user_attrs.get(_SPEC)
    if text is None:
        return None
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        axes = (Axis(a["name"], tuple(a["choices"]), a["low"], a["high"]) for a in found["space"])
        pairs = {name: (str(found[name][0]), str(found[name][1])) for name in ("model", "data")}
        return Spec(**{**found, **pairs, "objectives": tuple(found["objectives"]), "space": tuple(axes)})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError("OP613", f"the store's sweep can't be read: {error}", hint="use the same version") from error


@dataclass(slots=True)
class Beats:
    """Which workers are alive: each writes a growing number, and one whose number stands still has died.

    Clocks of machines may differ, so that nobody's is compared with another's.

    Attributes:
        patience: seconds after which a number that stands still means death.
    """

    patience: float
    _seen: dict[str, tuple[Any, float]] = field(default_factory=dict)

    def dead(self, worker: str, beat: Any) -> bool:
        """Whether a worker has died, given its latest number."""
        known, since = self._seen.get(worker, (None, 0.0))
        if worker not in self._seen or known != beat:
            self._seen[worker] = beat, time.monotonic()
            return False
        return time.monotonic() - since > self.patience

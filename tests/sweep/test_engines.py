"""Sweeps by several workers over real stores and clusters: PostgreSQL, gRPC, Ray, Dask. Some are killed."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.settings import SweepSettings
from onnxprune.sweeping.cluster import on_cluster
from onnxprune.sweeping.session import Sweep, found
from onnxprune.sweeping.store import join, open_store
from tests.cli.support import document
from tests.sweep.cases import QUICK, needs_optuna, write

BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [
    str(Path(found).parent) for found in [shutil.which("initdb")] if found
]
pytestmark = [needs_optuna, pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs signals")]
needs_postgres = pytest.mark.skipif(
    not BINARIES or find_spec("psycopg") is None, reason="needs a PostgreSQL server (Debian: postgresql) and psycopg"
)
needs_grpc = pytest.mark.skipif(find_spec("grpc") is None, reason="needs grpcio")
_BEAT = 1.0
_WORKER = f"from onnxprune.sweeping import worker; worker.BEAT = {_BEAT}\nfrom onnxprune.cli import main\nmain()"
_ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path)


def worker(*args: object) -> subprocess.Popen[str]:
    """Start a worker in a process of its own."""
    env = {**os.environ, **_ONE_CORE}
    command = [sys.executable, "-c", _WORKER, "sweep", *map(str, args), "-vv"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def begin(case: tuple[Path, Path], store: str, trials: int) -> None:
    """Describe a sweep in a store, before any trial."""
    op.sweep(case[0], store=store, data=str(case[1]), trials=trials, time="0s", **QUICK)


def ended(workers: list[subprocess.Popen[str]], seconds: float = 500) -> None:
    end = time.monotonic() + seconds
    for each in workers:
        _, errors = each.communicate(timeout=max(1, end - time.monotonic()))
        assert each.returncode == 0, errors[-6000:]


def running_of(store: str, process: subprocess.Popen[str]) -> list[Any]:
    study, _ = join(open_store(store, create=False))
    return [
        t
        for t in study.get_trials(deepcopy=False)
        if t.state.name == "RUNNING" and f":{process.pid}:" in t.user_attrs.get("worker", "")
    ]


def until(condition: Callable[[], Any], seconds: float = 200) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return value


def each_counted_once(sweep: Sweep, store: str, trials: int, killed: int) -> None:
    """Exactly the trials that were asked for count, and each lost one was done again."""
    assert sweep.counts["complete"] + sweep.counts["pruned"] == trials
    assert sweep.counts["running"] == 0
    study, _ = join(open_store(store, create=False))
    all_ = study.get_trials(deepcopy=False)
    assert len({t.number for t in all_}) == len(all_)
    again = [t for t in all_ if t.user_attrs.get("tries")]
    assert len(again) == killed
    lost = [t.params for t in all_ if t.state.name == "FAIL"]
    assert all(t.params in lost and t.state.is_finished() for t in again)
    assert all(row.document["proved"] is not False for row in sweep.front)


def four_workers_one_killed(case: tuple[Path, Path], store: str, trials: int) -> None:
    begin(case, store, trials)
    own = [worker("--join", store) for _ in range(4)]
    victim = own[0]
    until(lambda: running_of(store, victim) or victim.poll() is not None)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    was_in_a_trial = bool(running_of(store, victim))
    ended(own[1:])
    each_counted_once(found(store), store, trials, int(was_in_a_trial))
    names = {
        t.user_attrs["worker"] for t in join(open_store(store, create=False))[0].get_trials() if t.state.is_finished()
    }
    assert len(names) >= 3  # all of them have worked


def test_sixty_candidates_over_four_workers_of_which_one_is_killed(case: tuple[Path, Path], tmp_path: Path) -> None:
    four_workers_one_killed(case, str(tmp_path / "a.sweep"), 60)


def test_sqlite(case: tuple[Path, Path], tmp_path: Path) -> None:
    four_workers_one_killed(case, f"sqlite:///{tmp_path / 'a.db'}", 16)


@contextmanager
def postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """Run a PostgreSQL server; yield its URL, and a function that starts it again without waiting for clients."""
    root = os.getuid() == 0
    as_user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # which the server's user can reach, unlike pytest's
    if root:
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", free_port()

    def call(program: str, *args: object) -> None:
        command = [f"{BINARIES[-1]}/{program}", "-D", str(data), *map(str, args)]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **as_user)

    call("initdb", "-U", "me", "-A", "trust")
    start = ("-l", folder / "log", "-w", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off")
    call("pg_ctl", *start, "start")

    def again() -> None:
        call("pg_ctl", "-m", "immediate", "stop")
        time.sleep(2)
        call("pg_ctl", *start, "start")

    try:
        yield f"postgresql://me@127.0.0.1:{port}/postgres", again
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


@needs_postgres
def test_postgresql_that_is_lost_and_comes_back(case: tuple[Path, Path], tmp_path: Path) -> None:
    """Workers wait for a database that crashes, and one that is killed loses one trial."""
    with postgres() as (store, again):
        begin(case, store, 50)
        own = [worker("--join", store) for _ in range(3)]
        until(lambda: found(store).counts["complete"] >= 4)
        again()
        until(lambda: found(store).counts["complete"] >= 6)
        until(lambda: running_of(store, own[0]) or own[0].poll() is not None)
        os.kill(own[0].pid, signal.SIGKILL)
        own[0].communicate()
        killed = bool(running_of(store, own[0]))
        ended(own[1:])
        each_counted_once(found(store), store, 50, int(killed))
        told = document("sweep pick", store, "--max-drop", "15%", "-o", tmp_path / "p.onnx")["picked"]
        assert told["same"]


@needs_grpc
def test_grpc_proxy(case: tuple[Path, Path], tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import optuna, sys\n"
        "from optuna.storages import JournalStorage, journal, run_grpc_proxy_server\n"
        "run_grpc_proxy_server(JournalStorage(journal.JournalFileBackend(sys.argv[1])), host='127.0.0.1', "
        "port=int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "own.journal"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: open_port(port), 60)
            four_workers_one_killed(case, f"grpc://127.0.0.1:{port}", 16)
        finally:
            server.kill()


def open_port(port: int) -> bool:
    with socket.socket() as own:
        return own.connect_ex(("127.0.0.1", port)) == 0


def on(case: tuple[Path, Path], store: Path, cluster: str) -> Sweep:
    settings = {"store": str(store), "data": str(case[1]), "trials": 8, "on": cluster, "count": 2, **QUICK}
    from onnxprune.settings import build

    return on_cluster(case[0], build(SweepSettings, settings))


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray(case: tuple[Path, Path], tmp_path: Path) -> None:
    import ray

    root = str(Path(op.__file__).parents[1])
    where = {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), **_ONE_CORE}
    folder = f"/tmp/ray-{os.getpid()}"  # whose sockets have a short name
    options: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False, "_temp_dir": folder}
    os.environ.update(where)
    ray.init(**options)
    try:
        address = ray.get_runtime_context().gcs_address
        code = (
            "import sys; from onnxprune.cli import main; import os; os.environ['RAY_ADDRESS'] = sys.argv.pop(1)\nmain()"
        )
        store = tmp_path / "r.sweep"
        args = ["sweep", case[0], "--data", case[1], "--store", store, "--trials", 8, "--on", "ray://", "--workers", 2]
        args += ["--effort", "quick", "--threads", 1, "--format", "json"]
        done = subprocess.run(
            [sys.executable, "-c", code, address, *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        by_two(found(str(store)), store)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra `dask`")
def test_dask(case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    for name, value in {**_ONE_CORE, "PYTHONPATH": str(Path(op.__file__).parents[1])}.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.removeprefix("tcp://")
        by_two(on(case, tmp_path / "d.sweep", f"dask://{address}"), tmp_path / "d.sweep")


def by_two(sweep: Sweep, store: Path) -> None:
    """All trials were done by two processes, neither of which is this one."""
    each_counted_once(sweep, str(store), 8, 0)
    study, _ = join(open_store(str(store), create=False))
    pids = {t.user_attrs["worker"].split(":")[1] for t in study.get_trials() if t.state.is_finished()}
    assert len(pids) == 2 and str(os.getpid()) not in pids


def test_latency_is_measured_by_workers_of_its_hardware(case: tuple[Path, Path], tmp_path: Path) -> None:
    """Workers of another tag make no trials, and time the front on theirs; models are picked by either."""
    store = str(tmp_path / "l.sweep")
    settings: dict[str, Any] = {"data": str(case[1]), "objective": ("accuracy", "latency"), **QUICK}
    op.sweep(case[0], store=store, trials=8, tag="board", provider="cpu", **settings)
    first = found(store)
    assert first.spec.tag == "board" and {row.tag for row in first.rows} == {"board"}
    assert all(row.latency("board")["seconds"] > 0 for row in first.rows)  # type: ignore[index]
    with pytest.raises(op.UsageError, match="measures latency on board"):
        op.sweep(join=store)
    op.sweep(join=store, provider="cpu", tag="desk")
    second = found(store)
    assert [row.choice for row in second.rows] == [row.choice for row in first.rows]
    assert all(row.latency("desk") is not None for row in second.front)
    for tag in ("board", "desk"):
        told = document("sweep pick", store, "--max-drop", "15%", "--latency-on", tag, "-o", tmp_path / f"{tag}.onnx")
        own = {r.number: r.latency(tag)["share"][0] for r in second.front if r.loss.value <= 0.15}  # type: ignore[index]
        assert told["picked"]["number"] == min(own, key=lambda n: own[n])


def test_ctrl_c_keeps_everything(case: tuple[Path, Path], tmp_path: Path) -> None:
    store = str(tmp_path / "c.sweep")
    begin(case, store, 12)
    own = worker("--join", store)
    until(lambda: found(store).counts["complete"] >= 2 and running_of(store, own))
    own.send_signal(signal.SIGINT)
    _, errors = own.communicate(timeout=60)
    assert own.returncode == 130 and "has what was found" in errors, errors
    kept = found(store)
    assert kept.counts["running"] == 0 and 2 <= kept.counts["complete"] + kept.counts["pruned"] < 12
    ended([worker("--join", store)])
    each_counted_once(found(store), store, 12, 0)


def test_recipes_of_a_trained_network_are_made_again_to_the_byte(tmp_path: Path) -> None:
    """Pruned and quantized models of a sweep of the digits network; accuracy by ONNX Runtime on other images."""
    import onnxruntime

    models = Path(__file__).parents[2] / "models"
    store = str(tmp_path / "d.sweep")
    sweep = op.sweep(
        models / "digits_resnet.onnx", store=store, data=str(models / "digits_train.npz"), trials=24, **QUICK
    )
    assert any(row.choice["form"] != "none" and row.choice["channels"] < 100 for row in sweep.front)
    out = tmp_path / "p.onnx"
    told = document("sweep pick", store, "--max-drop", "1%", "-o", out)["picked"]
    assert told["same"] and told["costs"]["macs"] < 0.5 * sweep.spec.costs["macs"]
    document("run", out.with_suffix(".toml"), "-o", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    with np.load(models / "digits_test.npz") as data:
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        right = (np.asarray(session.run(None, {"image": data["images"]})[0]).argmax(1) == data["labels"]).mean()
    assert right > 0.95

"""The parts of a sweep, one by one: points, rows, signs of life, names of stores, turns of a machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import onnxprune as op
from onnxprune.errors import PlanError, VerificationError
from onnxprune.settings import SweepSettings
from onnxprune.sweeping import store as stores
from onnxprune.sweeping.front import Row, chosen, front_of
from onnxprune.sweeping.machine import turn
from onnxprune.sweeping.space import CHANNELS, FORM, NONE, RESOLUTION, WHOLE, Axis, first_points, plainest
from onnxprune.sweeping.store import Beats, file_of

BOTH = ("accuracy", "macs")


def row(number: int, drop: float, macs: float, **latency: float) -> Row:
    times = {tag: {"seconds": s, "before": 1.0, "share": [s, s, s]} for tag, s in latency.items()}
    found = {"drop": [drop, drop - 0.01, drop + 0.01], "costs": {"macs": macs, "size": 100 - macs}, "tag": ""}
    return Row(number, {}, found, times)


def test_a_front_by_hand() -> None:
    rows = [row(0, 0.0, 9), row(1, 0.1, 5), row(2, 0.2, 5), row(3, 0.3, 1), row(4, 0.1, 5), row(5, float("nan"), 0)]
    assert [r.number for r in front_of(rows, BOTH)] == [0, 1, 3]
    assert [r.number for r in front_of(rows[2:3], BOTH)] == [2]
    assert front_of([], BOTH) == []


def test_the_cheapest_within_a_drop() -> None:
    rows = [row(0, 0.0, 9, gpu=3.0), row(1, 0.01, 5), row(2, 0.02, 4, gpu=2.0)]
    assert chosen(rows, 0.01, "macs").number == 1
    assert chosen(rows, 0.01, "size").number == 0
    assert chosen(rows, 0.01, "latency", "gpu").number == 0
    assert chosen(rows, 0.02, "latency", "gpu").number == 2
    for drop, by, tag in ((-0.1, "macs", None), (0.5, "latency", "cpu")):
        with pytest.raises(VerificationError, match="OP507"):
            chosen(rows, drop, by, tag)


def test_points_that_give_the_same_model() -> None:
    whole = {"channels": 100, "form": "none", "error": 0.03}
    assert plainest(whole) == {"channels": 100, "form": "none"}
    assert plainest(whole | {"form": "static"}) == whole | {"form": "static"}
    assert plainest({"channels": 50}) == {"channels": 50}


def test_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stores.time, "monotonic", lambda: now[0])
    beats = Beats(10.0)
    assert not beats.dead("a", 1) and not beats.dead("b", None)
    now[0] = 9.0
    assert not beats.dead("a", 2) and not beats.dead("b", None)
    now[0] = 11.0
    assert not beats.dead("a", 2) and beats.dead("b", None)
    now[0] = 20.0
    assert beats.dead("a", 2) and not beats.dead("a", 3)


def test_files_of_stores() -> None:
    assert file_of("a/b.sweep") == Path("a/b.sweep") == file_of("journal:a/b.sweep") == file_of("sqlite:///a/b.sweep")
    assert file_of("grpc://host:1") is None and file_of("postgresql://me@host/x") is None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("2h", 7200), ("1.5m", 90), ("3 min", 180)])
def test_times(text: str, seconds: float) -> None:
    assert SweepSettings(time=text).seconds == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "2 days"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(PlanError, match="OP303"):
        SweepSettings(time=text)


def test_a_lost_connection_is_tried_again_and_other_errors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="needs the extra `sweep`")
    monkeypatch.setattr(stores.time, "sleep", lambda _: None)

    class OperationalError(Exception):
        """Named as the drivers of databases do."""

    class Storage:
        def __init__(self) -> None:
            self.calls = 0

    base = stores.optuna().storages.BaseStorage
    for name in base.__abstractmethods__:
        setattr(Storage, name, lambda self: None)

    def failing(self: Storage) -> int:
        self.calls += 1
        if self.calls < 4:
            raise OperationalError("server closed the connection")
        return self.calls

    def wrong(self: Storage) -> int:
        self.calls += 1
        raise ValueError("wrong")

    Storage.get_all_studies, Storage.get_trial = failing, wrong  # type: ignore[attr-defined]
    own = stores._patient(Storage())
    assert own.get_all_studies() == 4  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match="wrong"):
        own.get_trial()  # type: ignore[call-arg]
    assert own.calls == 5  # type: ignore[attr-defined]


def test_time_is_measured_alone_on_a_machine() -> None:
    """Those that don't measure work side by side; who measures waits for them, and they for it. The dead hold none."""
    order: list[str] = []

    def measure() -> None:
        with turn(alone=True):
            order.append("measured")

    with turn(alone=False), turn(alone=False):
        thread = threading.Thread(target=measure)
        thread.start()
        time.sleep(0.2)
        order.append("worked")
    thread.join(10)
    assert order == ["worked", "measured"]
    code = "from onnxprune.sweeping.machine import turn\nwith turn(alone=True): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        other.kill()
        thread.join(10)
        assert not thread.is_alive()


def test_passwords_are_not_shown() -> None:
    assert stores.shown("postgresql://me:secret@host:5432/x") == "postgresql://me@host:5432/x"
    assert stores.shown("postgresql://me@host/x") == "postgresql://me@host/x"
    assert stores.shown("a:b/c@d.sweep") == "a:b/c@d.sweep"


def test_the_first_points_are_the_whole_model_smaller_images_and_forms() -> None:
    analysis = op.analyze(Path(__file__).parents[2] / "models" / "digits_resnet.onnx")
    space = (
        Axis(CHANNELS, low=10, high=100),
        Axis(RESOLUTION, choices=(WHOLE, "28x28", "20x20")),
        Axis(FORM, choices=(NONE, "float16")),
    )
    whole = {CHANNELS: 100, RESOLUTION: WHOLE, FORM: NONE}
    smaller = [{**whole, RESOLUTION: "28x28"}, {**whole, RESOLUTION: "20x20"}]
    assert first_points(space, analysis, ()) == [whole, *smaller, {**whole, FORM: "float16"}]
    assert first_points(space[:1], analysis, ()) == [{CHANNELS: 100}]

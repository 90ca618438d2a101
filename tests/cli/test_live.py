"""Progress and interruptions: what is said while a command runs, and when it is stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.cli import live
from onnxprune.cli.live import Phase
from onnxprune.model.session import run, session
from onnxprune.progress import within
from tests.cli.support import DIGITS, document, invoke, refused
from tests.cli.terminal import on_a_terminal, shown
from tests.report.network import network

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and pseudo-terminals")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def data(model: Path, tmp_path: Path) -> Path:
    """Images with the network's own answers as labels."""
    rng = np.random.default_rng(0)  # colors differ from image to image, so that answers do
    images = (rng.standard_normal((96, 3, 8, 8)) + 3 * rng.standard_normal((96, 3, 1, 1))).astype(np.float32)
    (logits,) = run(session(model), {"image": images}).values()
    np.savez(path := tmp_path / "data.npz", image=images, labels=logits.argmax(1))
    return path


class TestPhase:
    def test_what_is_left(self) -> None:
        clock = Clock()
        phase = Phase(clock)
        phase.update("repair", 0, 12)
        clock.now = 40.0
        phase.update("repair", 3, 12)
        assert str(phase) == "repair, 3 of 12, 0:40, about 2:00 left"

    def test_a_phase_that_resumes(self) -> None:
        """Groups known from before took no time now: 2 of 10 in 10 s leave 4 that take 20 s."""
        clock = Clock()
        phase = Phase(clock)
        phase.update("sensitivity", 4, 10)
        clock.now = 10.0
        phase.update("sensitivity", 6, 10)
        assert str(phase) == "sensitivity, 6 of 10, 0:10, about 0:20 left"

    def test_the_clock_starts_with_each_phase(self) -> None:
        clock = Clock()
        phase = Phase(clock)
        phase.update("trial 1 of 6: repair", 0, 4)
        clock.now = 5.0
        phase.update("trial 1 of 6: evaluate", 0, 4)  # the same phase, counted on
        clock.now = 8.0
        assert phase.seconds == 8.0
        phase.update("trial 2 of 6: repair", 0, 4)
        clock.now = 9.0
        assert str(phase) == "trial 2 of 6: repair, 0 of 4, 0:01"

    def test_unknown_totals_and_long_times(self) -> None:
        clock = Clock()
        phase = Phase(clock)
        phase.update("load", 0, None)
        clock.now = 3700.0
        assert str(phase) == "load, 1:01:40"


def test_a_line_a_minute_without_a_terminal(
    model: Path, out: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)
    args = ("prune", model, "-o", out, "--max-drop", "50%", "--data", data)
    lines = [line for line in invoke(*args).stderr.splitlines() if line.startswith("... ")]
    assert any(re.match(r"\.\.\. trial \d of 5, macs at \d+%: \w+", line) for line in lines), lines
    out.unlink()
    assert "..." not in invoke(*args, "-q").stderr


def test_no_line_in_a_short_run(model: Path, out: Path) -> None:
    assert invoke("prune", model, "-o", out, "--ratio", "0.5").stderr == f"wrote {out}\n"


def test_phases_are_counted(model: Path, data: Path) -> None:
    """Of each phase of `prune --max-drop` the first and last counts are known; none stays at 0 of unknown for long."""
    import onnxprune as op

    seen: dict[str, list[tuple[int, int | None]]] = {}
    op.prune_model(
        model,
        max_drop=0.5,
        data=str(data),
        progress=lambda text, done, total: seen.setdefault(text, []).append((done, total)),
    )
    assert seen["measure sensitivity"][0][0] == 0 and seen["measure sensitivity"][-1][0] == 2
    repairs = [counts for text, counts in seen.items() if re.fullmatch(r"trial \d of 5, macs at \d+%: repair", text)]
    assert repairs and all(counts[-1][0] == counts[-1][1] for counts in repairs)
    assert any(text.endswith(": evaluate") for text in seen)


@posix
def test_log_lines_stand_alone_on_a_terminal(model: Path, out: Path, data: Path) -> None:
    status, text = on_a_terminal("prune", model, "-o", out, "--max-drop", "50%", "--data", data)
    assert status == 0, text
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown(text))]
    trials = [line for line in lines if "drops by" in line or "disagree" in line]
    assert trials and all(re.match(r"(macs at \d+%|judged): ", line) for line in trials), lines
    assert any(re.search(r"trial \d of 5, macs at \d+%: ", line) for line in lines)


def heeding() -> None:
    """Let SIGINT end a process, which background jobs of shells ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@posix
class TestInterrupted:
    """SIGINT in the middle: the exit status, what was kept, how to go on."""

    def stopped(self, *args: object, when: Callable[[], bool] | None = None, at: str = "") -> str:
        if at:
            status, text = on_a_terminal(*args, stop_at=at)
        else:
            command = [sys.executable, "-m", "onnxprune", *map(str, args)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen(command, preexec_fn=heeding, **pipes)
            limit = time.monotonic() + 60
            while when is not None and not when() and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, text = process.communicate(timeout=60)
            status = process.returncode
        text = shown(text)
        assert status == 130, text
        assert "Traceback" not in text
        return next(line.strip() for line in re.split(r"[\r\n]+", text) if line.strip().startswith("stopped"))

    def test_prune(self, tmp_path: Path) -> None:
        out, data = tmp_path / "out.onnx", DIGITS.parent / "digits_test.npz"
        said = self.stopped("prune", DIGITS, "-o", out, "--max-drop", "1%", "--data", data, at="measure sensitivity")
        assert said.startswith("stopped; nothing was written")
        assert not any(tmp_path.iterdir())

    def test_prune_resumes(self, model: Path, out: Path, data: Path, tmp_path: Path) -> None:
        whole, kept = tmp_path / "whole.onnx", tmp_path / "kept.npz"
        args = ("prune", model, "-o", out, "--max-drop", "20%", "--data", data, "--threads", "1", "--checkpoint", kept)
        said = self.stopped(*args, at="trial 2")
        assert said == f"stopped; {kept} has what was done; the same command with --resume goes on from it"
        assert not out.exists()
        refused("OP116", *args)
        invoke(*args, "--resume")
        invoke("prune", model, "-o", whole, "--max-drop", "20%", "--data", data, "--threads", "1")
        assert out.read_bytes() == whole.read_bytes()

    def test_sensitivity_resumes(self, tmp_path: Path) -> None:
        record = tmp_path / "record.json"
        args = ("sensitivity", DIGITS, "-o", record, "--data", DIGITS.parent / "digits_test.npz")
        said = self.stopped(*args, when=record.exists)
        found = re.fullmatch(
            rf"stopped; {re.escape(str(record))} has (\d+) groups? of 8; the same command resumes", said
        )
        assert found is not None, said
        resumed = document(*args)
        assert resumed["measured"] == 8 - int(found[1])

    def test_finetune(self, tmp_path: Path) -> None:
        data, state, out = DIGITS.parent / "digits_test.npz", tmp_path / "state.npz", tmp_path / "tuned.onnx"
        args = ("finetune", DIGITS, "-o", out, "--data", data, "--epochs", "1000", "--checkpoint", state)
        assert self.stopped(*args, when=state.exists) == (
            f"stopped; {state} has what was done; the same command with --resume goes on from it"
        )
        assert not out.exists()

    @pytest.mark.parametrize(
        ("command", "at", "said"),
        [
            (
                ("plan", "-o", "{}/p.json", "--target", "macs=50%"),
                "measure sensitivity",
                "stopped; nothing was written; measurements that resume: onnxprune sensitivity ",
            ),
            (("sensitivity",), "sensitivity", "stopped; nothing was kept; with -o FILE, the same command resumes"),
            (("quantize", "-o", "{}/q.onnx"), "ranges", "stopped; nothing was written"),
            (
                ("prune", "-o", "{}/o.onnx", "--target", "macs=50%"),
                "repair",
                "stopped; nothing was written; with --checkpoint FILE, such a run can go on",
            ),
            (
                ("finetune", "-o", "{}/f.onnx", "--epochs", "1000"),
                "train",
                "stopped; nothing was written; with --checkpoint FILE, such a run can go on",
            ),
            (("evaluate",), "evaluate", "stopped"),
        ],
    )
    def test_in_the_middle(self, tmp_path: Path, command: tuple[str, ...], at: str, said: str) -> None:
        """Nothing half-written is left, and what to do next is said where something can be done."""
        name, *rest = (part.format(tmp_path) for part in command)
        args = (name, DIGITS, *rest, "--data", DIGITS.parent / "digits_train.npz")
        assert self.stopped(*args, at=f"{at},").startswith(said)
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("command", "at"),
        [
            ("prune DIGITS -o OUT --target latency=50% --threads 1", "measure latency"),
            ("plan DIGITS -o OUT --target macs=50% --data DATA", "measure sensitivity"),
            ("evaluate DIGITS --data DATA", "evaluate"),
            ("verify DIGITS DIGITS --data DATA", "load"),
            ("inspect DIGITS --measure", "load"),
            pytest.param("demo OUT", "prune, stage 2 of 3", marks=pytest.mark.slow),
        ],
    )
    def test_under_json(self, command: str, at: str, tmp_path: Path) -> None:
        """Other commands end with a line, too, and under --format json with a document."""
        paths = {"DIGITS": DIGITS, "OUT": tmp_path / "out.onnx", "DATA": DIGITS.parent / "digits_test.npz"}
        words = [str(paths.get(word, word)) for word in command.split()]
        demo = words[0] == "demo"
        status, text = on_a_terminal(*words, *([] if demo else ["--format", "json"]), stop_at=at)
        text = shown(text)
        assert status == 130 and "Traceback" not in text, text
        lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
        said = next(line for line in lines if line.startswith("stopped"))
        if demo:
            assert said.startswith(f"stopped; {tmp_path / 'out.onnx' / 'digits_small.onnx'} has the stages")
            return
        found = json.loads("".join(lines[lines.index("{") : len(lines) - lines[::-1].index("}")]))
        assert (found["report"], found["exit_status"], found["code"]) == ("error", 130, None)
        assert said.startswith(found["cause"][:60])
        assert not any(tmp_path.iterdir())

    @pytest.mark.slow
    def test_clean(self, tmp_path: Path) -> None:
        """The optimizers, which are processes of their own, end as well."""
        for at in ("optimize,", "time,"):
            assert self.stopped("clean", DIGITS, "-o", tmp_path / "c.onnx", at=at) == "stopped; nothing was written"
            assert not any(tmp_path.iterdir())

    @pytest.mark.slow
    def test_shrink_keeps_the_best_and_resumes(self, tmp_path: Path) -> None:
        """In the middle of the first stage nothing is there yet; later, the stages that were done are written."""
        out, kept, data = tmp_path / "s.onnx", tmp_path / "kept.npz", DIGITS.parent / "digits_test.npz"
        args = ("shrink", DIGITS, "-o", out, "--data", data, "--target", "macs=50%", "--threads", "1", "--no-timed")
        assert self.stopped(*args, at="clean, stage 1 of 3").startswith("stopped; nothing was written")
        assert not any(tmp_path.iterdir())
        said = self.stopped(*args, "--checkpoint", kept, at="prune, stage 2 of 3")
        assert said == (
            f"stopped; {out} has the stages that were done: clean; "
            f"{kept} has what was done; the same command with --resume --force goes on from it"
        )
        assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.npz", "s.onnx", "s.toml"]
        assert document(*args, "--checkpoint", kept, "--resume", "--force")["kept"][:2] == ["clean", "prune"]

    @pytest.mark.slow
    def test_run(self, tmp_path: Path) -> None:
        out, data = tmp_path / "s.onnx", DIGITS.parent / "digits_test.npz"
        set_ = ("--threads", "1", "--no-timed", "--stages", "clean,prune")
        invoke("shrink", DIGITS, "-o", out, "--data", data, "--target", "macs=50%", *set_)
        again = tmp_path / "again.onnx"
        said = self.stopped("run", out.with_suffix(".toml"), "-o", again, at="clean, stage 1 of 2")
        assert said.startswith("stopped; nothing was written") and not again.exists()
        said = self.stopped("run", out.with_suffix(".toml"), "-o", again, at="prune, stage 2 of 2")
        assert said == f"stopped; {again} has the stages that were done: clean"

    def test_benchmark(self, model: Path) -> None:
        assert self.stopped("benchmark", model, "--seconds", "60", at="measure") == "stopped; nothing was written"


class TestLayerNumbers:
    """L1, L2, ...: the layers in graph order, in all commands."""

    def test_they_are_those_that_inspect_shows(self, model: Path) -> None:
        layers = document("inspect", model)["layers"]
        assert [(layer["number"], layer["node"]) for layer in layers] == [
            (1, "stem"),
            (2, "left"),
            (3, "right"),
            (4, "head"),
        ]
        for layer in layers:
            assert document("explain", model, f"L{layer['number']}")["node"] == layer["node"]
        refused("OP606", "explain", model, "L5")
        refused("OP606", "explain", model, "L0")

    def test_options_take_them(self, model: Path, tmp_path: Path) -> None:
        def removed(*args: object) -> dict[str, int]:
            path = tmp_path / "p.json"
            return {g["name"]: g["removed"] for g in document("plan", model, "-o", path, "--force", *args)["groups"]}

        for number, name in (("L1", "stem"), ("L4", "head")):
            assert removed("--ratio", "0.5", "--exclude", number) == removed("--ratio", "0.5", "--exclude", name)
        assert removed("--ratio", "0.5", "--include", "L1") == removed("--ratio", "0.5", "--include", "stem")
        assert removed("--ratio-for", "L2=0.25") == removed("--ratio-for", "left=0.25")
        assert removed("--ratio", "0.5", "--include", "L1") != removed("--ratio", "0.5", "--include", "left")
        refused("OP304", "plan", model, "-o", tmp_path / "p.json", "--force", "--ratio", "0.5", "--include", "L9")

    def test_a_node_of_that_name_comes_first(self, tmp_path: Path) -> None:
        proto = network()
        next(n for n in proto.graph.node if n.name == "right").name = "L1"
        onnx.save(proto, path := tmp_path / "m.onnx")
        assert document("explain", path, "L1")["node"] == "L1"
        assert document("explain", path, "L3")["node"] == "L1"

    def test_names_with_brackets(self, tmp_path: Path) -> None:
        """A name isn't read as a pattern."""
        proto = network()
        next(n for n in proto.graph.node if n.name == "stem").name = "st[em]*"
        onnx.save(proto, path := tmp_path / "m.onnx")
        found = document("plan", path, "-o", tmp_path / "p.json", "--ratio", "0.5", "--include", "L1")
        assert [g["removed"] > 0 for g in found["groups"]] == [True, False]

    def test_removed_blocks_do_not_shift_them(self, tmp_path: Path) -> None:
        layers = {layer["number"]: layer["node"] for layer in document("inspect", DIGITS)["layers"]}
        last = max(layers) - 1
        plans = [
            document(
                *("plan", DIGITS, "-o", tmp_path / f"{i}.json", "--remove-blocks", "1", "--ratio", "0.5"),
                *("--exclude", what),
            )
            for i, what in enumerate((f"L{last}", layers[last]))
        ]
        assert plans[0]["groups"] == plans[1]["groups"]


def test_time_left_is_told_once() -> None:
    heard: list[str] = []

    def hear(phase: str, done: int, total: int | None) -> None:
        heard.append(phase)

    trial = within(within(hear, "prune, stage 2 of 3, about 5 min left"), "trial 1 of 6, macs at 50%, about 40 s left")
    trial("repair", 1, 10)
    within(hear, "trial 1 of 6, about 40 s left")("repair", 1, 10)
    assert heard == [
        "prune, stage 2 of 3, about 5 min left: trial 1 of 6, macs at 50%: repair",
        "trial 1 of 6, about 40 s left: repair",
    ]

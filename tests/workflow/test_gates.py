"""Gates: limits on measured values, as values decide and as intervals qualify."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree.ElementTree import fromstring

import numpy as np
import onnx
import pytest

from onnxprune.errors import DataError, RegressionError, VerificationError
from onnxprune.evaluation import Estimate, Evaluation, Score
from onnxprune.workflow.gates import Gate, quality_gates, require
from tests.cli.support import document, invoke, refused
from tests.data.support import model

NAN = float("nan")


def scored(*scores: Score) -> Evaluation:
    return Evaluation(100, scores, 0, 0.95, 100, 0, ("cpu",), recognized="by hand")


def top1(drop: Estimate) -> Score:
    """A model at 90 % and an original at 92 %."""
    flipped = Estimate(-drop.value, -drop.high, -drop.low)
    return Score("top1", None, True, Estimate(0.9, 0.85, 0.94), Estimate(0.92, 0.88, 0.95), flipped)


class TestGate:
    @pytest.mark.parametrize(
        ("bound", "limit", "found", "held", "decided"),
        [
            ("least", 0.9, Estimate(0.95, 0.92, 0.97), True, True),
            ("least", 0.9, Estimate(0.95, 0.89, 0.97), True, False),
            ("least", 0.9, Estimate(0.9, 0.9, 0.9), True, True),  # the limit itself is allowed
            ("least", 0.9, Estimate(0.85, 0.8, 0.89), False, True),
            ("least", 0.9, Estimate(0.85, 0.8, 0.91), False, False),
            ("most", 0.01, Estimate(0.005, -0.01, 0.02), True, False),
            ("most", 0.01, Estimate(0.02, 0.015, 0.03), False, True),
            ("least", 0.9, Estimate(NAN, 0.0, 1.0), False, False),
            ("most", 0.9, Estimate(NAN, NAN, NAN), False, True),
        ],
    )
    def test_values_decide(self, bound: str, limit: float, found: Estimate, held: bool, decided: bool) -> None:
        gate = Gate("x", bound, limit, found)  # type: ignore[arg-type]
        assert (gate.held, gate.decided) == (held, decided)

    def test_in_words(self) -> None:
        gate = Gate("top1", "least", 0.9, Estimate(0.9542, 0.89, 0.97), "share")
        assert str(gate) == "top1 is 95.42% (interval 89.00% to 97.00%); must be at least 90.00%"
        assert str(Gate("speed-up", "least", 1.3, Estimate(1.25, 1.25, 1.25), "factor")) == (
            "speed-up is 1.25x; must be at least 1.30x"
        )


class TestQuality:
    def test_a_drop_is_the_paired_one(self) -> None:
        """The difference of the samples' own change decides, with its interval, not that of two intervals."""
        (gate,) = quality_gates(scored(top1(Estimate(0.02, 0.005, 0.035))), max_drop=0.03)
        assert (gate.name, gate.held, gate.decided) == ("drop of top1", True, False)
        assert (gate.found.low, gate.found.high) == (pytest.approx(0.005), pytest.approx(0.035))
        (gate,) = quality_gates(scored(top1(Estimate(0.02, 0.005, 0.035))), max_drop=0.01)
        assert not gate.held

    def test_without_labels_disagreement_counts(self) -> None:
        agreement = Score("agreement", None, True, Estimate(0.97, 0.95, 0.99))
        (gate,) = quality_gates(scored(agreement), max_drop=0.02)
        assert gate.name == "1 - agreement" and not gate.held
        assert (gate.found.value, gate.found.low) == (pytest.approx(0.03), pytest.approx(0.01))

    def test_lower_is_better(self) -> None:
        """A word error rate that rises from 10 to 12 % drops by -2 points; the rise is what counts."""
        rate = Score(
            "wer", None, True, Estimate(0.12, 0.1, 0.14), Estimate(0.1, 0.09, 0.11), Estimate(0.02, 0.01, 0.03)
        )
        (gate,) = quality_gates(scored(rate), max_drop=0.015)
        assert gate.name == "rise of wer" and not gate.held and gate.found.value == 0.02

    def test_several_outputs(self) -> None:
        """Each output must hold a limit; the larger drop counts."""
        scores = [Score("mse", name, False, Estimate(v, v, v)) for name, v in (("a", 1.0), ("b", 3.0))]
        gates = quality_gates(scored(*scores), most={"mse": 2.0})
        assert [(g.name, g.held) for g in gates] == [("mse:a", True), ("mse:b", False)]
        with pytest.raises(VerificationError, match=r"OP508.*mse:b is 3"):
            require(gates)

    def test_what_was_not_measured(self) -> None:
        with pytest.raises(DataError, match="OP711"):
            quality_gates(scored(top1(Estimate(0, 0, 0))), least={"top5": 0.5})
        with pytest.raises(DataError, match="OP711"):
            quality_gates(scored(Score("mse", None, False, Estimate(0, 0, 0))), max_drop=0.1)

    def test_errors(self) -> None:
        slow = Gate("speed-up", "least", 1.3, Estimate(1.2, 1.1, 1.35), "factor")
        with pytest.raises(RegressionError, match=r"OP807(.|\n)*more rounds"):
            require([slow])
        require([Gate("x", "most", 1, Estimate(1, 1, 1))])


class TestCommand:
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An original that is always right, and a model that is wrong where the largest number is negative."""
        onnx.save(model("float[N,4] x", outputs="float[N,4] y", body="y = Abs(x)"), tmp_path / "small.onnx")
        onnx.save(model("float[N,4] x", outputs="float[N,4] y", body="y = Identity(x)"), tmp_path / "model.onnx")
        x = np.eye(4, dtype=np.float32)[np.arange(200) % 4]
        x[:10] -= 3  # Abs makes another class the largest: 10 of 200 samples are wrong
        np.savez(tmp_path / "data.npz", x=x, labels=x.argmax(1))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_exit_status(self, place: Path) -> None:
        base = ("evaluate", "small.onnx", "--against", "model.onnx", "--data", "data.npz")
        found = document(*base, "--max-drop", "5%", "--min", "top1=95%", "--max", "mse=100")
        assert [(g["name"], g["held"]) for g in found["gates"]] == [
            ("drop of top1", True),
            ("top1", True),
            ("mse", True),
        ]
        assert found["gates"][0]["found"]["value"] == pytest.approx(0.05) and not found["gates"][0]["decided"]
        held = invoke(*base, "--max-drop", "5%")
        assert "more samples may decide otherwise" in held.stderr and "held, not certain" in held.stdout
        assert "otherwise" not in invoke(*base, "--max-drop", "50%").stderr
        for limit in (("--max-drop", "4.9%"), ("--min", "top1=0.951"), ("--max", "mse=0"), ("--min", "agreement=99%")):
            text = refused("OP508", *base, *limit, status=1)
            assert ("help: the interval" in text) == (limit[1] in ("4.9%", "top1=0.951"))
            missed = json.loads(invoke(*base, *limit, "--format", "json", status=1).stdout)
            assert [g["held"] for g in missed["gates"]] == [False]

    def test_junit(self, place: Path) -> None:
        base = ("evaluate", "small.onnx", "--against", "model.onnx", "--data", "data.npz", "--format", "junit")
        (suite,) = fromstring(invoke(*base, "--max-drop", "1%", "--min", "top1=0.9", status=1).stdout)
        assert {c.get("name"): c.find("failure") is None for c in suite.iter("testcase")} == {
            "drop of top1": False,
            "top1": True,
            "evaluate": True,
        }
        assert "agreement" in str(suite.findtext("system-out"))
        (suite,) = fromstring(
            invoke("evaluate", "absent.onnx", "--data", "data.npz", "--format=junit", status=2).stdout
        )
        (error,) = suite.iter("error")
        assert error.get("type") == "OP101"
        (suite,) = fromstring(invoke("evaluate", "--format=junit", status=2).stdout)
        assert [e.get("type") for e in suite.iter("error")] == ["OP602"]

    def test_markdown(self, place: Path) -> None:
        text = invoke(
            "evaluate", "small.onnx", "--data", "data.npz", "--format", "markdown", "--min", "top1=0.5"
        ).stdout
        assert "| top-1 | 95.0 % |" in text and "### gates" in text

    @pytest.mark.parametrize(
        ("code", "flags"),
        [
            ("OP302", ["--max-drop", "1%"]),
            ("OP303", ["--max-drop", "100%", "--against", "model.onnx"]),
            ("OP602", ["--min", "top1=90"]),
            ("OP602", ["--min", "top1"]),
            ("OP602", ["--min", "top1=x"]),
            ("OP711", ["--min", "tpo1=0.9"]),
            ("OP711", ["--max", "kl=1"]),
        ],
    )
    def test_refused(self, place: Path, code: str, flags: list[str]) -> None:
        text = refused(code, "evaluate", "small.onnx", "--data", "data.npz", *flags)
        assert "did you mean 90%?" in text or flags[-1] != "top1=90"

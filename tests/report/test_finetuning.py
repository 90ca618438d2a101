"""A fine-tuning run as tables and as a document."""

from __future__ import annotations

import io
import json

from onnx import ModelProto
from rich.console import Console

from onnxprune.report.documents import to_json
from onnxprune.report.evaluation import finetuning_fields, finetuning_tables
from onnxprune.train import Epoch, FineTuned


def written(result: FineTuned) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=100).print(*finetuning_tables(result), sep="\n")
    return [line.strip() for line in stream.getvalue().splitlines() if line.strip()]


def test_epochs() -> None:
    history = tuple(Epoch(n, n * 10, 0.1 / n, 1.0 / n, {"kl": 0.5}, -0.25) for n in range(1, 21))
    result = FineTuned(ModelProto(), "after", history, 20, "kl")
    lines = written(result)
    assert lines[0] == "training  200 steps"
    assert lines[1].split() == ["epoch", "loss", "rate", "kl"]
    assert [line.split()[0] for line in lines[2:-1]] == ["3", "6", "9", "12", "15", "18", "20"]
    assert lines[2].split() == ["3", "0.3333", "0.033", "0.25"]
    assert "epoch 20" in lines[-1]
    fields = json.loads(to_json(finetuning_fields(result)))
    assert fields["kept"] == "after" and len(fields["history"]) == 20


def test_what_was_kept() -> None:
    assert "No metric was measured" in written(FineTuned(ModelProto(), "after"))[-1]
    assert "kept as it was" in written(FineTuned(ModelProto(), "before", metric="top1"))[-1]

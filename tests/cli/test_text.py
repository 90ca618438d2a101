"""Texts as data for every command, on a transformer exported by PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune as op
from tests.cli.support import document, invoke, refused

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.dev

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "and", "the", "a", "fast", "slowly"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, its tokenizer, and texts of 1 to 20 words with the classes that PyTorch finds."""
    from tests.zoo.export import randomize, torchscript
    from tests.zoo.spec import Input, Network
    from tests.zoo.transformers import Bert

    folder = tmp_path_factory.mktemp("texts")
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    found.train_from_iterator([" ".join(WORDS)], tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    ends = [(name, found.token_to_id(name)) for name in special[2:]]
    found.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    found.save(str(folder / "tokenizer.json"))
    ids = Input(("batch", "seq"), below=18)
    network = Network(
        lambda: Bert(tied=False), {"ids": ids, "mask": Input(("batch", "seq"), below=2)}, sizes={"batch": 2, "seq": 7}
    )
    torch.manual_seed(0)
    module: Any = randomize(network.build())
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 21))) for _ in range(120)]
    logits = []
    for text in texts:
        alone = found.encode(text).ids
        alone = alone if len(alone) <= 16 else [*alone[:15], alone[-1]]  # 16 positions, of which the last is [SEP]
        with torch.no_grad():
            logits.append(module(torch.tensor([alone]), torch.ones(1, len(alone)))[0].numpy())
    middle = np.mean(logits, axis=0)  # without it, all texts would be of one class
    proto = torchscript(network)
    (bias,) = [tensor for tensor in proto.graph.initializer if tensor.name == "decoder.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) - middle, bias.name))
    onnx.save(proto, folder / "model.onnx")
    rows = [{"text": t, "label": int((own - middle).argmax())} for t, own in zip(texts, logits, strict=True)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "x.txt").write_text("".join(row["text"] + "\n" for row in rows))
    return folder


def test_every_text_gets_the_class_that_pytorch_gives_it_alone(place: Path) -> None:
    """Padding, masks and lengths are right: the classes are those of single texts, and texts are cut to 16 tokens."""
    found = document("evaluate", place / "model.onnx", "--data", place / "x.jsonl")
    assert found["scores"]["top1"]["model"]["value"] == 1.0 and found["samples"] == 120
    assert any("cut to 16 tokens, the most that the model takes" in note for note in found["assumed"])
    labels = [json.loads(line)["label"] for line in (place / "x.jsonl").read_text().splitlines()]
    assert len(set(labels)) > 1  # else the score would say nothing


def test_every_command_takes_texts(place: Path, tmp_path: Path) -> None:
    model, data = place / "model.onnx", place / "x.jsonl"
    small, plan, tuned = (tmp_path / name for name in ("small.onnx", "plan.json", "tuned.onnx"))
    invoke("plan", model, "-o", plan, "--target", "macs=70%", "--data", data, "--limit", 32)
    planned = json.loads(plan.read_text())
    first = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json")).encode(
        json.loads(data.read_text().splitlines()[0])["text"]
    )
    assert planned["inputs"]["ids"][1] == min(16, len(first.ids))  # the size of the symbol comes from the data
    invoke("prune", model, "-o", small, "--plan", plan, "--data", place / "x.txt", "--limit", 32)
    invoke("sensitivity", model, "--data", data, "--limit", 16, "--metric", "top1", "--share", "50%")
    invoke("inspect", model, "--data", data)
    # The pruned model has no tokenizer beside it.
    refused("OP604", "evaluate", small, "--data", data)
    tokenizer = place / "tokenizer.json"
    invoke(
        *("finetune", small, "-o", tuned, "--teacher", model, "--data", data, "--tokenizer", tokenizer),
        *("--epochs", 2, "--batch", 16, "--limit", 64),
    )
    found = document("evaluate", tuned, "--against", model, "--data", data, "--tokenizer", tokenizer)
    assert found["scores"].keys() >= {"top1", "agreement"}
    reader = op.calibration_reader(model, str(data), limit=5)
    assert sum(1 for _ in reader) == 5


def test_training_needs_a_mask_for_different_lengths(tmp_path: Path) -> None:
    from tests.data.support import model

    proto = model(
        "float[N,T] x",
        outputs="float[N,1] y",
        body="i = Constant<value_ints = [1]>()\nm = ReduceMean<axes = [1]>(x)\ny = MatMul(m, w)",
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    rows = [{"x": [0.5] * n, "label": 0.25 * n} for n in (1, 2, 3, 2, 1, 3)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--data", tmp_path / "x.jsonl", "--task", "regression")
    assert "no mask" in refused("OP706", "finetune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *options)
    assert document("evaluate", tmp_path / "m.onnx", *options)["samples"] == 6


@pytest.fixture
def two_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with two outputs that may be scores of classes, of which the second one is right; and functions."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N,6] x) => (float[N,4] a, float[N,4] b) {
        h = MatMul(x, up)
        r = Relu(h)
        a = MatMul(r, left)
        b = MatMul(r, right)
    }"""
    proto = onnx.parser.parse_model(text)
    weights = {"up": (6, 24), "left": (24, 4), "right": (24, 4)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    for name in ("left", "right"):
        values[name][12:] *= 0.01  # which half of the channels may leave without harm
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in values.items())
    onnx.save(proto, tmp_path / "two.onnx")
    right = (np.maximum(x @ values["up"], 0) @ values["right"]).argmax(axis=1)
    np.savez(tmp_path / "x.npz", x=x, labels=right)
    (tmp_path / "mine_to_score.py").write_text(
        "import numpy as np\n"
        "def last(view):\n    return -np.arange(len(view.group.units), dtype=float)\n"
        "def strongest(view):\n"
        "    assert view.activations\n"
        "    return np.ones(len(view.group.units))\n"
        "def fails(view):\n    return view.nothing\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return tmp_path


def test_one_option_names_the_output_for_every_command(two_outputs: Path) -> None:
    data = ("--data", "x.npz")

    def top1(*more: str) -> float:
        found = document("evaluate", "two.onnx", *data, *more)
        return float(found["scores"]["top1"]["model"]["value"])

    assert top1("--output-name", "b") == 1.0 > top1("--output-name", "a")
    refused("OP711", "evaluate", "two.onnx", *data, "--output-name", "c")
    found = document("prune", "two.onnx", "-o", "s.onnx", "--max-drop", "20%", *data, "--output-name", "b")
    scores = found["evaluation"]["scores"]
    assert scores["top1"]["original"]["value"] == 1.0
    invoke("plan", "two.onnx", "-o", "p.json", "--target", "macs=0.7", *data, "--output-name", "b")
    measured = ("sensitivity", "two.onnx", *data, "--metric", "top1", "--share", "75%")
    errors = [document(*measured, "--output-name", name)["groups"][0]["points"][-1][1] for name in "ab"]
    assert errors[0] != errors[1]
    tuned = document("finetune", "two.onnx", "-o", "t.onnx", *data, "--output-name", "b", "--epochs", 1)
    scores = tuned["before"]["scores"]
    assert scores["top1"]["model"]["value"] == 1.0


def test_a_criterion_is_a_function_of_the_user_s(two_outputs: Path) -> None:
    criterion = "mine_to_score:last"
    invoke("plan", "two.onnx", "-o", "p.json", "--ratio", "50%", "--round-to", 1, "--criterion", criterion)
    removed = json.loads(Path("p.json").read_text())["removed"]
    assert removed["up"]["1"] == list(range(12, 24))  # the last ones count least
    options = ("--data", "x.npz", "--allocation", "uniform", "--ratio", "25%")
    invoke("prune", "two.onnx", "-o", "s.onnx", "--criterion", "mine_to_score:strongest", *options)
    refused("OP309", "prune", "two.onnx", "-o", "t.onnx", "--ratio", "50%", "--criterion", "mine_to_score:fails")
    refused("OP710", "prune", "two.onnx", "-o", "t.onnx", "--ratio", "50%", "--criterion", "mine_to_score:none")
    plan = op.plan("two.onnx", ratio=0.5, criterion=criterion, round_to=1)
    assert list(plan.removed["up"][1]) == list(range(12, 24))

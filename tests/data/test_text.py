"""Texts: which field they are, what the tokenizer makes of them, and how long they may be."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.data import Recipe, open_data
from onnxprune.errors import OnnxPruneError, UsageError
from tests.data.support import model, refused

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.dev

TEXTS = ["the cat sat on the mat", "a dog", "the dog, the cat and the bird", "birds sing"]
BERT = model("int64[N,T] input_ids; int64[N,T] attention_mask; int64[N,T] token_type_ids")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WordPiece tokenizer that adds [CLS] and [SEP], trained here."""
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    found.normalizer = tokenizers.normalizers.Lowercase()
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    found.train_from_iterator(TEXTS * 3, trainer)
    ends = [(name, found.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    found.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    found.save(str(path))
    return path


def padded_by_the_package(tokenizer: Path, texts: Any) -> tuple[Any, Any, Any]:
    """Return ids, mask and types with the package's own padding."""
    found = tokenizers.Tokenizer.from_file(str(tokenizer))
    found.enable_padding(pad_id=found.token_to_id("[PAD]"), pad_token="[PAD]")
    codes = found.encode_batch(texts)
    return [c.ids for c in codes], [c.attention_mask for c in codes], [c.type_ids for c in codes]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n\n".join(row["text"] for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_texts_become_what_the_package_makes_of_them(suffix: str, tokenizer: Path, tmp_path: Path) -> None:
    texts = [TEXTS[0], 'a "dog"\nand a bird' if suffix != ".txt" else 'a "dog"', *TEXTS[2:]]
    path = written(tmp_path / f"x{suffix}", [{"text": text, "label": i % 2} for i, text in enumerate(texts)])
    data = open_data(path, BERT, tokenizer=tokenizer)
    (batch,) = data.batches(9)
    ids, mask, types = padded_by_the_package(tokenizer, texts)
    assert batch.inputs["input_ids"].tolist() == ids
    assert batch.inputs["attention_mask"].tolist() == mask
    assert batch.inputs["token_type_ids"].tolist() == types
    assert [data.text(i) for i in range(4)] == texts and data.subset([2]).text(0) == texts[2]
    if suffix == ".txt":
        assert not data.labeled
    else:
        assert batch.labels is not None and batch.labels.tolist() == [0, 1, 0, 1]


def test_pairs_have_types_and_columns_are_named(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"first": a, "then": b, "verdict": v} for a, b, v in zip(TEXTS, TEXTS[::-1], "ynyn", strict=True)]
    path = written(tmp_path / "x.csv", rows)
    recipe = Recipe(text=("first", "then"), labels="verdict", classes=("n", "y"))
    data = open_data(path, BERT, tokenizer=tokenizer, recipe=recipe)
    (batch,) = data.batches(9)
    ids, mask, types = padded_by_the_package(tokenizer, list(zip(TEXTS, TEXTS[::-1], strict=True)))
    assert batch.inputs["input_ids"].tolist() == ids
    assert batch.inputs["token_type_ids"].tolist() == types
    assert batch.inputs["attention_mask"].tolist() == mask and np.any(types)
    assert batch.labels is not None and batch.labels.tolist() == [1, 0, 1, 0]
    assert data.text(0) == f"{TEXTS[0]}\n{TEXTS[3]}"


def test_numbers_of_a_column_with_words_are_words(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"text": t, "label": v} for t, v in zip(TEXTS, ["1", "2", "1", "none"], strict=True)]
    data = open_data(
        written(tmp_path / "x.csv", rows), BERT, tokenizer=tokenizer, recipe=Recipe(classes=("none", "1", "2"))
    )
    found = [batch.labels.tolist() for batch in data.batches(2) if batch.labels is not None]
    assert found == [[1, 2], [1, 0]]


def test_the_tokenizers_own_padding_is_kept(tokenizer: Path, tmp_path: Path) -> None:
    own = tokenizers.Tokenizer.from_file(str(tokenizer))
    own.enable_padding(direction="left", pad_id=2, pad_token="[SEP]")
    own.save(str(tmp_path / "tokenizer.json"))
    path = written(tmp_path / "x.txt", [{"text": text} for text in TEXTS])
    (batch,) = open_data(path, BERT, tokenizer=tmp_path / "tokenizer.json").batches(9)
    codes = own.encode_batch(TEXTS)
    assert batch.inputs["input_ids"].tolist() == [code.ids for code in codes]
    assert batch.inputs["attention_mask"].tolist() == [code.attention_mask for code in codes]


def positions(count: int) -> ModelProto:
    """A model with a table of positions, as exporters write it: a slice of a constant, added to the tokens'."""
    proto = model(
        "int64[N,T] input_ids; int64[N,T] attention_mask",
        outputs="float[N,T,2] y",
        body=f"""
            shape = Shape(input_ids)
            one = Constant<value_ints = [1]>()
            two = Constant<value_ints = [2]>()
            zero = Constant<value_ints = [0]>()
            length = Slice(shape, one, two)
            size = Constant<value_ints = [{count}, 2]>()
            table = ConstantOfShape(size)
            own = Slice(table, zero, length)
            f = Cast<to = 1>(input_ids)
            wide = Unsqueeze(f, two)
            y = Add(wide, own)
        """,
    )
    return proto


@pytest.mark.parametrize(("count", "longest"), [(37, 37), (600, 512)])
def test_texts_are_cut_to_what_the_model_takes(count: int, longest: int, tokenizer: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", [{"text": "the cat " * 500}, {"text": "a dog"}])
    data = open_data(path, positions(count), tokenizer=tokenizer)
    (batch,) = data.batches(9)
    assert batch.inputs["input_ids"].shape == (2, longest)
    assert any(f"cut to {longest} tokens" in note for note in data.notes)
    asked = open_data(path, positions(count), tokenizer=tokenizer, recipe=Recipe(length=9))
    assert next(asked.batches(9)).inputs["input_ids"].shape == (2, 9)


def test_a_model_of_fixed_length_gets_it(tokenizer: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", [{"text": text} for text in TEXTS])
    (batch,) = open_data(path, model("int32[N,6] tokens"), tokenizer=tokenizer).batches(9)
    ids = batch.inputs["tokens"]
    assert ids.shape == (4, 6) and ids.dtype == np.int32
    pad = tokenizers.Tokenizer.from_file(str(tokenizer)).token_to_id("[PAD]")
    assert (ids[1, 4:] == pad).all() and ids[0, -1] == 2  # a text that is cut still ends in [SEP]


def test_texts_are_read_when_they_are_needed(tokenizer: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [{"text": text, "n": i} for i, text in enumerate(TEXTS * 50)])
    data = open_data(path, BERT, tokenizer=tokenizer, limit=10)
    assert len(data) == 10 and sum(batch.count for batch in data.batches(4)) == 10
    path.unlink()
    with refused("OP701"):
        next(data.batches(4))


@pytest.mark.parametrize(
    ("name", "content", "code", "match"),
    [
        ("x.csv", "a,b\nx,y\n", "OP706", "any of 2 fields.*text=FIELD"),
        ("x.csv", "a,b\nx\n", "OP701", "line 2.*|.*1 values.*"),
        ("x.csv", 'text\n"open\n', "OP701", "not a table"),
        ("x.csv", "text,text\nx,y\n", "OP701", "same name"),
        ("x.jsonl", '{"text": "a"}\n{broken\n', "OP701", "line 2.*|.*not JSON.*"),
        ("x.jsonl", "[" * 100_000, "OP701", "not JSON"),
        ("x.txt", "\n \n", "OP702", "no samples"),
        ("x.txt", "\udcff", "OP701", "UTF-8"),
        ("x.jsonl", '{"n": 1}\n', "OP706", "no field is a text"),
    ],
)
def test_files_that_arent_texts_are_refused(
    name: str, content: str, code: str, match: str, tokenizer: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with refused(code, match):
        open_data(path, BERT, tokenizer=tokenizer)


def test_a_missing_or_wrong_tokenizer_is_told(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.txt", [{"text": text} for text in TEXTS])
    with pytest.raises(UsageError, match="OP604"):
        open_data(path, BERT)
    with pytest.raises(UsageError, match="OP604"):
        open_data(path, BERT, tokenizer=tmp_path / "none.json")
    with refused("OP706", "the tokenizer fails"):
        open_data(path, BERT, tokenizer=path)
    with refused("OP706", "no input of token ids"):
        open_data(path, model("float[N,T] x"), tokenizer=tokenizer)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"(?s)OP605.*onnxprune\[text\]"):
        open_data(path, BERT, tokenizer=tokenizer)


def test_damaged_tokenizers_are_refused_or_used(tokenizer: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", [{"text": text} for text in TEXTS])
    rng, whole, bad = np.random.default_rng(0), tokenizer.read_bytes(), tmp_path / "bad.json"
    outcomes = set()
    for _ in range(100):
        content = bytearray(whole)
        at = int(rng.integers(len(content)))
        content[at : at + int(rng.integers(0, 40))] = rng.bytes(int(rng.integers(0, 3)))
        bad.write_bytes(content)
        try:
            outcomes.add(sum(batch.count for batch in open_data(path, BERT, tokenizer=bad).batches(3)))
        except OnnxPruneError as error:
            outcomes.add(error.code)
    assert "OP706" in outcomes

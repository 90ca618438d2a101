"""Texts as inputs: which field of a file they are, and what a tokenizer makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data.batch import Array
from onnxprune.data.inputs import TYPES, InputSpec, named
from onnxprune.data.ragged import Padding, RaggedSource, Sample, label_field, label_of, listed
from onnxprune.data.recipe import Recipe
from onnxprune.data.records import Records
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.errors.words import one_line
from onnxprune.model.session import run, session
from onnxprune.model.states import fitted, state_inputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
"""The name of a tokenizer's file beside a model."""

_LONGEST = 512  # tokens of a text, if neither the model nor the tokenizer nor the user says so
_SHORTEST = 8
_BYTES = 1 << 28  # of a tokenizer
_TEXTS = ("text", "sentence", "content", "review", "document", "prompt", "query", "question", "title")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "context"))
_IDS = re.compile(r"^input_?ids$|^tokens?$|^ids$|token_?ids", re.IGNORECASE)
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


def open_records(
    path: Path, model: ModelProto, inputs: Sequence[InputSpec], recipe: Recipe, tokenizer: str | Path | None
) -> tuple[RaggedSource, tuple[str, ...]]:
    """Return the samples of a text file: lists of numbers by input name, or texts.

    Args:
        path: the file, see `Records`.
        model: the model, which may be run to find out how long texts may be.
        inputs: its inputs.
        recipe: the fields of texts and labels, and the largest number of tokens.
        tokenizer: the file of the tokenizer that makes inputs of texts.

    Returns:
        The samples, and notes on what was assumed.

    Raises:
        DataError: the file can't be read (OP701, OP702), has no text, doesn't fit the model (OP706), or a field is
            missing (OP708, OP709).
        UsageError: there is no tokenizer (OP604), or its package isn't installed (OP605).
    """
    records = Records(path)
    label = None if recipe.labels == "none" else label_field(records, recipe.label_field)
    rest = {field: kinds for field, kinds in records.fields.items() if field != label}
    lists = {field for field, kinds in rest.items() if "list" in kinds or kinds <= {"whole", "real"}}
    fields = {spec.name: field for spec in inputs if (field := named(lists, (spec.name,))) is not None}
    if len(inputs) == 1 and not fields and not recipe.text and len(lists) == 1 == len(rest):
        fields = {inputs[0].name: lists.pop()}
    labels = () if label in (None, "label", "labels") else (f"labels are the field {label!r}",)
    if fields and recipe.text is None:
        return listed(records, fields, inputs, label, recipe.ignore), labels
    chosen = _text_fields(records, recipe.text, label)
    ids, encoder = _ids_input(inputs, records.where), _tokenizer(tokenizer, records.where)
    padding, side = _padding(encoder, ids, inputs), (encoder.truncation or {}).get("direction", "right")

    def source(longest: int) -> RaggedSource:
        encoder.enable_truncation(longest, direction=side)

        def read(rows: NDArray[np.int64]) -> list[Sample]:
            found = list(records.read(rows))
            texts = [tuple(_text(record.get(f)) for f in chosen) for record in found]
            with _guarded(str(tokenizer)):
                codes = encoder.encode_batch([t if len(t) > 1 else t[0] for t in texts])
            return [
                (_arrays(code.ids, code.type_ids, ids, inputs), label_of(records, record, label, int(row)))
                for row, record, code in zip(rows, found, codes, strict=True)
            ]

        return RaggedSource(
            *(records.where, len(records), inputs, read),
            padding=padding,
            ignore=recipe.ignore,
            name=records.name,
            text=lambda row: "\n".join(_text(record.get(f)) for record in records.read([row]) for f in chosen),
        )

    longest, why = _longest(model, inputs, ids, encoder, padding, recipe.length)
    notes = [*labels, f"texts are cut to {longest} tokens, {why}"]
    if len(records.fields) > 1:
        notes.append(f"texts are the field{'s' * (len(chosen) > 1)} {', '.join(map(repr, chosen))}")
    return source(longest), tuple(notes)


def _text_fields(records: Records, wanted: Sequence[str] | None, label: str | None) -> tuple[str, ...]:
    """Return the fields of a text, or of the two texts of a pair."""
    fields = [field for field in records.fields if records.column(field) == "text" and field != label]
    hint = f"name one with text=FIELD, or two; the fields are: {', '.join(records.fields)}"
    if wanted is not None:
        if missing := [field for field in wanted if field not in records.fields]:
            raise DataError("OP709", f"there is no field {missing[0]!r} of texts", where=records.where, hint=hint)
        return tuple(wanted)
    for pair in _PAIRS:
        if all(field in fields for field in pair):
            return pair
    usual = [field for field in _TEXTS if field in fields]
    if not usual and len(fields) != 1:
        cause = "no field is a text" if not fields else f"any of {len(fields)} fields may be the text"
        raise DataError("OP706", cause, where=records.where, hint=hint)
    return ((usual or fields)[0],)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _ids_input(inputs: Sequence[InputSpec], where: str) -> InputSpec:
    """Return the input of token ids."""
    whole = [
        spec
        for spec in inputs
        if spec.dtype.kind in "iu" and spec.shape is not None and len(spec.shape) == 2 and not spec.state
        if not re.search(r"mask|position|len|past|cache", spec.name, re.IGNORECASE) and not TYPES.search(spec.name)
    ]
    named_so = [spec for spec in whole if _IDS.search(spec.name)]
    found = named_so if len(named_so) == 1 else whole
    if len(found) != 1:
        shown = ", ".join(str(spec) for spec in inputs)
        cause = "the model has no input of token ids" if not found else "several inputs may be of token ids"
        hint = f"its inputs are {shown}; give arrays by name instead (.npz, or lists of numbers in a .jsonl)"
        raise DataError("OP706", cause, where=where, hint=hint)
    return found[0]


def _arrays(
    ids: Sequence[int], types: Sequence[int], spec: InputSpec, inputs: Sequence[InputSpec]
) -> Mapping[str, Array]:
    """Return the arrays that a tokenizer gives: ids, and types if the model takes them."""
    arrays: dict[str, Array] = {spec.name: np.array(ids, np.int64)}
    return arrays | {other.name: np.array(types, np.int64) for other in inputs if TYPES.search(other.name)}


def _tokenizer(path: str | Path | None, where: str) -> Tokenizer:
    if path is None:
        hint = f"name it with `tokenizer`, or put it beside the model as {TOKENIZER}"
        raise UsageError("OP604", "texts need the model's tokenizer, and there is none", where=where, hint=hint)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        cause = "texts need the package tokenizers, which isn't installed"
        raise UsageError("OP605", cause, hint="pip install 'onnxprune[text]'") from error
    try:
        with Path(path).open("rb") as file:
            content = file.read(_BYTES + 1)
    except OSError as error:
        cause = f"can't read the tokenizer: {error.strerror or error}"
        raise UsageError("OP604", cause, where=str(path)) from error
    if len(content) > _BYTES:
        raise UsageError("OP604", f"the tokenizer is larger than {_BYTES >> 20} MiB", where=str(path))
    with _guarded(str(path)):
        found = Tokenizer.from_buffer(content)
    return found


@contextmanager
def _guarded(where: str) -> Iterator[None]:
    """Convert the errors and panics of the tokenizers package.

    Raises:
        DataError: there was one (OP706).
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # its panics aren't Exceptions
        cause = f"the tokenizer fails: {one_line(error, 200)}"
        raise DataError(
            "OP706", cause, where=where, hint="a tokenizer.json of the package tokenizers is needed"
        ) from error


def _padding(tokenizer: Tokenizer, ids: InputSpec, inputs: Sequence[InputSpec]) -> Padding:
    """Return how a tokenizer pads: as its file says, else at the end with its token for that. It stops doing so."""
    own = tokenizer.padding or {}
    tokenizer.no_padding()
    pad = own.get("pad_id")
    if pad is None:
        pad = next((found for token in _PADS if (found := tokenizer.token_to_id(token)) is not None), 0)
    types = {spec.name: own.get("pad_type_id", 0) for spec in inputs if TYPES.search(spec.name)}
    return Padding({ids.name: pad, **types}, own.get("direction") == "left")


def _longest(
    model: ModelProto,
    inputs: Sequence[InputSpec],
    ids: InputSpec,
    tokenizer: Tokenizer,
    padding: Padding,
    wanted: int | None,
) -> tuple[int, str]:
    """Return the largest number of tokens of a text, and who says so."""
    assert ids.shape is not None
    if fixed := ids.shape[1]:
        return (wanted, "as asked for") if wanted and wanted < fixed else (fixed, "the length that the model has")
    if wanted:
        return wanted, "as asked for"
    if tokenizer.truncation:
        return int(tokenizer.truncation["max_length"]), f"as {TOKENIZER} says; set another number with length=N"
    usual = "the default; set another number with length=N"
    try:
        opened = session(model)
    except ModelError:  # which says nothing about lengths
        return _LONGEST, usual
    states = state_inputs(model)

    def takes(length: int) -> bool:
        code = [int(padding.values[ids.name] == 0)] * length  # some token that isn't padding
        sample = _arrays(code, [0] * length, ids, inputs)
        batch = next(RaggedSource(TOKENIZER, 1, inputs, lambda _: [(sample, None)], padding=padding).batches(None, 1))
        try:
            run(opened, fitted(states, batch.inputs, 1))
        except ModelError:
            return False
        return True

    if takes(_LONGEST) or not takes(_SHORTEST):
        return _LONGEST, usual
    below, above = _SHORTEST, _LONGEST
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if takes(middle) else (below, middle)
    return below, "the most that the model takes"

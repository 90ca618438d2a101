"""Marks of samples: a repaired model tells which samples it was fitted to, and these don't judge it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.data import some
from onnxprune.data.batch import Batch
from onnxprune.data.marks import fitted_marks, marks, marks_of, note_fitted
from onnxprune.model.metadata import FITTED, write_notes
from onnxprune.train.hold_out import split_off

MODELS = Path(__file__).parents[2] / "models"
MODEL, DATA = MODELS / "digits_resnet.onnx", MODELS / "digits_train.npz"


def test_padding_and_batches_change_no_mark() -> None:
    ids = np.array([[5, 6, 0, 0], [7, 8, 9, 1]])
    longer = np.pad(ids, ((0, 0), (0, 3)))
    together = marks_of(Batch({"ids": ids}))
    assert marks_of(Batch({"ids": longer})).tolist() == together.tolist()
    assert marks_of(Batch({"ids": ids[1:]})).tolist() == together[1:].tolist()
    assert len(set(together.tolist())) == 2  # negative control: other samples have other marks


def test_samples_that_repaired_a_model_come_last_in_its_validation(caplog: pytest.LogCaptureFixture) -> None:
    model = onnx.load(MODEL)
    data = some(op.open_data(DATA, model), 200, 0)
    fitted = data.subset(range(0, 200, 2))
    unnoted = split_off(model, data, 0.3, 0)[1]
    note_fitted(model, fitted)
    rest, held = split_off(model, data, 0.3, 0)
    known = set(marks(fitted).tolist())
    assert (len(rest), len(held)) == (140, 60)
    assert not known & set(marks(held).tolist())
    assert known & set(marks(unnoted).tolist())  # negative control: without the note, they would be held out
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        held = split_off(model, data, 0.6, 0)[1]  # 120, and no more than 100 took no part
    assert len(held) == 120 and len(known & set(marks(held).tolist())) >= 19
    assert "120 samples that are held out repaired the model" in caplog.text


def test_prune_notes_what_repaired_and_evaluate_says_so() -> None:
    small = op.prune_model(MODEL, target=op.Target("macs", 0.6), data=DATA, limit=64, recover="bias")
    assert small.fitted_on is not None and len(small.fitted_on) == 64
    assert set(fitted_marks(small.model.proto).tolist()) == set(marks(small.fitted_on).tolist())
    (note,) = op.evaluate(small.model, small.fitted_on).notes
    assert note.startswith("the model was repaired on 64 of these 64 samples")
    other = op.open_data(MODELS / "digits_test.npz", small.model.proto)
    assert not op.evaluate(small.model, other).notes  # negative control


@pytest.mark.parametrize("damaged", ["!", "abc", "AA=="])
def test_a_damaged_note_tells_nothing(damaged: str) -> None:
    model = onnx.load(MODEL)
    write_notes(model, {FITTED: damaged})
    assert not len(fitted_marks(model))

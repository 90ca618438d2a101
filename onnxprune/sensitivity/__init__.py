"""Measure how sensitive outputs are to the removal of each group's channels, and allocate budgets accordingly."""

from __future__ import annotations

from onnxprune.sensitivity.allocation import added_errors, predicted_error, slopes, spend
from onnxprune.sensitivity.blocks import curves_left, spend_blocks
from onnxprune.sensitivity.curves import SHARES, Curve, Judge, Point, carried, few, measure, share_out
from onnxprune.sensitivity.layers import measure_layers
from onnxprune.sensitivity.outputs import MetricLoss, OutputError, drop, drop_of, loss
from onnxprune.sensitivity.predictions import PredictionError, judge_of
from onnxprune.sensitivity.store import Record, curve_of, entry_of, read_record, resume

__all__ = [
    "SHARES",
    "Curve",
    "Judge",
    "MetricLoss",
    "OutputError",
    "Point",
    "PredictionError",
    "Record",
    "added_errors",
    "carried",
    "curve_of",
    "curves_left",
    "drop",
    "drop_of",
    "entry_of",
    "few",
    "judge_of",
    "loss",
    "measure",
    "measure_layers",
    "predicted_error",
    "read_record",
    "resume",
    "share_out",
    "slopes",
    "spend",
    "spend_blocks",
]

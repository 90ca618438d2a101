"""Networks written node by node: the standard's attention, norms and recurrence, einsum, quantized operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.settings.planning import Attention
from tests.integration.checks import analyzed, assert_no_rule_failed, assert_prunes, footprints, unreached
from tests.toolbox import run_once
from tests.zoo.byhand import BY_HAND

HERE = {"batch": 2, "sequence": 6, "steps": 5}
ELSEWHERE = {"batch": 3, "sequence": 9, "steps": 7}

BOTH: tuple[Attention, ...] = ("heads", "width")
GROUPS: dict[tuple[str, Attention], list[str]] = {
    ("attention_by_head", "heads"): ["4 x 8: 4096", "40 x 1: 1560", "~32 x 1: 5792"],
    ("attention_by_head", "width"): ["40 x 1: 1560", "8 x 4: 2048", "~32 x 1: 5792", "~8 x 4: 2048"],
    ("decoder", "heads"): ["2 x 16: 3072", "48 x 1: 4608", "~32 x 1: 8448"],
    ("decoder", "width"): ["48 x 1: 4608", "8 x 4: 1536", "~32 x 1: 8448"],  # pairs of Q and K are rotated
    ("fused_decoder", "heads"): ["2 x 64: 6144", "48 x 1: 4608", "~32 x 1: 11520"],
    ("fused_decoder", "width"): ["48 x 1: 4608", "~32 x 1: 11520"],  # heads of certain widths only
}
for _name, _groups in {
    "blocked_weights": ["12 x 4: 2088", "2 x 16: 2368"],  # whole blocks of input channels share their scales
    "branches": ["12 x 1: 936", "16 x 1: 1600", "~8 x 1: 2024"],  # what both branches give leaves both
    "channels_last": ["16 x 1: 960"],
    "einsum_mixture": [
        *("10 x 1: 1280", "12 x 1: 1344", "32 x 1: 1728", "32 x 1: 3264", "4 x 1: 4096", "8 x 1: 2048", "8 x 1: 984"),
        "~8 x 1: 2048",
    ],
    "group_norms": ["6 x 4: 3660", "~16 by 4 x 1: 3936"],
    "gru_and_rnn": ["12 x 2: 1728", "16 x 6: 2064"],
    "integer_operators": ["~12 x 1: 1968", "~16 x 1: 2304", "~20 x 1: 360"],
    "local_functions": ["16 x 1: 1712", "24 x 1: 768", "24 x 1: 768"],
    "lstm_with_everything": ["10 x 1: 350", "16 x 8: 3808"],
    "quantized_operators": ["12 x 1: 2856", "16 by 4 x 1: 1472", "20 x 1: 380", "24 by 4 x 1: 3504"],
}.items():
    for _mode in BOTH:
        GROUPS[_name, _mode] = _groups


@pytest.mark.parametrize("name,mode", GROUPS)
def test_groups(name: str, mode: Attention) -> None:
    model = BY_HAND[name]()
    graph = analyzed(model, _shapes(model, HERE), mode).graph
    assert_no_rule_failed(graph)
    assert unreached(graph) == []
    assert footprints(graph) == GROUPS[name, mode]


@pytest.mark.parametrize("budget", ["macs", "ratio"])
@pytest.mark.parametrize("name,mode", GROUPS)
def test_pruned_is_proved(name: str, mode: Attention, budget: str) -> None:
    model = BY_HAND[name]()
    elsewhere = _draw(model, ELSEWHERE)
    run_once(model, elsewhere)
    assert_prunes(analyzed(model, _shapes(model, HERE), mode), budget, _draw(model, HERE), elsewhere)


def test_all_are_tested() -> None:
    assert {name for name, _ in GROUPS} == set(BY_HAND)


def _shapes(model: ModelProto, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        entry.name: tuple(sizes[d.dim_param] if d.dim_param else d.dim_value for d in entry.type.tensor_type.shape.dim)
        for entry in model.graph.input
    }


def _draw(model: ModelProto, sizes: dict[str, int]) -> dict[str, NDArray[Any]]:
    rng, drawn = np.random.default_rng(1), {}
    types = {entry.name: tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type) for entry in model.graph.input}
    for name, shape in _shapes(model, sizes).items():
        values = rng.standard_normal(shape) if types[name].kind == "f" else rng.integers(0, 10, shape)
        drawn[name] = values.astype(types[name])
    return drawn

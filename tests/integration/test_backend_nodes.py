"""The ONNX standard's own node tests: every operator traces, and a plan that removes nothing changes nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx.backend.test.case.node import collect_testcases
from onnx.defs import get_all_schemas

from onnxprune.errors import ModelError
from onnxprune.model.file import load
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.operators.card import cards
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.library import max_ir_version
from onnxprune.trace import trace
from onnxprune.trace.pruned_graph import PrunedGraph

CHUNKS = 8
# What is refused by design: opsets before 7 and inputs with an axis of size zero.
REFUSED = {"OP108", "OP111"}


@cache
def cases() -> Sequence[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def _readable(case: Any) -> ModelProto:
    """Return a copy in an IR version that ONNX Runtime reads."""
    model = ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = min(model.ir_version, max_ir_version())
    return model


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nodes(chunk: int) -> None:
    seen: Counter[str] = Counter()
    failures = []
    for case in cases()[chunk::CHUNKS]:
        problem = _examine(case, seen)
        if problem:
            failures.append(f"{case.name}: {problem}")
    assert not failures, "\n".join(failures)
    # Most cases must have been looked at, and most of them compared.
    assert seen["traced"] > 0.9 * len(cases()[chunk::CHUNKS]), seen
    assert seen["equal"] > 0.7 * seen["traced"], seen


def _examine(case: Any, seen: Counter[str]) -> str | None:
    """Trace one case and rewrite it with nothing removed; return what is wrong."""
    model = _readable(case)
    try:
        graph = trace(normalize(load(model).proto))
    except ModelError as error:
        seen[error.code] += 1
        return None if error.code in REFUSED else str(error)
    seen["traced"] += 1
    failed = [pin for _, pin in graph.reasons() if pin.code in ("OP203", "OP215")]
    if failed:
        return str(failed[0])
    before, after = _outputs(model, case), _outputs(rewrite(PrunedGraph(graph)), case)
    if before is None:
        seen["not run"] += 1
        return None
    if after is None:
        return "the rewritten model can't be run"
    if not _same(before, _outputs(model, case)):  # it draws lots
        seen["random"] += 1
        return None
    seen["equal"] += 1
    return None if _same(before, after) else "other outputs"


def _outputs(model: ModelProto, case: Any) -> list[Any] | None:
    """Run a model in ONNX Runtime on the case's inputs, or tell that it can't."""
    given = case.data_sets[0][0]
    feeds = {entry.name: value for entry, value in zip(model.graph.input, given, strict=False) if value is not None}
    try:
        return list(run(session(model, optimize=False, threads=1), feeds).values())
    except ModelError:
        return None


def _same(a: Any, b: Any) -> bool:
    """Compare bit for bit; sequences item by item."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    if a is None or b is None:
        return a is b
    x, y = np.asarray(a), np.asarray(b)
    same = x.shape == y.shape and x.dtype == y.dtype
    return same and (x.tolist() == y.tolist() if x.dtype.kind in "OSU" else x.tobytes() == y.tobytes())


def test_no_operator_is_unknown() -> None:
    """Each operator of the standard has a rule, or is left alone for a reason that is told."""
    known = cards()
    standard = {s.name for s in get_all_schemas() if s.domain == "" and not s.deprecated}
    assert standard <= set(known), standard - set(known)
    assert all(card.trace is not None or "trace" in card.reasons for card in known.values())


def test_rules_name_operators_that_exist() -> None:
    """A rule whose operator is misspelt would never be used."""
    named = {name for name in cards() if ":" not in name}
    ever = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert named - ever <= EXPERIMENTAL


# Once in the standard's drafts, written by early exporters, or known to ONNX Runtime under the standard's domain.
EXPERIMENTAL = {"Affine", "Crop", "ImageScaler", "ParametricSoftplus", "ScaledTanh", "SimplifiedLayerNormalization"}


def test_comparison_is_bit_for_bit() -> None:
    """The control: outputs that differ in one bit, in type or in shape are told apart."""
    a = np.array([1.0, np.nan, -0.0], np.float32)
    assert _same([a, ["x"]], [a.copy(), ["x"]])
    for other in (np.nextafter(a, 2, dtype=np.float32), a + 0.0, a.astype(np.float64), a[None]):
        assert not _same(a, other)

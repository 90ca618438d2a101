"""What is checked of a sparse model before it is written, and what `verify` knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.errors import VerificationError
from onnxprune.model.metadata import sparse_weights
from onnxprune.model.session import run, session
from onnxprune.sparsity.check import check, check_outputs
from onnxprune.workflow.sparsifying import Sparsified
from onnxprune.workflow.verifying import require_equal
from tests.sparsity.support import DIGITS, TRAIN, arrays


class TestChecks:
    def test_outputs_are_those_of_the_dense_model_with_these_weights(
        self, pairs: Sparsified, images: dict[str, np.ndarray]
    ) -> None:
        dense, stored = onnx.load(DIGITS), arrays(pairs.model.proto)
        for tensor in dense.graph.initializer:
            if tensor.name in stored:
                tensor.CopyFrom(numpy_helper.from_array(stored[tensor.name], tensor.name))
        outputs = [run(session(model), images)["logits"] for model in (dense, pairs.model.proto, onnx.load(DIGITS))]
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
        assert np.abs(outputs[2] - outputs[1]).max() > 0.01  # the control

    def test_a_right_result_passes(self, made: Any) -> None:
        dense, found, feeds = made
        check(dense, found.proto, found.solved, found.least)
        check_outputs(dense, found.proto, found.solved, feeds)

    @staticmethod
    def _kept_weight(model: ModelProto, weight: str) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == weight)
        array = np.array(numpy_helper.to_array(tensor))
        array[tuple(np.argwhere(array)[0])] *= 2
        tensor.CopyFrom(numpy_helper.from_array(array, weight))

    @staticmethod
    def _zero(model: ModelProto, weight: str) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == weight)
        array = np.array(numpy_helper.to_array(tensor))
        array[array == 0] = 0.01
        tensor.CopyFrom(numpy_helper.from_array(array, weight))

    @staticmethod
    def _other(model: ModelProto, weight: str) -> None:
        noted = sparse_weights(model)
        tensor = next(t for t in model.graph.initializer if t.name not in noted and len(t.dims) == 1)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))

    @staticmethod
    def _node(model: ModelProto, weight: str) -> None:
        next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Sigmoid"

    @staticmethod
    def _gone(model: ModelProto, weight: str) -> None:
        del model.graph.initializer[0]

    @pytest.mark.parametrize("spoil", ["_kept_weight", "_zero", "_other", "_node", "_gone"])
    def test_whatever_else_changes_is_noticed(self, made: Any, spoil: str) -> None:
        dense, found, feeds = made
        wrong = ModelProto()
        wrong.CopyFrom(found.proto)
        change: Callable[[ModelProto, str], None] = getattr(self, spoil)
        change(wrong, found.layers[3].weight)
        with pytest.raises(VerificationError) as error:
            check(dense, wrong, found.solved, found.least)
        assert error.value.code == "OP511"
        if spoil != "_gone":
            with pytest.raises(VerificationError) as error:
                check_outputs(dense, wrong, found.solved, feeds)
            assert error.value.code == "OP501"

    def test_a_pattern_that_does_not_hold_is_noticed_whatever_was_solved(self, made: Any) -> None:
        dense, found, _ = made
        wrong = ModelProto()
        wrong.CopyFrom(found.proto)
        self._zero(wrong, found.layers[3].weight)
        solved = {**found.solved, found.layers[3].weight: arrays(wrong)[found.layers[3].weight]}
        with pytest.raises(VerificationError, match="4 of 4 weights in a row differ from zero, at output 0"):
            check(dense, wrong, solved, {})
        with pytest.raises(VerificationError, match="weights are zero"):  # too few
            check(dense, found.proto, found.solved, {found.layers[3].weight: found.layers[3].size})


class TestVerify:
    def test_a_sparse_model_is_known(self, pairs: Sparsified) -> None:
        found = op.verify(DIGITS, pairs.model.proto)
        require_equal(found)
        assert found.proved and found.weights is not None and not found.broken
        assert set(found.weights.changed.values()) == {("sparsify",)}

    def test_zeros_that_are_gone_are_told(self, pairs: Sparsified) -> None:
        wrong = ModelProto()
        wrong.CopyFrom(pairs.model.proto)
        TestChecks._zero(wrong, pairs.layers[0].weight)
        found = op.verify(DIGITS, wrong)
        assert list(found.broken) == [pairs.layers[0].weight]
        with pytest.raises(VerificationError) as error:
            require_equal(found)
        assert error.value.code == "OP505"  # it isn't what was left, either
        with pytest.raises(VerificationError) as error:
            require_equal(replace(found, weights=None))
        assert error.value.code == "OP511"

    def test_a_pruned_model_keeps_its_plan(self) -> None:
        small = op.prune_model(DIGITS, ratio=0.25, data=TRAIN, limit=32, allocation="uniform", criterion="l2")
        sparse = op.sparsify(small.model.proto, pattern="1:2", data=TRAIN, limit=32, threads=1)
        found = op.verify(DIGITS, sparse.model.proto)
        require_equal(found)
        assert found.proved and found.weights is not None
        assert ("repair", "sparsify") in set(found.weights.changed.values())
        assert sparse.evaluation is not None and sparse.evaluation["agreement"].model.value > 0.8

    def test_repair_keeps_the_zeros(self) -> None:
        sparse = op.sparsify(DIGITS, sparsity=0.7)
        how: dict[str, Any] = {"allocation": "uniform", "criterion": "l2"}
        small = op.prune_model(sparse.model.proto, ratio=0.25, data=TRAIN, limit=32, **how)
        again = op.prune(sparse.model.proto, small.plan)
        repaired, sliced = arrays(small.model.proto), arrays(again.proto)
        noted = sparse_weights(small.model.proto)
        changed = 0
        for name in noted:
            zero = sliced[name] == 0
            assert zero.any() and not repaired[name][zero].any()
            changed += not np.array_equal(repaired[name], sliced[name])
        assert changed > 5

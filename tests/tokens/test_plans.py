"""Plans in which tokens merge: chosen by measurement, written, applied, repaired and verified."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

import onnxprune as op
from onnxprune.cost.cost import model_cost
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.shapes import concretize
from onnxprune.workflow.analysis import moved
from tests.tokens.support import Form, blockwise, images, transformer
from tests.toolbox import Net, largest_difference, run_once

FORM = Form(grid=(4, 6), symbolic=True)
MOST = op.Target("macs", 0.6)


class TestPlans:
    def test_written_applied_repaired_and_verified(self, tmp_path: Path) -> None:
        model, path = transformer(FORM), tmp_path / "plan.json"
        at = moved(op.analyze(model), Moves(tokens={"sum0_out0": (2, 2)}, ranks={}))
        plan = op.plan(at, ratio=0.3, axes=("channels",), round_to=1)
        assert plan.removed
        path.write_text(plan.to_json())
        again = PrunePlan.from_json(path.read_bytes())
        assert again.to_json() == plan.to_json() and again.digest == plan.digest and again.tokens == at.moves.tokens
        assert json.loads(path.read_text())["format"] == 5
        small, twice = op.prune(model, plan), op.prune(model, again)
        assert small.proto.SerializeToString(deterministic=True) == twice.proto.SerializeToString(deterministic=True)
        assert [link.what for link in small.links] == ["merging of tokens"] and small.links[0].error < 1e-5
        assert model_cost(small.proto, concretize(small.proto)).macs == plan.after["macs"]
        assert op.verify(model, small.proto).proved
        repairs = op.repair(small, images(FORM, 4))
        assert sum(r.after for r in repairs) < sum(r.before for r in repairs)
        found = op.verify(model, small.proto)
        assert found.proved and found.weights is not None and found.weights.passed

    def test_repaired_without_channels_that_left(self) -> None:
        """What is behind the tokens that merged is fitted to the means of the original's tensors."""
        form = Form(grid=(6, 6), extra=0, end="mean")
        model, batches = transformer(form), images(form, 4)
        at = moved(op.analyze(model), Moves(tokens={"sum0_out0": (3, 3)}))
        small = op.prune(at, op.plan(at, ratio=0.0, axes=("channels",)))

        def error() -> float:
            pairs = [(run_once(model, b), run_once(small.proto, b)) for b in batches()]
            return sum(largest_difference(*pair) for pair in pairs)

        before = error()
        op.repair(small, batches)
        assert error() < 0.9 * before

    def test_tokens_never_leave_as_channels(self) -> None:
        """Behind the last attention, only the class token is needed; the others stay all the same."""
        at = moved(_traced(), Moves(tokens={"sum2_out0": (2, 2)}))
        assert not any("mean" in name for group in at.graph.groups for name, _ in group.slots)

    def test_older_plans_are_read(self) -> None:
        document = json.loads(op.plan(_traced(), ratio=0.3, round_to=1).to_json())
        assert PrunePlan.from_json(json.dumps({**document, "format": 4})).tokens == {}
        for bad in ({"a": [0, 2]}, {"a": [2]}, {"a": 2}, {"a": [2, 1.5]}, [1]):
            with pytest.raises(PlanError):
                PrunePlan.from_json(json.dumps({**document, "tokens": bad}))
        del document["tokens"]
        with pytest.raises(PlanError):
            PrunePlan.from_json(json.dumps(document))


class TestChoice:
    def test_tokens_where_they_lose_less(self) -> None:
        """In these images and positions, the patches of a block are the same."""
        form, most = Form(grid=(4, 6), blocks=1), op.Target("macs", 0.88)
        plan = op.plan(_coarse(form), target=most, data=images(form, 4, blocks=2), axes=("channels", "tokens"))
        tried = plan.settings["tried"]
        assert not tried[0]["tokens"] and [*plan.tokens.values()] == [(2, 2)]
        assert min(t["error"] for t in tried) < tried[0]["error"] / 10
        assert plan.after["macs"] <= 0.88 * plan.before["macs"]

    @pytest.mark.parametrize("data", [None, images(FORM, 4)])
    def test_tokens_alone(self, data: Any) -> None:
        plan = op.plan(_traced(), target=MOST, data=data, axes=("tokens",))
        assert plan.tokens and not plan.removed and plan.after["macs"] <= 0.88 * plan.before["macs"]

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP301", {"target": op.Target("macs", 0.01), "axes": ("tokens",)}),
            ("OP302", {"ratio": 0.5, "axes": ("channels", "tokens")}),
            ("OP302", {"target": op.Target("params", 0.5), "axes": ("tokens",)}),
            ("OP302", {"target": op.Target("params", 0.5), "axes": ("channels", "tokens"), "data": images(FORM)}),
            ("OP302", {"target": op.Target.parse("latency=8ms"), "axes": ("channels", "tokens"), "data": images(FORM)}),
            ("OP302", {"target": MOST, "axes": ("channels", "tokens"), "data": images(FORM), "allocation": "uniform"}),
            ("OP312", {"target": MOST, "axes": ("channels", "tokens")}),
            ("OP312", {"target": MOST, "axes": ("channels", "tokens"), "data": images(FORM, 1)}),
        ],
    )
    def test_why_nothing_is_chosen(self, code: str, options: Any) -> None:
        with pytest.raises(OnnxPruneError, match=code):
            op.plan(_traced(), **options)

    def test_networks_without_such_tokens(self) -> None:
        net = Net()
        x = net.conv(net.input((2, 3, 8, 8), "image"), 4, 3)
        net.output(net.op("Add", x, net.conv(x, 4, 3)))
        with pytest.raises(PlanError, match="no residual block has tokens"):
            op.plan(net.model(), target=MOST, axes=("tokens",))
        relative = transformer(Form(grid=(6, 6), bias=True, blocks=4))
        with pytest.raises(PlanError, match=r'saves too little: Add "add.*": something differs from token to token'):
            op.plan(relative, target=MOST, axes=("tokens",))


@cache
def _traced() -> op.TracedModel:
    return op.analyze(transformer(FORM))


def _coarse(form: Form) -> Any:
    """Return a transformer in which positions are the same within blocks of 2x2 patches."""
    model, matrix = transformer(form), blockwise(form, (2, 2))
    for tensor in model.graph.initializer:
        if tuple(tensor.dims) == (1, form.tokens, 8):
            same = matrix @ numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(same.astype(np.float32), tensor.name))
    return model

"""Plans with ranks: chosen by measurement, written, applied and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune as op
from onnxprune.cost.cost import model_cost
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.rank import factors
from onnxprune.recover.pairs import split
from onnxprune.shapes import concretize
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import moved
from tests.rank.support import deep, images

HALF = op.Target("macs", 0.5)


class TestPlans:
    def test_ranks_where_they_lose_less(self) -> None:
        model = deep(rank=5)
        plan = op.plan(model, target=HALF, data=images(), axes=("channels", "rank"))
        tried = plan.settings["tried"]
        assert tried[0]["ranks"] == {} and plan.ranks.keys() & {"two", "three"}
        assert min(t["error"] for t in tried) < tried[0]["error"] / 2
        assert plan.after["macs"] <= 0.5 * plan.before["macs"]

    def test_channels_where_nothing_else_is_allowed(self) -> None:
        for axes in ((), ("channels",)):
            assert op.plan(deep(rank=5), target=HALF, data=images(), axes=axes).ranks == {}

    @pytest.mark.parametrize("data", [None, images()])
    def test_ranks_alone(self, data: Any) -> None:
        plan = op.plan(deep(rank=5), target=HALF, data=data, axes=("rank",))
        assert plan.ranks and not plan.removed and plan.after["macs"] <= 0.5 * plan.before["macs"]

    def test_written_applied_and_verified(self, tmp_path: Path) -> None:
        model, path = deep(rank=5), tmp_path / "plan.json"
        at = moved(op.analyze(model), Moves(ranks={"two": 6, "three": 5}))
        plan = op.plan(at, ratio=0.3, axes=("channels",), round_to=2)
        assert plan.removed
        path.write_text(plan.to_json())
        again = PrunePlan.from_json(path.read_bytes())
        assert (
            again.to_json() == plan.to_json()
            and again.digest == plan.digest
            and again.ranks
            and json.loads(path.read_text())["format"] == 5
        )
        small, twice = op.prune(model, plan), op.prune(model, again)
        assert small.proto.SerializeToString(deterministic=True) == twice.proto.SerializeToString(deterministic=True)
        assert [link.what for link in small.links] == ["lower ranks"] and small.links[0].error < 1e-5
        assert model_cost(small.proto, concretize(small.proto)).macs == plan.after["macs"]
        assert op.verify(model, small.proto).proved
        op.repair(small, images())
        found = op.verify(model, small.proto)
        assert found.proved and found.weights is not None and found.weights.passed
        name = next(t.name for t in small.proto.graph.initializer if t.name.endswith("_second"))
        tensor = next(t for t in small.proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(tensor), name))
        assert op.verify(model, small.proto).weights.altered == (name,)  # type: ignore[union-attr]

    def test_verified_where_decompositions_have_other_signs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = deep(rank=5)
        at = moved(op.analyze(model), Moves(ranks={"two": 6}))
        small = op.prune(model, op.plan(at, ratio=0.3, axes=("channels",)))

        def elsewhere(matrix: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            left, right = split(matrix, rank)
            return -left, -right

        monkeypatch.setattr(factors, "split", elsewhere)
        found = op.verify(model, small.proto)
        assert found.proved and found.weights is not None and found.weights.passed
        assert set(found.weights.changed.values()) == {("rank",)}
        again = op.prune(model, small.plan)
        assert small.proto.SerializeToString() != again.proto.SerializeToString(), "the signs are others"

    def test_older_plans_are_read(self) -> None:
        document = json.loads(op.plan(deep(), ratio=0.5).to_json())
        del document["ranks"]
        assert PrunePlan.from_json(json.dumps({**document, "format": 3})).ranks == {}
        with pytest.raises(PlanError):
            PrunePlan.from_json(json.dumps(document))
        for bad in ({"one": 0}, {"one": 1.5}, {"one": True}, [1]):
            with pytest.raises(PlanError):
                PrunePlan.from_json(json.dumps({**document, "ranks": bad}))

    def test_layers_become_one_again_where_two_cost_as_much(self) -> None:
        """With few inputs and outputs left, the channels between would be the most expensive part."""
        analysis = op.analyze(deep())
        at = moved(analysis, Moves(ranks={"two": 12, "three": 12}))
        narrow = np.zeros(at.graph.unit_count, dtype=bool)
        for group in at.graph.groups:
            if "one" in group.producers or "two" in group.producers:
                narrow[group.units[:12]] = True
        kept = PrunedGraph(at.graph, narrow)
        assert at.cheaper(kept).ranks == {}
        assert at.cheaper(PrunedGraph(at.graph)).ranks == {"two": 12, "three": 12}

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP302", {"ratio": 0.5}),
            ("OP302", {"target": op.Target("memory", 0.5)}),
            ("OP312", {"target": HALF, "axes": ("channels", "rank")}),
            ("OP312", {"target": HALF, "data": images(1)}),
            ("OP301", {"target": op.Target("macs", 0.01)}),
            ("OP302", {"target": HALF, "data": images(), "axes": ("channels", "rank"), "allocation": "uniform"}),
            ("OP302", {"target": op.Target.parse("latency=8ms"), "data": images()}),
            ("OP302", {"target": op.Target.parse("latency=8ms"), "data": images(), "axes": ("channels", "rank")}),
        ],
    )
    def test_what_cannot_be_chosen_is_refused(self, code: str, options: dict[str, Any]) -> None:
        with pytest.raises(OnnxPruneError) as caught:
            op.plan(deep(), **{"axes": ("rank",), **options})
        assert caught.value.code == code

    def test_with_a_resolution(self) -> None:
        model = deep(rank=5)
        at = moved(op.analyze(model), Moves({"image": (9, 9)}, {"two": 5}))
        small = op.prune(at, op.plan(at, ratio=0.3, axes=("channels",)))
        assert [link.what for link in small.links] == ["resizing", "lower ranks"]
        assert small.plan.moves == Moves({"image": (9, 9)}, {"two": 5})
        assert op.verify(model, small.proto).proved

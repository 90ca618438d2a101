"""Plans with bases: chosen on data, written, applied, verified, and combined with other axes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxprune as op
from onnxprune.basis.reflections import from_text
from onnxprune.errors import PlanError
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.planning.signature import signed_plan
from onnxprune.settings import PlanSettings
from onnxprune.trace.streams import find_streams
from onnxprune.workflow.analysis import moved
from tests.cli.support import document, invoke
from tests.toolbox import Net

Batches = Callable[[], Iterator[dict[str, NDArray[Any]]]]

WIDTH, RANK, SIZE = 12, 4, 32
AXES = ("channels", "basis")


def network(seed: int = 0) -> ModelProto:
    """Return a network whose stream of 12 channels only ever holds combinations of 4, all of its channels alike."""
    net = Net(17, seed)
    directions = net.rng.standard_normal((WIDTH, RANK))

    def into(x: str, name: str) -> str:
        mix = directions @ net.rng.standard_normal((RANK, net.shape(x)[1])) / np.sqrt(RANK * net.shape(x)[1])
        weight = net.const(mix[:, :, None, None].astype(np.float32), f"{name}_w")
        return net.op("Conv", x, weight, net.const(np.zeros(WIDTH, np.float32), f"{name}_b"), name=name)

    x = net.op("Relu", net.conv(net.input((4, 3, SIZE, SIZE), "image"), 8, 3, strides=[2, 2], name="stem"))
    x = into(x, "first")
    for name in ("second", "third"):
        hidden = net.op("Relu", net.conv(x, 16, name=f"{name}_expand"))
        x = net.op("Add", x, into(net.op("Relu", net.conv(hidden, 16, 3, group=16, name=f"{name}_deep")), name))
    x = net.op("Relu", net.conv(x, 20, name="last"))
    head = net.rng.standard_normal((20, 6))  # of features that are all positive
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.op("MatMul", x, net.const((head - head.mean(axis=0)).astype(np.float32)), name="head"))
    return net.model()


def images(count: int = 8) -> Batches:
    """Return batches of 4 images each."""
    rng = np.random.default_rng(1)
    found = rng.standard_normal((count, 4, 3, SIZE, SIZE)) + 2 * rng.standard_normal((count, 4, 3, 1, 1))
    return lambda: ({"image": batch} for batch in found.astype(np.float32))


def run(model: ModelProto, image: NDArray[Any]) -> NDArray[Any]:
    """Run a model in onnx's reference implementation."""
    return np.asarray(ReferenceEvaluator(model).run(None, {"image": image})[0])


def projected(model: ModelProto, plan: PrunePlan) -> ModelProto:
    """Return the original whose readers see only the directions of its stream that a plan keeps."""
    graph = op.analyze(model).graph
    result = ModelProto()
    result.CopyFrom(graph.proto)
    ((tensor, axes),) = plan.bases.items()
    ((axis, text),) = axes.items()
    basis = np.delete(from_text(text), plan.removed[tensor][axis], axis=1)
    (stream,) = (stream for stream in find_streams(graph)[0].values() if stream.key == (tensor, axis))
    for weight in result.graph.initializer:
        for along in (along for name, along in stream.slots if name == weight.name and (name, along) in graph.summed):
            whole = np.moveaxis(numpy_helper.to_array(weight), along, -1)[..., stream.slots[weight.name, along][0, 0]]
            new = np.moveaxis(whole @ (basis @ basis.T), -1, along).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(new, weight.name))
    return result


def kept_of(plan: PrunePlan, tensor: str, axis: int) -> int:
    return WIDTH - len(plan.removed.get(tensor, {}).get(axis, ()))


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return network()


class TestPlan:
    @pytest.mark.slow
    def test_what_is_redundant_in_another_basis_leaves_for_nothing(self, model: ModelProto) -> None:
        """Eight of twelve channels, without repair: channels in their own basis lose much by that."""
        image, errors = next(images()())["image"], {}
        for axes in (AXES, ("channels",)):
            plan = op.plan(model, axes=axes, ratio_for=[("first", 2 / 3)], data=images())
            assert kept_of(plan, "first_w", 0) == RANK
            assert bool(plan.bases) == (axes == AXES)
            found = run(op.prune(model, plan).proto, image)
            errors[axes] = np.abs(found - run(model, image)).max() / np.abs(run(model, image)).max()
        assert errors[AXES] < 0.02
        assert errors["channels",] > 0.2

    @pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
    def test_the_result_is_the_original_with_projected_readers(self, seed: int) -> None:
        model, image = network(seed), next(images()())["image"]
        plan = op.plan(model, axes=AXES, ratio_for=[("first", 0.75)], data=images())
        small = op.prune(model, plan)
        expected = run(projected(model, plan), image)
        np.testing.assert_allclose(run(small.proto, image), expected, atol=1e-4 * np.abs(expected).max())
        assert np.abs(expected - run(model, image)).max() > 1e-2 * np.abs(expected).max()
        assert [link.what for link in small.links] == ["change of basis"]

    @pytest.mark.slow
    def test_groups_that_lose_nothing_keep_their_weights(self, model: ModelProto) -> None:
        plan = op.plan(model, axes=AXES, ratio_for=[("stem", 0.5)], data=images())
        assert plan.removed
        assert not plan.bases
        whole = {t.name: t for t in model.graph.initializer}
        for tensor in op.prune(model, plan).proto.graph.initializer:
            if tensor.name not in plan.removed:
                assert np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(whole[tensor.name]))

    @pytest.mark.slow
    def test_another_basis_and_another_resolution_are_links_of_one_chain(self, model: ModelProto) -> None:
        plan = op.plan(model, axes=(*AXES, "resolution"), resolution=24, target=op.Target("macs", 0.25), data=images())
        assert plan.bases
        small = op.prune(model, plan)
        assert [link.what for link in small.links] == ["change of basis", "resizing"]
        assert small.verification is not None
        assert small.verification.passed
        again = PrunePlan.from_json(plan.to_json())
        assert again.digest == plan.digest
        assert op.prune(model, again).proto.SerializeToString() == small.proto.SerializeToString()
        assert op.verify(model, small.proto).proved

    @pytest.mark.slow
    def test_all_axes_are_tried_together(self, model: ModelProto) -> None:
        plan = op.plan(model, axes=(*AXES, "resolution"), target=op.Target("macs", 0.4), data=images())
        assert plan.after["macs"] <= 0.4 * plan.before["macs"]
        assert len(plan.settings["tried"]) > 1
        assert op.prune(model, plan).verification is not None

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["second_expand", "second", "last"])
    def test_a_layer_in_two_reads_or_makes_the_stream(self, model: ModelProto, name: str) -> None:
        """Its weight is decomposed in the other basis."""
        bases = op.plan(model, axes=AXES, ratio=0.5, data=images()).bases
        at = moved(op.analyze(model), Moves(ranks={name: 2}, bases=bases))
        plan = op.plan(at, axes=("channels",), ratio_for=[("first", 0.5)], data=images())
        assert (plan.bases, plan.ranks) == (bases, {name: 2})
        small = op.prune(model, plan)
        assert [link.what for link in small.links] == ["change of basis", "lower ranks"]
        op.repair(small, images())
        assert op.verify(model, small.proto).proved

    @pytest.mark.slow
    def test_without_blocks_a_stream_still_changes_its_basis(self, model: ModelProto) -> None:
        plan = op.plan(
            model, axes=AXES, remove_blocks=1, ratio=0.5, allocation="uniform", criterion="obs", data=images()
        )
        assert plan.blocks
        assert plan.bases
        assert op.prune(model, plan).verification is not None

    @pytest.mark.slow
    def test_within_a_drop(self, model: ModelProto, tmp_path: Path) -> None:
        onnx.save(model, tmp_path / "model.onnx")
        samples = np.concatenate([batch["image"] for batch in images(60)()])
        np.savez(tmp_path / "data.npz", image=samples)
        found = op.prune_model(tmp_path / "model.onnx", axes=AXES, max_drop=0.1, data=tmp_path / "data.npz")
        assert found.plan.bases
        assert found.pruned.links


class TestFile:
    @pytest.mark.slow
    def test_a_repaired_file_is_verified_by_its_metadata(self, model: ModelProto, tmp_path: Path) -> None:
        plan = op.plan(model, axes=AXES, ratio=0.5, data=images())
        small = op.prune(model, plan)
        op.repair(small, images())
        signed = signed_plan(small.proto)
        assert signed is not None
        assert signed.bases == plan.bases
        found = op.verify(model, small.proto)
        assert found.proved
        assert found.weights is not None
        assert found.weights.passed

    @pytest.mark.slow
    def test_a_rotated_weight_may_be_rounded_otherwise_and_no_more(self, model: ModelProto) -> None:
        """Another machine adds up the products of weights in another order."""
        plan = op.plan(model, axes=AXES, ratio_for=[("first", 0.5)], data=images())
        small = op.prune(model, plan)
        op.repair(small, images())
        for step, passed in ((1e-7, True), (1e-3, False)):
            wrong = ModelProto()
            wrong.CopyFrom(small.proto)
            weight = next(t for t in wrong.graph.initializer if t.name == "first_w")
            new = numpy_helper.to_array(weight) + np.float32(step)
            weight.CopyFrom(numpy_helper.from_array(new, weight.name))
            found = op.verify(model, wrong).weights
            assert found is not None
            assert found.passed == passed

    def test_a_plan_with_a_basis_that_isnt_exact_is_refused(self, model: ModelProto) -> None:
        plan = op.plan(model, axes=AXES, ratio=0.5, data=images())
        ((text,),) = (axes.values() for axes in plan.bases.values())
        for bases, words in (
            ({"stem_w": {0: text}}, "isn't exact: Relu"),
            ({"first_w": {0: text[:-8]}}, "no basis|a basis of"),
            ({"nothing": {0: text}}, "doesn't have"),
        ):
            with pytest.raises(PlanError, match=words):
                op.prune(model, replace(plan, bases=bases))
        damaged = json.loads(plan.to_json()) | {"bases": {"first_w": 3}}
        with pytest.raises(PlanError, match="not a pruning plan"):
            PrunePlan.from_json(json.dumps(damaged))

    def test_settings_that_contradict_each_other(self, model: ModelProto) -> None:
        with pytest.raises(PlanError, match="saves nothing by itself"):
            PlanSettings(axes=("basis",), ratio=0.5)
        with pytest.raises(PlanError, match="own bases"):
            op.plan(model, axes=AXES, ratio=0.5, sensitivity=[])
        with pytest.raises(PlanError, match="without inputs"):
            op.plan(model, axes=AXES, ratio=0.5)
        with pytest.raises(PlanError, match="criterion obs, not by l2"):
            op.plan(model, axes=AXES, ratio=0.5, criterion="l2", data=images())

    @pytest.mark.slow
    def test_from_the_command_line(self, model: ModelProto, tmp_path: Path) -> None:
        source, data, small = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "small.onnx"
        onnx.save(model, source)
        np.savez(data, image=np.concatenate([batch["image"] for batch in images()()]))
        options = ["--target", "macs=50%", "--axes", "channels,basis", "--data", data]
        made = invoke("plan", source, "-o", tmp_path / "plan.json", *options)
        assert "in another basis" in made.output
        again = invoke("prune", source, "-o", small, "--plan", tmp_path / "plan.json", "--data", data)
        assert "change of basis proved" in again.output
        assert invoke("verify", source, small).exit_code == 0
        assert document("plan", source, "-o", tmp_path / "p2.json", *options)["bases"] == {"first_w": [0]}
        words = invoke("explain", source, "first").output
        assert "basis can be changed" in words
        words = invoke("explain", source, "stem").output
        assert "basis stays: Relu" in words

"""Networks whose tokens merge are the original with means in place of tokens, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.errors import PlanError, VerificationError
from onnxprune.normalize import normalize
from onnxprune.shapes import Shapes, concretize
from onnxprune.tokens.merge import Merged, merge
from onnxprune.tokens.proof import prove_merged
from onnxprune.tokens.streams import find_streams
from tests.tokens.support import Form, blockwise, images, random_form, transformer
from tests.toolbox import Net, largest_difference, run_once

Grid = tuple[int, int]


def ready(form: Form, seed: int = 0) -> tuple[ModelProto, Shapes, list[str]]:
    """Return a normalized transformer with its shapes and the tensors behind its sums."""
    proto = normalize(transformer(form, seed))
    shapes = concretize(proto)
    return proto, shapes, [stream.tensor for stream in find_streams(proto, shapes)]


def merged(form: Form, blocks: dict[int, Grid], seed: int = 0) -> tuple[ModelProto, Merged]:
    proto, shapes, streams = ready(form, seed)
    return proto, merge(proto, shapes, {streams[place]: block for place, block in blocks.items()})


def changed(model: ModelProto, ending: str, value: Any) -> ModelProto:
    """Return a model in which the constants whose names have an ending are others."""
    copy = ModelProto()
    copy.CopyFrom(model)
    found = [tensor for tensor in copy.graph.initializer if tensor.name.endswith(ending)]
    assert found
    for tensor in found:
        array = value(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return copy


def replaced(found: Merged, proto: ModelProto) -> Merged:
    return replace(found, proto=proto)


class TestEqual:
    @pytest.mark.parametrize(
        "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 80))]
    )
    def test_means_in_place_of_tokens(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        form = random_form(rng)
        place = int(rng.integers(0, 2 * form.blocks - 1))
        block = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        proto, found = merged(form, {place: block}, seed)
        inputs = next(images(form)())
        expected = run_once(transformer(form, seed, {place: blockwise(form, block)}), inputs)
        assert largest_difference(run_once(found.proto, inputs), expected) < 1e-4
        assert prove_merged(proto, found, inputs) < 1e-4
        assert bool(found.whole) == (form.end in ("some", "tokens") or (form.bias and place < 2))

    def test_twice(self) -> None:
        form = Form(grid=(5, 4), blocks=3)
        _, found = merged(form, {1: (1, 2), 3: (3, 4)})
        inputs = next(images(form)())
        means = {1: blockwise(form, (1, 2)), 3: blockwise(form, (3, 4))}
        assert (
            largest_difference(run_once(found.proto, inputs), run_once(transformer(form, means=means), inputs)) < 1e-4
        )
        assert "21 → 11" in str(found) and "21 → 3" in str(found)

    def test_other_batch_sizes(self) -> None:
        form = Form(symbolic=True)
        proto, found = merged(form, {0: (2, 2)})
        for count in (1, 5):
            inputs = {"image": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}
            assert prove_merged(proto, found, inputs) < 1e-4

    def test_nothing_where_sizes_are_the_same(self) -> None:
        """Attention doesn't change if the same is added to all its logits."""
        names = [t.name for t in merged(Form(extra=0, end="mean"), {0: (2, 2)})[1].proto.graph.initializer]
        assert not any(name.endswith("_sizes") for name in names)


class TestUnequal:
    @pytest.mark.parametrize("control", ["sizes", "groups", "block"])
    def test_wrong_networks(self, control: str) -> None:
        form = Form()
        proto, found = merged(form, {0: (2, 2)})
        inputs = next(images(form)())
        assert prove_merged(proto, found, inputs) < 1e-5
        if control == "sizes":  # a mean counts as much as the class token
            wrong = replaced(found, changed(found.proto, "_sizes", np.zeros_like))
        elif control == "groups":  # two patches change places
            wrong = replaced(found, changed(found.proto, "_mean", lambda m: m[:, [0, 1, 4, 3, 2, *range(5, 17)]]))
        else:
            wrong = replaced(merged(form, {0: (1, 4)})[1], found.proto)
        with pytest.raises(VerificationError, match="OP501"):
            prove_merged(proto, wrong, inputs)

    def test_the_teacher_has_the_means(self) -> None:
        form = Form()
        proto, found = merged(form, {0: (2, 2)})
        tensors = [name for name in found.groups if len(found.groups[name]) == form.tokens]
        inputs = next(images(form)())
        known, means = (_tensors(model, tensors, inputs) for model in (proto, found.teacher))
        matrix = blockwise(form, (2, 2))
        assert len(tensors) > 10
        for name in tensors:
            first = [np.flatnonzero(found.groups[name] == group)[0] for group in range(5)]
            assert np.abs(means[name] - np.take(matrix @ known[name], first, -2)).max() < 1e-4, name


def _tensors(model: ModelProto, names: list[str], inputs: dict[str, Any]) -> dict[str, Any]:
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.add().name = name
    return run_once(copy, inputs)


class TestRefused:
    def test_other_tensors(self) -> None:
        proto, shapes, streams = ready(Form())
        for name in ("image", "nothing", proto.graph.output[0].name):
            with pytest.raises(PlanError, match="OP307"):
                merge(proto, shapes, {name: (2, 2)})
        with pytest.raises(PlanError, match="OP320"):  # blocks of three aren't made of blocks of two
            merge(proto, shapes, {streams[0]: (2, 2), streams[1]: (3, 3)})

    def test_what_depends_on_the_number_of_tokens(self) -> None:
        net = Net()
        x = net.op("Transpose", net.reshape(net.conv(net.input((1, 3, 8, 8)), 4, 1), (0, 4, -1)), perm=[0, 2, 1])
        x = net.op("Add", x, net.linear(x, 4))
        count = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(np.array(1))), to=1)
        net.output(net.op("Div", net.reduce("ReduceSum", x, [1]), count))
        proto = normalize(net.model())
        shapes = concretize(proto)
        with pytest.raises(PlanError, match="depends on the number of tokens"):
            merge(proto, shapes, {find_streams(proto, shapes)[0].tensor: (2, 2)})

    def test_what_depends_on_it_where_all_are_needed(self) -> None:
        """The last positions are taken by their number, which would be another one."""
        net = Net()
        x = net.op("Transpose", net.reshape(net.conv(net.input((1, 3, 8, 8)), 4, 1), (0, 4, -1)), perm=[0, 2, 1])
        x = net.op("Add", x, net.linear(x, 4))
        count = net.op("Gather", net.op("Shape", x), net.const(np.array([1])))
        net.output(
            net.ops("TopK", x, net.op("Div", count, net.const(np.array(2))), count=2, axis=1, shapes=[[1, 32, 4]] * 2)[
                0
            ]
        )
        proto = normalize(net.model())
        shapes = concretize(proto)
        with pytest.raises(PlanError, match="depends on the number of tokens"):
            merge(proto, shapes, {find_streams(proto, shapes)[0].tensor: (2, 2)})

    def test_operators_that_onnx_does_not_know(self) -> None:
        net = Net(domains={"com.microsoft": 1})
        x = net.op("Transpose", net.reshape(net.conv(net.input((1, 3, 8, 8)), 4, 1), (0, 4, -1)), perm=[0, 2, 1])
        x = net.op("Add", x, net.op("com.microsoft:FastGelu", net.linear(x, 4)))
        net.output(net.reduce("ReduceMax", net.op("com.microsoft:FastGelu", net.linear(x, 4)), [1]))
        proto = normalize(net.model())
        shapes = concretize(proto)
        found = merge(proto, shapes, {find_streams(proto, shapes)[0].tensor: (2, 2)})
        inputs = {"input0": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
        assert not found.whole and prove_merged(proto, found, inputs) < 1e-5

    def test_no_tokens(self) -> None:
        net = Net()
        x = net.conv(net.input((1, 3, 8, 8)), 4, 3)
        net.output(net.op("Add", x, net.conv(x, 4, 3)))
        proto = normalize(net.model())
        assert find_streams(proto, concretize(proto)) == []

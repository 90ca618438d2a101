"""States that are inputs and outputs: they shrink together, and the pruned model follows the original step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.errors import PlanError
from onnxprune.model.file import load, save
from onnxprune.planning.plan import PrunePlan
from onnxprune.report.summary import summarize
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.verify import verify
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.genai import config_after
from tests.toolbox import Net, inputs_of, run_once

Arrays = dict[str, NDArray[Any]]
SHARED = Path(__file__).parents[2] / "shared" / "models"
STEPS = 4


def renamed(net: Net, old: str, new: str) -> None:
    """Return a tensor as an output of another name."""
    net.nodes.append(helper.make_node("Identity", [old], [new], name=f"{new}_node"))
    net.types[new] = net.types[old]
    net.output(new)


def lstm() -> ModelProto:
    """A voice detector: hidden state and cell in one tensor, [2, 1, 24]."""
    net = Net(seed=1)
    x, state = net.input((1, 1, 8), "x"), net.input((2, 1, 24), "state")
    h, c = net.split(state, [1, 1], 0)
    weights = [net.weight(1, 96, 8), net.weight(1, 96, 24), net.weight(1, 192)]
    y, h, c = net.ops("LSTM", x, *weights, "", h, c, count=3, name="rnn", hidden_size=24)
    net.output(net.linear(net.squeeze(y, [1]), 5, name="head"))
    renamed(net, net.op("Concat", h, c, axis=0, name="join"), "stateN")
    return net.model()


def gru() -> ModelProto:
    """Two layers, each with a state of its own; the names say which is which."""
    net = Net(seed=2)
    x, h0, h1 = net.input((3, 1, 8), "x"), net.input((1, 1, 16), "h_a"), net.input((1, 1, 16), "h_b")
    last = []
    for name, state in (("one", h0), ("two", h1)):
        width = net.shape(x)[2]
        weights = [net.weight(1, 48, width), net.weight(1, 48, 16), net.weight(1, 96)]
        y, h = net.ops("GRU", x, *weights, "", state, count=2, name=name, hidden_size=16)
        x = net.squeeze(y, [1])
        last.append(h)
    net.output(net.linear(x, 5, name="head"))
    renamed(net, last[0], "h_a_out")
    renamed(net, last[1], "h_b_out")
    return net.model()


def cell() -> ModelProto:
    """A plain recurrent cell of matrix products: only the state couples what it writes to what it reads."""
    net = Net(seed=3)
    x, h = net.input((1, 8), "x"), net.input((1, 16), "hidden_in")
    h = net.op("Tanh", net.op("Add", net.linear(x, 16, name="own"), net.linear(h, 16, name="back")))
    net.output(net.linear(h, 5, name="head"))
    renamed(net, h, "hidden_out")
    return net.model()


def convolution() -> ModelProto:
    """A streaming convolution: the last two frames of its input are kept."""
    net = Net(seed=4)
    x, cache = net.input((1, 4, 6), "x"), net.input((1, 12, 2), "conv_cache")
    x = net.op("Relu", net.op("Conv", x, net.weight(12, 4, 1), name="first"))
    joined = net.op("Concat", cache, x, axis=2, name="join")
    y = net.op("Relu", net.op("Conv", joined, net.weight(8, 12, 3), name="second"))
    net.output(net.op("Conv", y, net.weight(3, 8, 1), name="last"))
    renamed(net, net.slice(joined, [6], [8], [2]), "conv_cache_out")
    return net.model()


def stacked() -> ModelProto:
    """Two layers whose states are slots of one tensor, with more sequences than hidden channels."""
    net = Net(seed=8)
    x, state = net.input((1, 9, 6), "x"), net.input((2, 9, 4), "hidden_in")
    for i in range(2):
        h = net.op("Gather", state, net.const(np.array([i])), axis=0)
        weights = [net.weight(1, 12, net.shape(x)[2]), net.weight(1, 12, 4), net.weight(1, 24)]
        y, h = net.ops("GRU", x, *weights, "", h, count=2, name=f"rnn{i}", hidden_size=4)
        x = net.squeeze(y, [1])
        state = net.op("ScatterND", state, net.const(np.array([[i]])), h)
    net.output(net.linear(x, 3, name="head"))
    renamed(net, state, "hidden_out")
    return net.model()


def written() -> ModelProto:
    """A streaming convolution that writes frames into its cache by an index for each element, over 4096 in all."""
    net = Net(seed=9)
    x, cache = net.input((1, 4, 8, 11), "x"), net.input((1, 16, 10, 11), "cache_in")
    x = net.op("Relu", net.op("Conv", x, net.weight(16, 4, 1, 1), name="first"))
    places = np.meshgrid([0], np.arange(16), np.arange(2, 10), np.arange(11), indexing="ij")
    cache = net.op("ScatterND", cache, net.const(np.stack(places, axis=-1)), x)
    net.output(net.op("Conv", cache, net.weight(3, 16, 3, 3), name="last"))
    renamed(net, cache, "cache_out")
    return net.model()


def attention(layers: int = 2, heads: int = 4, shared: int = 2, width: int = 6) -> ModelProto:
    """A decoder with caches of keys and values, whose heads are shared by two heads of queries each."""
    net = Net(seed=5)
    x = net.input((1, 2, 16), "x")
    caches = [
        net.input((1, shared, 3, width), f"past_key_values.{i}.{kind}")
        for i in range(layers)
        for kind in ("key", "value")
    ]
    for i in range(layers):
        q = net.op(
            "Transpose",
            net.reshape(net.linear(x, heads * width, name=f"q{i}"), [0, 0, heads, width]),
            perm=[0, 2, 1, 3],
        )
        rows = []
        for kind, cache in zip(("key", "value"), caches[2 * i : 2 * i + 2], strict=True):
            new = net.reshape(net.linear(x, shared * width, name=f"{kind}{i}"), [0, 0, shared, width])
            whole = net.op("Concat", cache, net.op("Transpose", new, perm=[0, 2, 1, 3]), axis=2)
            renamed(net, whole, f"present.{i}.{kind}")
            wide = net.op(
                "Expand", net.unsqueeze(whole, [2]), net.const(np.array([1, shared, heads // shared, 5, width]))
            )
            rows.append(net.reshape(wide, [0, heads, 5, width]))
        scores = net.op(
            "Mul", net.op("MatMul", q, net.op("Transpose", rows[0], perm=[0, 1, 3, 2])), net.const(width**-0.5)
        )
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), rows[1]), perm=[0, 2, 1, 3])
        x = net.op("Add", x, net.linear(net.reshape(mixed, [0, 0, heads * width]), 16, name=f"o{i}"))
    net.output(net.linear(x, 7, name="head"))
    return net.model()


def steps(model: ModelProto, inputs: Arrays, pairs: Mapping[str, str]) -> list[Arrays]:
    """Run a model step by step; a state that grew is cut to its latest positions."""
    feeds, found = dict(inputs), []
    for _ in range(STEPS):
        out = run_once(model, feeds)
        for entry, exit_ in pairs.items():
            n = feeds[entry].shape[2] if feeds[entry].ndim > 2 else 0
            feeds[entry] = out[exit_][:, :, -n:] if n else out[exit_]
        found.append(out)
    return found


def follows(kept: PrunedGraph, pruned: ModelProto, pairs: Mapping[str, str]) -> float:
    """Compare a pruned model with the masked original on embedded states, with loops of this test's own."""
    big = inputs_of(kept.graph, seed=7)
    places = {
        name: [np.arange(n) if (m := kept.mask(name, a)) is None else np.flatnonzero(m) for a, n in enumerate(x.shape)]
        for name, x in big.items()
    }
    small = {name: x[np.ix_(*places[name])] if name in pairs else x for name, x in big.items()}
    for name in pairs:
        embedded = np.zeros_like(big[name])
        embedded[np.ix_(*places[name])] = small[name]
        big[name] = embedded
    worst = 0.0
    for expected, actual in zip(steps(masked(kept), big, pairs), steps(pruned, small, pairs), strict=True):
        for name, value in expected.items():
            for entry, exit_ in pairs.items():
                if name == exit_:
                    cut = [
                        p if len(p) != value.shape[a] else np.arange(value.shape[a])
                        for a, p in enumerate(places[entry])
                    ]
                    cut = [np.arange(value.shape[a]) if kept.mask(entry, a) is None else p for a, p in enumerate(cut)]
                    value = value[np.ix_(*cut)]
            worst = max(worst, float(np.abs(value - actual[name]).max()))
    return worst


KV = {f"past_key_values.{i}.{kind}": f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value")}
MODELS: Mapping[str, tuple[Callable[[], ModelProto], Mapping[str, str], Mapping[str, tuple[int, ...]]]] = {
    "lstm": (lstm, {"state": "stateN"}, {"state": (2, 1, 12)}),
    "gru": (gru, {"h_a": "h_a_out", "h_b": "h_b_out"}, {"h_a": (1, 1, 8), "h_b": (1, 1, 8)}),
    "cell": (cell, {"hidden_in": "hidden_out"}, {"hidden_in": (1, 8)}),
    "convolution": (convolution, {"conv_cache": "conv_cache_out"}, {"conv_cache": (1, 6, 2)}),
    "stacked": (stacked, {"hidden_in": "hidden_out"}, {"hidden_in": (2, 9, 2)}),
    "written": (written, {"cache_in": "cache_out"}, {"cache_in": (1, 8, 10, 11)}),
    "attention": (attention, KV, {name: (1, 1, 3, 6) for name in KV}),
}


@pytest.mark.parametrize("name", MODELS)
def test_states_shrink_and_follow_the_original(name: str) -> None:
    build, pairs, sizes = MODELS[name]
    model = build()
    before = op.analyze(model).graph
    assert all(before.pinned[before.unit_of[f.ids]].all() for n in pairs for f in before.values[n].factors)
    analysis = op.analyze(model, resize_states=True)
    assert {s.input: s.output for s in analysis.graph.states} == pairs
    pruned = op.prune(analysis, op.plan(analysis, ratio=0.5))
    assert pruned.verification is not None
    assert (pruned.verification.passed, pruned.verification.steps) == (True, STEPS)
    assert pruned.verification.informative
    declared = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in pruned.proto.graph.input}
    assert {n: declared[n] for n in pairs} == sizes
    assert follows(pruned.kept, pruned.proto, pairs) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_states_in_another_order_are_caught(name: str) -> None:
    """Negative control: the pruned model returns its states with two positions exchanged."""
    build, pairs, _ = MODELS[name]
    analysis = op.analyze(build(), resize_states=True)
    pruned = op.prune(analysis, op.plan(analysis, ratio=0.5))
    wrong = ModelProto.FromString(pruned.proto.SerializeToString())
    for i, exit_ in enumerate(pairs.values()):
        axis = next(a for a, n in enumerate(pruned.kept.shape(exit_)) if n > 1)
        order = np.roll(np.arange(pruned.kept.shape(exit_)[axis]), 1)
        for node in wrong.graph.node:
            node.output[:] = [f"{exit_}::right" if o == exit_ else o for o in node.output]
            node.input[:] = [f"{exit_}::right" if o == exit_ else o for o in node.input]
        index = helper.make_tensor(f"order{i}", 7, [len(order)], order)
        wrong.graph.initializer.append(index)
        wrong.graph.node.append(helper.make_node("Gather", [f"{exit_}::right", f"order{i}"], [exit_], axis=axis))
    assert not verify(pruned.kept, wrong, inputs_of(analysis.graph)).passed


def test_a_mispaired_cell_is_refused() -> None:
    """Two cells side by side: each output is computed from the other input, which has the same shape."""
    net = Net(seed=6)
    x = net.input((1, 8), "x")
    for name in ("a", "b"):
        h = net.input((1, 16), name)
        h = net.op("Tanh", net.op("Add", net.linear(x, 16), net.linear(h, 16, name=f"back_{name}")))
        renamed(net, h, f"{name}_new")
    model = net.model()
    with pytest.raises(PlanError, match='"b_new" isn\'t computed from "a", but from "b"'):
        op.analyze(model, state=[("a", "b_new")])
    right = op.analyze(model, state=[("a", "a_new"), ("b", "b_new")])
    assert len(right.graph.states) == 2


def test_what_is_ambiguous_is_listed() -> None:
    net = Net(seed=7)
    x = net.input((1, 1, 8), "x")
    a, b = net.input((1, 1, 16), "u"), net.input((1, 1, 16), "v")
    weights = [net.weight(1, 64, 8), net.weight(1, 64, 16), net.weight(1, 128)]
    mean = net.op("Concat", a, b, axis=1)
    first, second = net.split(mean, [1, 1], 1)
    y, h, c = net.ops("LSTM", x, *weights, "", first, second, count=3, name="rnn", hidden_size=16)
    net.output(net.linear(net.squeeze(y, [1]), 3))
    renamed(net, h, "p")
    renamed(net, c, "q")
    with pytest.raises(PlanError) as caught:
        op.analyze(net.model(), resize_states=True)
    assert caught.value.code == "OP316"
    assert caught.value.where == "u = p or q, v = p or q"
    assert "`state`" in str(caught.value.hint)
    named = op.analyze(net.model(), state=[("u", "p"), ("v", "q")])
    pruned = op.prune(named, op.plan(named, ratio=0.5))
    assert pruned.kept.shape("u") == pruned.kept.shape("v") == (1, 1, 8)


def test_data_is_no_state() -> None:
    """A mask over the input has its shape and is computed from it, but isn't fed back."""
    net = Net()
    x = net.input((1, 12), "audio_in")
    y = net.op("Mul", x, net.op("Sigmoid", net.linear(net.op("Relu", net.linear(x, 16)), 12)))
    renamed(net, y, "audio_out")
    with pytest.raises(PlanError, match="no input and output are clearly the same state"):
        op.analyze(net.model(), resize_states=True)


@pytest.mark.parametrize("pair", [("x", "stateN"), ("nothing", "stateN"), ("state", "nothing")])
def test_pairs_that_cannot_be(pair: tuple[str, str]) -> None:
    with pytest.raises(PlanError) as caught:
        op.analyze(lstm(), state=[pair])
    assert caught.value.code == "OP316"


def test_heads_are_the_same_in_all_layers() -> None:
    """Without `kv_uniform`, the layers' heads are units of their own."""
    apart, alike = (op.analyze(attention(shared=4, heads=4), resize_states=True, kv_uniform=u) for u in (False, True))
    heads = [[len(g.units) for g in a.graph.groups if "key0" in g.nodes] for a in (apart, alike)]
    assert heads == [[4], [4]]
    both = [any({"key0", "key1"} <= set(g.nodes) for g in a.graph.groups) for a in (apart, alike)]
    assert both == [False, True]
    pruned = op.prune(alike, op.plan(alike, ratio=0.5))
    masks = [pruned.kept.mask(name, 1) for name in KV]
    assert all(m is not None and m.sum() == 2 and np.array_equal(m, masks[0]) for m in masks)


def test_from_the_command_line(tmp_path: Path) -> None:
    """A plan records the pairs; prune and verify reproduce it; reports and metadata have the shapes."""
    source, plan, target = tmp_path / "m.onnx", tmp_path / "p.json", tmp_path / "s.onnx"
    save(load(lstm()), source)

    def invoke(*arguments: object) -> Any:
        found = CliRunner().invoke(cli, [*map(str, arguments)])
        assert found.exit_code == 0, found.output
        return found

    invoke("plan", source, "-o", plan, "--ratio", 0.5, "--resize-states")
    assert PrunePlan.from_json(plan.read_text()).policies.state == (("state", "stateN"),)
    report = json.loads(invoke("prune", source, "-o", target, "--plan", plan, "--format", "json").stdout)
    (state,) = report["states"]
    assert (state["before"], state["after"]) == ([2, 1, 24], [2, 1, 12])
    assert len(state["kept"]["2"]) == 12
    assert report["verification"]["steps"] == STEPS
    invoke("verify", source, target, "--plan", plan)
    table = invoke("prune", source, "-o", target, "--force", "--ratio", 0.5, "--state", "state=stateN").stdout
    assert "2x1x24  2x1x12" in table
    notes = {p.key: p.value for p in load(target).proto.metadata_props}
    assert json.loads(notes["onnxprune.states"])[0]["after"] == [2, 1, 12]
    assert "24 x 8" in invoke("inspect", source, "--resize-states").stdout
    assert "OP202" not in invoke("explain", source, "rnn", "--resize-states").stdout


def test_a_state_that_stays_has_a_reason(tmp_path: Path) -> None:
    """The sum along the first state's channels mixes them; the second state may shrink."""
    net = Net(seed=10)
    x, summed, free = net.input((1, 8), "x"), net.input((1, 16), "h_a"), net.input((1, 12), "h_b")
    first = net.op("Tanh", net.op("Add", net.linear(x, 16), net.op("CumSum", summed, net.const(1), name="sums")))
    second = net.op("Tanh", net.op("Add", net.linear(first, 12), net.linear(free, 12)))
    net.output(net.linear(second, 4))
    renamed(net, first, "h_a_out")
    renamed(net, second, "h_b_out")
    source = tmp_path / "m.onnx"
    save(load(net.model()), source)
    for command in (("inspect",), ("prune", "-o", tmp_path / "s.onnx", "--ratio", 0.5)):
        found = CliRunner().invoke(cli, [*map(str, command), str(source), "--resize-states", "--format", "json"])
        states = {s["input"]: s for s in json.loads(found.stdout)["states"]}
        assert (states["h_a"]["held"]["code"], states["h_a"]["held"]["node"]) == ("OP204", 'CumSum "sums"')
        assert states["h_b"]["held"] is None
    assert (states["h_a"]["after"], states["h_b"]["after"]) == ([1, 16], [1, 6])
    table = CliRunner().invoke(cli, ["inspect", str(source), "--resize-states"]).stdout
    assert re.search(r'h_a +h_a_out +1x16 +OP204 CumSum "sums": it accumulates along this axis', table)


def test_repair_keeps_positions_of_full_states() -> None:
    """Data have states of the original's size."""
    analysis = op.analyze(lstm(), resize_states=True)
    batches = [inputs_of(analysis.graph, seed) for seed in range(8)]
    pruned = op.prune(analysis, op.plan(analysis, ratio=0.5))
    repairs = op.repair(pruned, lambda: batches)
    assert [r.node for r in repairs] == ["head"]
    assert repairs[0].after <= repairs[0].before


REAL = {
    "dtln_1": ({}, {"input_3": (1, 2, 128, 2)}),
    "dtln_2": ({}, {"input_5": (1, 2, 128, 2)}),
    "silero_vad_op18_ifless": ({"input": (1, 576)}, {"state": (2, 1, 128)}),
    "silero_vad": ({}, {"state": (2, 1, 128)}),
    "gtcrn_simple": (
        {},
        {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16), "inter_cache": (2, 1, 33, 16)},
    ),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "silero_vad" else n for n in REAL])
def test_real_models(name: str) -> None:
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} isn't there")
    shapes, states = REAL[name]
    analysis = op.analyze(path, shapes, resize_states=True)
    inputs = inputs_of(analysis.graph)
    if "sr" in inputs:
        inputs["sr"] = np.array(16_000)
    pruned = op.prune(analysis, op.plan(analysis, ratio=0.5), inputs=inputs)
    assert pruned.verification is not None
    assert pruned.verification.passed
    if name == "silero_vad":  # two networks with the same state, at the sizes that each is made for
        for size, rate in ((576, 16_000), (288, 8_000)):
            whole = inputs_of(op.analyze(path, {"input": (1, size)}).graph) | {"sr": np.array(rate)}
            assert verify(pruned.kept, pruned.proto, whole).passed
        (state,) = summarize(op.analyze(path, {"input": (1, 576)}, resize_states=True).graph).states
        assert state.held is not None and state.held.code == "OP207"  # the smaller one doesn't run on this size
    for entry, shape in states.items():
        assert analysis.graph.shapes.shapes[entry] == shape
        assert np.prod(pruned.kept.shape(entry)) == np.prod(shape) / 2


def test_a_genai_config_stays_in_step(tmp_path: Path) -> None:
    """The heads of all layers leave together, and the new config goes beside the output: never over the user's."""
    folder, other = tmp_path / "model", tmp_path / "small"
    folder.mkdir()
    other.mkdir()
    source = folder / "m.onnx"
    save(load(attention()), source)
    config = {
        "model": {
            "type": "llama",
            "decoder": {
                "filename": "m.onnx",
                "head_size": 6,
                "hidden_size": 16,
                "inputs": {
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
            },
        },
        "search": {"max_length": 64},
    }
    own = folder / "genai_config.json"
    own.write_text(json.dumps(config))

    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(cli, [*map(str, arguments)])

    command = ("prune", source, "--ratio", 0.5, "--resize-states")
    assert invoke(*command, "-o", other / "s.onnx").exit_code == 0
    after = json.loads((other / "genai_config.json").read_text())
    expected = json.loads(json.dumps(config))
    expected["model"]["decoder"] |= {"filename": "s.onnx", "num_attention_heads": 2, "num_key_value_heads": 1}
    assert after == expected
    for name in KV:
        (shape,) = [v.type.tensor_type.shape for v in load(other / "s.onnx").proto.graph.input if v.name == name]
        assert [d.dim_value for d in shape.dim] == [1, 1, 3, 6]
    found = invoke(*command, "-o", other / "t.onnx")  # a config that is there isn't overwritten
    assert (found.exit_code, "OP116" in found.output) == (2, True)
    assert not (other / "t.onnx").exists()
    assert invoke(*command, "-o", folder / "s.onnx").exit_code == 0
    assert json.loads(own.read_text()) == config
    assert json.loads((folder / "s.genai_config.json").read_text()) == expected
    own.write_text('{"model": []}')
    found = invoke(*command, "-o", folder / "u.onnx")
    assert (found.exit_code, "OP317" in found.output) == (2, True)
    assert not (folder / "u.onnx").exists()


def test_layers_that_keep_different_heads_have_no_genai_config() -> None:
    analysis = op.analyze(attention(shared=4), resize_states=True)
    removed = np.zeros(analysis.graph.unit_count, dtype=bool)
    group = next(g for g in analysis.graph.groups if "key0" in g.nodes)
    removed[group.units[:1]] = True
    with pytest.raises(PlanError) as caught:
        config_after({"model": {"decoder": {"num_key_value_heads": 4}}}, PrunedGraph(analysis.graph, removed), "m.onnx")
    assert (caught.value.code, caught.value.hint) == ("OP317", "make a plan with `kv_uniform`")


def test_data_have_full_states_or_none(tmp_path: Path) -> None:
    """Evaluate and prune with data: states of the original's size are cut, absent ones are zeros."""
    source, target, again = (tmp_path / f"{name}.onnx" for name in ("m", "s", "t"))
    save(load(gru()), source)
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((12, 3, 1, 8), np.float32),
        "h_a": rng.standard_normal((12, 1, 1, 16), np.float32),
        "h_b": rng.standard_normal((12, 1, 1, 16), np.float32),
    }
    full, bare = tmp_path / "full.npz", tmp_path / "bare.npz"
    np.savez(full, **arrays)
    np.savez(bare, x=arrays["x"])

    def invoke(*arguments: object) -> Any:
        found = CliRunner().invoke(cli, [*map(str, arguments)])
        assert found.exit_code == 0, found.output
        return found

    for data in (full, bare):
        command = ("prune", "--ratio", 0.5, "--resize-states", "--force", "--data", data)
        found = invoke(*command, source, "-o", target)
        assert ("states that aren't in the data are zeros: h_a, h_b" in found.output) == (data is bare)
        measured = invoke(
            "evaluate", target, "--against", source, "--data", data, "--metric", "mse", "--format", "json"
        )
        whole = {} if data is full else {n: np.zeros_like(arrays[n]) for n in ("h_a", "h_b")}
        errors = []
        for i in range(12):
            big = {n: a[i] for n, a in (arrays | whole).items()}
            notes = {p.key: p.value for p in load(target).proto.metadata_props}
            small = dict(big)
            for state in json.loads(notes["onnxprune.states"]):
                small[state["input"]] = big[state["input"]][:, :, state["kept"]["2"]]
            difference = (
                run_once(load(target).proto, small)["head_out0"] - run_once(load(source).proto, big)["head_out0"]
            )
            errors.append(float(np.mean(difference**2)))
        scores = {s["output"]: s["model"]["value"] for s in json.loads(measured.stdout)["scores"].values()}
        assert scores["head_out0"] == pytest.approx(np.mean(errors), rel=1e-4)
    tuned = invoke("prune", source, "-o", again, "--ratio", 0.5, "--resize-states", "--data", bare, "--finetune", 1)
    assert "training" in tuned.output
    again.unlink()
    before = {p.key: p.value for p in load(target).proto.metadata_props}
    command = ("prune", target, "-o", again, "--ratio", 0.5, "--resize-states", "--data", full)
    invoke(*command)  # prunes the pruned model further: data still have the first original's states
    notes = {p.key: p.value for p in load(again).proto.metadata_props}
    for state, earlier in zip(*(json.loads(n["onnxprune.states"]) for n in (notes, before)), strict=True):
        assert state["before"] == earlier["before"] == [1, 1, 16]
        assert set(state["kept"]["2"]) < set(earlier["kept"]["2"])
    invoke("evaluate", again, "--data", full, "--against", source, "--metric", "mse")


def test_a_trimmed_vocabulary_in_a_genai_config() -> None:
    kept = PrunedGraph(op.analyze(lstm()).graph)
    config = {"model": {"vocab_size": 9, "bos_token_id": 2, "eos_token_id": [7, 2], "decoder": {}}}
    after = json.loads(config_after(config, kept, "m.onnx", {2: 0, 5: 1, 7: 2}))["model"]
    assert after == {"vocab_size": 3, "eos_token_id": [2, 0], "bos_token_id": 0, "decoder": {"filename": "m.onnx"}}
    with pytest.raises(PlanError, match="bos_token_id is 2, which the trimmed vocabulary lacks"):
        config_after(config, kept, "m.onnx", {7: 0})

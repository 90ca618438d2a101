"""Bodies of Loop and Scan: their weights and steps are counted, channels inside and states leave, and it is proved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model

import onnxprune as op
from onnxprune.autodiff.backward import gradients, model_of as step_of
from onnxprune.autodiff.forward import forward
from onnxprune.cost.cost import cost
from onnxprune.errors import TrainingError
from onnxprune.model.bodies import close_bodies, in_body, is_body_input, is_open
from onnxprune.model.file import load
from onnxprune.normalize import normalize
from onnxprune.operators import subgraphs
from onnxprune.planning.residual_blocks import find_blocks
from onnxprune.report.summary import summarize
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.steps import proof_inputs
from onnxprune.rewrite.verify import verify
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.pruning import prune
from tests.toolbox import analyze, assert_sound, largest_difference, removal, run_once, swapped


def parsed(text: str, opset: int = 17, **shapes: tuple[int, ...]) -> ModelProto:
    """Return a model in onnx's notation, with random initializers of these shapes."""
    model: ModelProto = parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        scale = 1 / np.sqrt(max(1, np.prod(shape[:1])))
        model.graph.initializer.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype("f"), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def elman() -> ModelProto:
    """A recurrence over outer weights, of as many steps as the input has."""
    text = """net (float[T,1,8] x) => (float[U,1,3] y)
        <int64 zero = {0}, bool go = {1}> {
        [inp] xp = MatMul (x, wx)
        s = Shape (x) n = Gather (s, zero)
        [loop] hT, hs = Loop (n, go, h0) <
            body = b (int64 i, bool c, float[1,48] h) => (bool d, float[1,48] g, float[1,48] o) {
            d = Identity (c)
            [rec] hh = MatMul (h, wh)
            xt = Gather <axis = 0> (xp, i)
            sum = Add (hh, xt) g = Tanh (sum) o = Identity (g)
        }>
        [out] y = MatMul (hs, wo)
    }"""
    return parsed(text, wx=(8, 48), wh=(48, 48), wo=(48, 3), h0=(1, 48))


def lstm(backwards: int = 0) -> ModelProto:
    """An LSTM written as Scan along the second axis, with two states."""
    text = f"""net (float[2,5,4] x) => (float[2,5,3] y, float[2,3] z) {{
        [scan] hT, cT, hs = Scan (h0, c0, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            scan_input_directions = [{backwards}], scan_output_directions = [{backwards}],
            body = b (float[2,6] h, float[2,6] c, float[2,4] p) => (float[2,6] g, float[2,6] e, float[2,6] o) {{
            [wx] a = MatMul (p, w) [wh] b = MatMul (h, r) ab = Add (a, b) gates = Add (ab, bias)
            i, f, u, t = Split <axis = 1> (gates)
            si = Sigmoid (i) sf = Sigmoid (f) su = Sigmoid (u) tt = Tanh (t)
            fc = Mul (sf, c) it = Mul (si, tt) e = Add (fc, it)
            te = Tanh (e) g = Mul (su, te) o = Identity (g)
        }}>
        [out] y = MatMul (hs, wo)
        [last] z = MatMul (cT, wc)
    }}"""
    return parsed(text, w=(4, 24), r=(6, 24), bias=(24,), wo=(6, 3), wc=(6, 3), h0=(2, 6), c0=(2, 6))


def gru() -> ModelProto:
    """A GRU written as Loop over outer weights, whose state starts from a layer."""
    text = """net (float[7,2,4] x, float[2,5] start) => (float[2,3] y)
        <int64 n = {7}, bool go = {1}, float one = {1.0}> {
        [init] h0 = MatMul (start, wi)
        [inp] xp = MatMul (x, wx)
        [loop] hT = Loop (n, go, h0) <body = b (int64 i, bool c, float[2,6] h) => (bool d, float[2,6] g) {
            d = Identity (c)
            p = Gather <axis = 0> (xp, i)
            pz, pr, pn = Split <axis = 1> (p, thirds)
            [z] hz = MatMul (h, uz) az = Add (pz, hz) z = Sigmoid (az)
            [r] hr = MatMul (h, ur) ar = Add (pr, hr) r = Sigmoid (ar)
            rh = Mul (r, h) [n] hn = MatMul (rh, un) an = Add (pn, hn) m = Tanh (an)
            zi = Sub (one, z) zm = Mul (zi, m) zh = Mul (z, h) g = Add (zm, zh)
        }>
        [out] y = MatMul (hT, wo)
    }"""
    text = text.replace("<int64 n", "<int64[3] thirds = {6, 6, 6}, int64 n")
    return parsed(text, wi=(5, 6), wx=(4, 18), uz=(6, 6), ur=(6, 6), un=(6, 6), wo=(6, 3))


def branching() -> ModelProto:
    """A choice of two branches within a loop; names are used again, and every body has initializers of its own."""
    text = """net (float[1,8] x) => (float[S,1,3] y)
        <int64 n = {5}, int64 two = {2}, int64 zero = {0}> {
        [inp] h0 = MatMul (x, wx)
        [loop] hT, hs = Loop (n, , h0) <
            body = b (int64 i, bool c, float[1,6] h) => (bool d, float[1,6] g, float[1,6] o) {
            d = Identity (c)
            [rec] k = MatMul (h, wh)
            m = Mod (i, two) even = Equal (m, zero)
            [if] q = If (even) <
                then_branch = t () => (float[1,6] v) { [one] u = MatMul (k, wa) a = Relu (u) v = MatMul (a, wb) },
                else_branch = f () => (float[1,6] v) { [two] v = MatMul (k, wh) }>
            g = Tanh (q) o = Identity (g)
        }>
        [out] y = MatMul (hs, wo)
    }"""
    model = parsed(text, wx=(8, 6), wh=(6, 6), wa=(6, 9), wb=(9, 6), wo=(6, 3))
    loop = next(n for n in model.graph.node if n.op_type == "Loop").attribute[0].g
    then = next(n for n in loop.node if n.op_type == "If").attribute[0].g
    _move(model, then, "wa", "wb")
    return model


def nested() -> ModelProto:
    """A loop in a loop."""
    text = """net (float[1,8] x) => (float[S,1,3] y, float[1,3] z)
        <int64 n = {3}, int64 k = {2}> {
        [inp] h0 = MatMul (x, wx)
        [loop] hT, hs = Loop (n, , h0) <
            body = b (int64 i, bool c, float[1,6] h) => (bool d, float[1,6] g, float[1,10] o) {
            d = Identity (c)
            [inner] h1 = Loop (k, , h) <body = a (int64 j, bool e, float[1,6] p) => (bool f, float[1,6] q) {
                f = Identity (e) [rec] r = MatMul (p, wh) q = Tanh (r)
            }>
            [wide] m = MatMul (h1, wm) o = Relu (m) [narrow] g = MatMul (o, wn)
        }>
        [out] y = MatMul (hs, wo)
        [last] z = MatMul (hT, wp)
    }"""
    model = parsed(text, wx=(8, 6), wh=(6, 6), wm=(6, 10), wn=(10, 6), wo=(10, 3), wp=(6, 3))
    _move(model, next(n for n in model.graph.node if n.op_type == "Loop").attribute[0].g, "wm", "wn")
    return model


def _move(model: ModelProto, body: onnx.GraphProto, *names: str) -> None:
    """Move initializers into a body."""
    body.initializer.extend(t for t in model.graph.initializer if t.name in names)
    rest = [t for t in model.graph.initializer if t.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)


GROUPS: dict[Callable[[], ModelProto], dict[str, int]] = {
    elman: {"inp": 48},
    lstm: {"wx": 6},
    gru: {"init": 6},
    branching: {"inp": 6, "one": 9},
    nested: {"inp": 6, "wide": 10},
}
MODELS = pytest.mark.parametrize("build", GROUPS, ids=lambda build: build.__name__)


@MODELS
def test_opened_and_closed_compute_the_same(build: Callable[[], ModelProto]) -> None:
    model = build()
    opened = normalize(model)
    assert any(map(is_body_input, opened.graph.node))
    assert normalize(opened) == opened
    closed = close_bodies(opened)
    onnx.checker.check_model(closed, full_check=True)
    assert not any(in_body(n) or is_open(n) or is_body_input(n) for n in closed.graph.node)
    for seed in range(3):
        inputs = proof_inputs(analyze(model), seed)
        # ONNX Runtime multiplies by weights of the body's own in another order than by those of the main graph.
        assert largest_difference(run_once(model, inputs), run_once(closed, inputs)) <= 1e-6


@MODELS
def test_channels_leave_and_are_proved(build: Callable[[], ModelProto]) -> None:
    """With several steps, and a control: one other unit removed is noticed."""
    graph = analyze(build())
    assert {g.name: len(g.sets) for g in graph.groups} == GROUPS[build]
    for seed in range(4):
        kept = removal(graph.groups, graph, np.random.default_rng(seed))
        pruned = rewrite(kept)
        onnx.checker.check_model(pruned, full_check=True)
        assert_sound(kept, pruned)
        inputs = proof_inputs(graph, seed)
        assert verify(kept, pruned, inputs).passed
        other = swapped(kept, np.random.default_rng(seed))
        assert other is not None
        assert not verify(kept, rewrite(other), inputs).passed


def test_the_slots_of_a_recurrence() -> None:
    """One hidden unit is a column of wx, a row and a column of wh, a row of wo and an element of the initial state."""
    (group,) = analyze(elman()).groups
    assert set(group.slots) == {("wx", 1), ("wh", 0), ("wh", 1), ("wo", 0), ("h0", 1)}


def test_weights_and_steps_are_counted() -> None:
    """By hand."""
    graph = analyze(elman(), {"x": (5, 1, 8)})
    found = cost(PrunedGraph(graph))
    assert found.params == 8 * 48 + 48 * 48 + 48 * 3 + 48
    assert found.macs == 5 * (8 * 48 + 48 * 48 + 48 * 3)
    assert not found.once
    graph = analyze(nested())
    found = cost(PrunedGraph(graph))
    assert found.params == 8 * 6 + 6 * 6 + 2 * 60 + 30 + 18
    assert found.macs == 8 * 6 + 3 * 2 * 36 + 3 * 120 + 3 * 30 + 18
    for build in GROUPS:
        summary = summarize(analyze(build()))
        assert all(0 <= pin.held <= summary.cost.params for pin in summary.pins)
        assert summary.prunable <= summary.cost.params


def looping(condition: str = "d = Less (s, limit)") -> ModelProto:
    """A loop whose number of steps depends on values, by default."""
    text = f"""net (float[1,8] x) => (float[1,3] y) <int64 n = {{9}}, bool go = {{1}}, float limit = {{5.0}}> {{
        [inp] h0 = MatMul (x, wx)
        [loop] hT = Loop (n, go, h0) <body = b (int64 i, bool c, float[1,6] h) => (bool d, float[1,6] g) {{
            [rec] r = MatMul (h, wh) g = Tanh (r) s = ReduceMax <keepdims = 0> (g) {condition}
        }}>
        [out] y = MatMul (hT, wo)
    }}"""
    return parsed(text, wx=(8, 6), wh=(6, 6), wo=(6, 3))


def test_steps_that_depend_on_values_are_counted_once_and_it_is_said() -> None:
    found = cost(PrunedGraph(analyze(looping())))
    assert (found.macs, found.once) == (8 * 6 + 36 + 18, ("loop",))
    known = cost(PrunedGraph(analyze(looping("d = Identity (c)"))))
    assert (known.macs, known.once) == (8 * 6 + 9 * 36 + 18, ())


def test_a_proof_takes_several_steps() -> None:
    """At the sizes of the trace a recurrence takes one step from a state of zeros, and its own weights don't matter."""
    graph = analyze(elman())
    assert graph.shapes.inputs["x"][0] == 1
    steps = {proof_inputs(graph, seed)["x"].shape[0] for seed in range(20)}
    assert min(steps) >= 2 and len(steps) > 1


def test_a_count_given_as_an_input_is_drawn() -> None:
    text = """net (int64 n, bool go, float[1,4] x) => (float[1,4] y) {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[1,4] h) => (bool d, float[1,4] g) {
            d = Identity (c) g = Tanh (h)
        }>
    }"""
    inputs = proof_inputs(analyze(parsed(text)))
    assert inputs["n"] >= 2 and inputs["go"]


def test_a_state_tied_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the tie of a step's state with the next one's, the proof fails."""
    monkeypatch.setattr(subgraphs, "carried", lambda node: [])
    graph = analyze(elman())
    kept = removal(graph.groups, graph, np.random.default_rng(0))
    try:
        passed = verify(kept, rewrite(kept), proof_inputs(graph)).passed
    except op.OnnxPruneError as error:  # shapes that don't meet
        assert error.code in ("OP122", "OP503")
    else:
        assert not passed


def test_a_state_that_is_an_input_stays() -> None:
    model = elman()
    h0 = next(t for t in model.graph.initializer if t.name == "h0")
    model.graph.initializer.remove(h0)
    model.graph.input.append(helper.make_tensor_value_info("h0", TensorProto.FLOAT, [1, 48]))
    graph = analyze(model)
    assert not graph.groups
    codes = {p.code for u in graph.unit_of[graph.slots["wh", 1]] for p in graph.pins(int(u))}
    assert codes == {"OP201"}


@pytest.mark.parametrize(
    "loop",
    [
        """s = Shape (x) n = Gather (s, zero)
        h_out, hs = Loop (n, go, h_in) <
            body = b (int64 i, bool c, float[1,48] h) => (bool d, float[1,48] g, float[1,48] o) {
            d = Identity (c) hh = MatMul (h, wh) xt = Gather <axis = 0> (xp, i)
            sum = Add (hh, xt) g = Tanh (sum) o = Identity (g)
        }>""",
        """h_out, hs = Scan <num_scan_inputs = 1,
            body = b (float[1,48] h, float[1,48] xt) => (float[1,48] g, float[1,48] o) {
            hh = MatMul (h, wh) sum = Add (hh, xt) g = Tanh (sum) o = Identity (g)
        }> (h_in, xp)""",
    ],
    ids=["Loop", "Scan"],
)
def test_a_state_that_may_be_resized_leaves(loop: str) -> None:
    """The model's state is that of the loop: the caller feeds back what the last step leaves."""
    text = f"""net (float[T,1,8] x, float[1,48] h_in) => (float[U,1,3] y, float[1,48] h_out)
        <int64 zero = {{0}}, bool go = {{1}}> {{
        xp = MatMul (x, wx)
        {loop}
        y = MatMul (hs, wo)
    }}"""
    model = parsed(text, wx=(8, 48), wh=(48, 48), wo=(48, 3))
    analysis = op.analyze(model, {"x": (3, 1, 8)}, resize_states=True)
    pruned = prune(analysis, op.plan(analysis, ratio=0.5))
    assert pruned.kept.shape("h_in") == pruned.kept.shape("h_out") == (1, 24)
    assert pruned.verification is not None and pruned.verification.passed and pruned.verification.steps > 1
    (left,) = [np.flatnonzero(m) for m in [pruned.kept.mask("h_in", 1)] if m is not None]
    x, small = np.ones((4, 1, 8), np.float32), np.zeros((1, 24), np.float32)
    wide = np.zeros((1, 48), np.float32)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for _ in range(3):  # the recurrence by hand, over the channels that are left
        for step in x:
            wide[:, left] = np.tanh(step @ weights["wx"] + wide @ weights["wh"])[:, left]
        small = run_once(pruned.proto, {"x": x, "h_in": small})["h_out"]
        assert np.abs(small - wide[:, left]).max() < 1e-5
    assert np.abs(small).max() > 0.1


def test_a_state_that_grows_stays() -> None:
    """Its shape isn't the same at every step, so nothing that depends on the first step's is believed."""
    text = """net (float[1,8] x) => (float[S,3] y) <int64 n = {4}> {
        [inp] h0 = MatMul (x, wx)
        [keys] k0 = MatMul (x, wk)
        hT, kT = Loop (n, , h0, k0) <
            body = b (int64 i, bool c, float[1,6] h, float[K,6] k) => (bool d, float[1,6] g, float[L,6] m) {
            d = Identity (c) r = MatMul (h, wh) g = Tanh (r) m = Concat <axis = 0> (k, g)
        }>
        [out] y = MatMul (kT, wo)
    }"""
    graph = analyze(parsed(text, wx=(8, 6), wk=(8, 6), wh=(6, 6), wo=(6, 3)))
    assert "k" not in graph.shapes.shapes and graph.shapes.shapes["kT"] == (5, 6)
    assert not graph.groups
    assert {"OP207", "OP213"} <= {pin.code for _, pin in graph.reasons()}
    assert "a state whose shape isn't the same at every step" in {pin.reason for _, pin in graph.reasons()}


def test_a_scan_of_before_opset_9_is_left_alone_and_counted() -> None:
    text = """net (float[1,5,4] x) => (float[1,4] z, float[1,5,4] y) {
        z, y = Scan ( , h0, x) <num_scan_inputs = 1, body = b (float[4] h, float[4] p) => (float[4] g, float[4] o) {
            a = Mul (p, w) g = Add (a, h) o = Identity (g)
        }>
    }"""
    model = parse_model(f'<ir_version: 8, opset_import: ["" : 8]>\n{text}')
    for name, shape in {"h0": (1, 4), "w": (4,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, "f"), name))
    (scan,) = model.graph.node
    _move(model, scan.attribute[1].g, "w")
    graph = analyze(model)
    assert not graph.groups
    assert cost(PrunedGraph(graph)).params == 8


def test_from_plan_to_proof() -> None:
    model = load(lstm())
    analysis = TracedModel(model, analyze(model.proto))
    plan = op.plan(analysis, ratio=0.5, round_to=1)
    pruned = prune(analysis, plan)
    assert pruned.verification is not None and pruned.verification.passed
    shapes = {t.name: tuple(t.dims) for t in pruned.proto.graph.initializer}
    assert (shapes["w"], shapes["r"], shapes["h0"]) == ((4, 12), (3, 12), (2, 3))


def test_what_a_loop_sums_up_is_no_residual_block() -> None:
    text = """net (float[1,6] x) => (float[1,6] y) <int64 n = {4}> {
        y = Loop (n, , x) <body = b (int64 i, bool c, float[1,6] h) => (bool d, float[1,6] g) {
            d = Identity (c) r = MatMul (h, w) g = Add (h, r)
        }>
    }"""
    assert not find_blocks(analyze(parsed(text, w=(6, 6))))


def _loss(graph: ChannelGraph, model: ModelProto, inputs: dict[str, np.ndarray]) -> float:
    return float(sum(np.asarray(v, np.float64).sum() for v in run_once(model, inputs).values()))


@pytest.mark.parametrize(
    "build", [elman, lstm, lambda: lstm(1), gru, nested], ids=["elman", "lstm", "back", "gru", "nested"]
)
def test_gradients_pass_loops(build: Callable[[], ModelProto]) -> None:
    """Against finite differences of the model with its loop, run by ONNX Runtime."""
    graph = analyze(build())
    inputs = proof_inputs(graph)
    names = [
        t.name for t in graph.proto.graph.initializer if t.data_type == TensorProto.FLOAT and max(t.dims, default=1) > 1
    ]
    step = forward(graph.proto, {n: a.shape for n, a in inputs.items()}, names)
    outputs = [t.sum().reshape(()) for t in step.outputs.values()]
    loss = outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]
    found = gradients(step.tape, loss, [step.weights[n] for n in names])
    model = step_of(step.tape, {f"d {n}": g for n, g in zip(names, found, strict=True)} | {"loss": loss})
    stored = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    given = {i.name for i in model.graph.input}
    feeds = {n: a for n, a in {**{n: stored[n] for n in names}, **inputs}.items() if n in given}
    grads = run_once(model, feeds)
    assert np.isclose(grads["loss"], _loss(graph, graph.proto, inputs), rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng(0)
    for name in names:
        direction = rng.standard_normal(stored[name].shape).astype("f")
        sides = []
        for sign in (1, -1):
            moved = ModelProto.FromString(graph.proto.SerializeToString())
            for tensor in moved.graph.initializer:
                if tensor.name == name:
                    tensor.CopyFrom(numpy_helper.from_array(stored[name] + np.float32(sign * 1e-2) * direction, name))
            sides.append(_loss(graph, moved, inputs))
        slope = (sides[0] - sides[1]) / 2e-2
        assert np.isclose((grads[f"d {name}"] * direction).sum(), slope, rtol=2e-2, atol=2e-2), name


def test_a_loop_of_unknown_length_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match="number of steps depends on values"):
        forward(normalize(looping()), {"x": (1, 8)}, ["wh"])

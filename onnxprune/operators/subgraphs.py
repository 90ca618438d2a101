"""If, Loop and Scan with their bodies opened (`onnxprune.model.bodies`): what happens at the border of a body."""

from __future__ import annotations

from onnx import ValueInfoProto

from onnxprune.channels.align import align
from onnxprune.channels.values import Factor, Value
from onnxprune.model.bodies import BODY_INPUTS, carried, is_open, results, stacked
from onnxprune.model.checks import subgraphs
from onnxprune.operators.card import describe, leave, rewrites, traces
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

leave("its body runs as a separate graph", "SequenceMap")
describe("If Loop Scan", reasons={"gradient": "no gradient rule is written for bodies"})
describe("If", sizing=(0,))
describe("Loop", sizing=(0, 1))
describe(BODY_INPUTS, reasons={"gradient": "no gradient rule is written for bodies"})


@traces(BODY_INPUTS)
def body_inputs(op: TraceNode) -> None:
    """A state is what the first step reads, and a piece of a sequence has its channels; steps are positions."""
    counters, axes = op.attr("counters", []), op.attr("axes", [])
    first_sliced = len(op.node.input) - len(axes)
    for i, name in enumerate(op.node.output):
        if i < len(counters):
            op.give(Value(op.out_shape(i)), i)
        elif not op.is_known(op.node.input[i]):
            continue  # what reads it in the body says so
        elif i >= first_sliced:
            value, axis = op.x(i), axes[i - first_sliced] % len(op.shape(i))
            value = op.pin_axes(value, [axis], "OP206", "its axis holds the steps of a loop")
            factors = [Factor(tuple(a - (a > axis) for a in f.axes), f.ids) for f in value.factors]
            op.give(value.moved(value.shape[:axis] + value.shape[axis + 1 :], factors), i)
        elif op.is_known(name):
            op.give(op.x(i), i)
        else:
            _stay(op, op.x(i), "a state whose shape isn't the same at every step")


@traces("If Loop Scan")
def body_results(op: TraceNode) -> None:
    """What a step reads, gives and leaves behind is one state, and both bodies of If give the same channels."""
    if not is_open(op.node):
        op.give_up("OP207", f"goes into {op.label} or comes out of its body, which runs as a separate graph")
        return
    op.looked_at.update(op.node.input)  # also the pieces of a sequence, which the body alone reads
    meeting = [(pair, i) for *pair, i in carried(op.node)] if op.node.op_type != "If" else _branches(op)
    for pair, i in meeting:
        given = [op.x(j) for j in pair if op.is_known(op.node.input[j])]
        agree = len(given) == len(pair) and len({v.shape for v in given}) == 1
        if op.node.op_type == "If" and not agree and any(v.factors for v in given):
            never = op.never()
            pair = [j for j, body in zip(pair, results(op.node), strict=True) if body not in never]
            given = [op.x(j) for j in pair if op.is_known(op.node.input[j])]
        if given and len(given) == len(pair) and len({v.shape for v in given}) == 1:
            spec = f"{', '.join(['*s'] * len(given))} -> *s"
            _output(op, i, align(op, spec, given, {0: given[0].shape}, given={})[0])
        else:
            for value in given:
                _stay(op, value, f"what the bodies or steps of {op.label} give has different shapes")
            _output(op, i, None)
    for j, i, axis in stacked(op.node) if op.node.op_type != "If" else ():
        if op.is_known(op.node.input[j]):
            value = op.x(j)
            at = axis % (len(value.shape) + 1)
            factors = [Factor(tuple(a + (a >= at) for a in f.axes), f.ids) for f in value.factors]
            if i < len(op.node.output) and op.is_known(op.node.output[i]):
                shape = op.out_shape(i)
                _output(op, i, Value(shape, tuple(factors)))
            else:
                _stay(op, value, f"the number of steps of {op.label} isn't known")


def _branches(op: TraceNode) -> list[tuple[list[int], int]]:
    """Return the results of an If that become the same output, by number, and the output."""
    size = len(op.node.output)
    return [([1 + i + size * b for b in range(len(results(op.node)))], i) for i in range(size)]


def _output(op: TraceNode, i: int, value: Value | None) -> None:
    """Set an output that is wanted; without channels if nothing better is known."""
    name = op.node.output[i] if i < len(op.node.output) else ""
    if not name or not op.is_known(name):
        if value is not None and name:
            _stay(op, value, f"the shape of what {op.label} gives isn't known")
        return
    if value is not None and value.shape != op.out_shape(i):
        _stay(op, value, f"what {op.label} gives has another shape than its body's result")
        value = None
    op.give(Value(op.out_shape(i)) if value is None else value, i)


def _stay(op: TraceNode, value: Value, reason: str) -> None:
    op.pin_axes(value, range(len(value.shape)), "OP207", reason)


@rewrites("If Loop Scan")
def declared_sizes(edit: RewriteNode) -> None:
    """The sizes that bodies declare for their inputs and results."""
    first = 0 if edit.node.op_type != "If" else 1
    for body in subgraphs(edit.node):
        for value in (*body.input, *body.output):
            _declare(edit, first, value)
            first += 1


def _declare(edit: RewriteNode, i: int, value: ValueInfoProto) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        mask = edit.mask(i, axis)
        if mask is not None and not mask.all():
            dim.dim_value = int(mask.sum())

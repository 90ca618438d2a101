"""Gradients held against differences of the forward pass, which no gradient rule has touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.model.session import run, session

Arrays = Mapping[str, NDArray[Any]]
Function = Callable[[Arrays], float]

TOLERANCE = 2e-3


@dataclass(frozen=True)
class Case:
    """A node to be differentiated.

    Attributes:
        operator: its type, with its domain in front unless that is ai.onnx.
        inputs: its inputs, None for one that is left out. The gradient is taken of the floating-point ones
        of: or of those at these places.
        attributes: its attributes.
        outputs: how many outputs it has.
        judged: the sum of so many of them, randomly weighted, is differentiated; of all by default.
        linear: whether it is linear in each input, so that differences are exact at any distance and ONNX Runtime's
            single precision does; otherwise onnx's reference implementation runs in double precision.
        runtime: whether ONNX Runtime takes the differences all the same, onnx having no reference.
        opset: the version of ONNX.
    """

    operator: str
    inputs: Sequence[NDArray[Any] | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    of: Sequence[int] | None = None
    outputs: int = 1
    judged: int | None = None
    linear: bool = False
    runtime: bool = False
    opset: int = 18

    @property
    def wrt(self) -> list[str]:
        floats = [i for i, a in enumerate(self.inputs) if a is not None and a.dtype.kind == "f"]
        return [f"x{i}" for i in (floats if self.of is None else self.of)]


def model_of_case(case: Case, dtype: int = TensorProto.FLOAT) -> ModelProto:
    """Make a normalized model of the node; all its inputs are initializers."""
    domain, _, op_type = case.operator.rpartition(":")
    names = ["" if a is None else f"x{i}" for i, a in enumerate(case.inputs)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(op_type, names, outputs, name="node", domain=domain, **case.attributes)
    real = helper.tensor_dtype_to_np_dtype(dtype)
    arrays = {f"x{i}": a.astype(real) if a.dtype.kind == "f" else a for i, a in enumerate(case.inputs) if a is not None}
    graph = helper.make_graph(
        [node],
        "case",
        [],
        [ValueInfoProto(name=o) for o in outputs[: case.judged]],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", case.opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def found_gradients(case: Case, weights: Callable[[int, Sequence[int]], NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run the gradient graph in ONNX Runtime."""
    proto = model_of_case(case)
    step = forward(proto, {}, case.wrt, norms="frozen")
    tape = step.tape
    terms = []
    for i, y in enumerate(list(step.outputs.values())[: case.judged]):
        terms.append((y * tape.constant(weights(i, y.shape).astype(np.float32))).sum(keep=False))
    total = terms[0] if len(terms) == 1 else tape.emit("Sum", *terms)
    wrt = [step.weights[n] for n in case.wrt]
    model = model_of(tape, dict(zip((f"d{t.name}" for t in wrt), gradients(tape, total, wrt), strict=True)))
    opened = session(model, threads=1)
    feeds = feeds_of(step, proto)
    found = run(opened, {i.name: feeds[i.name] for i in opened.get_inputs()})
    return {n: found[f"d{n}"] for n in case.wrt}


def weighted_output(case: Case, weights: Callable[[int, Sequence[int]], NDArray[Any]]) -> Function:
    """Return the forward pass as a function of its inputs, by an implementation that isn't ours."""
    if case.linear or case.runtime:
        opened_of = _as_inputs(model_of_case(case))
        opened = session(opened_of, threads=1)

        def outputs(arrays: Arrays) -> list[Any]:
            single = {n: np.asarray(a, np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
            return list(run(opened, single).values())
    else:
        evaluator = ReferenceEvaluator(_as_inputs(model_of_case(case, TensorProto.DOUBLE)))

        def outputs(arrays: Arrays) -> list[Any]:
            return list(evaluator.run(None, dict(arrays)))

    def function(arrays: Arrays) -> float:
        return sum(
            float((np.asarray(y, np.float64) * weights(i, np.shape(y))).sum())
            for i, y in enumerate(outputs(arrays)[: case.judged])
        )

    return function


def _as_inputs(model: ModelProto) -> ModelProto:
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)
    return model


def disagreement(
    function: Function, arrays: Arrays, name: str, gradient: NDArray[Any], rng: np.random.Generator, distance: float
) -> float:
    """Return by how much a gradient differs from differences along directions, relative to what it promises.

    The first direction follows the signs of the gradient, so that nothing cancels; others are random.
    """
    value = gradient.astype(np.float64)
    worst = 0.0
    for aligned in (True, False, False):
        size = rng.uniform(0.5, 1.5, value.shape)
        random = rng.choice([-1.0, 1.0], value.shape)
        direction = size * (np.where(value != 0, np.sign(value), random) if aligned else random)
        there, back = (function({**arrays, name: arrays[name] + s * distance * direction}) for s in (1, -1))
        measured = (there - back) / (2 * distance)
        scale = np.abs(value * direction).sum() + 1e-6
        worst = max(worst, abs(measured - (value * direction).sum()) / scale)
    return worst


def check(case: Case, seed: int = 0) -> None:
    """Hold every gradient of a case against differences, and see that wrong ones are caught."""
    draws: dict[int, NDArray[Any]] = {}

    def weights(i: int, shape: Sequence[int]) -> NDArray[Any]:
        return draws.setdefault(i, np.random.default_rng((seed, i)).uniform(0.5, 1.5, tuple(shape)))

    found = found_gradients(case, weights)
    function = weighted_output(case, weights)
    real = np.float64
    arrays = {f"x{i}": a.astype(real) if a.dtype.kind == "f" else a for i, a in enumerate(case.inputs) if a is not None}
    rng, distance = np.random.default_rng(seed), 0.5 if case.linear else 3e-3 if case.runtime else 1e-6
    for name, gradient in found.items():
        assert gradient.shape == arrays[name].shape
        error = disagreement(function, arrays, name, gradient, rng, distance)
        assert error < TOLERANCE, f"{case.operator}: the gradient of {name} is off by {error:.2g}"
        assert np.abs(gradient).max() > 0, f"{case.operator}: the gradient of {name} is zero"
        for wrong in (gradient * 1.02, np.zeros_like(gradient) + gradient.mean() * 1.1, -gradient):
            assert disagreement(function, arrays, name, wrong, rng, distance) > TOLERANCE

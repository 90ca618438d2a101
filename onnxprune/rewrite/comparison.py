"""Compare a pruned model with its original: interfaces and, without a plan, the differences of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto, helper

from onnxprune.errors import VerificationError
from onnxprune.model.bodies import in_body
from onnxprune.model.graph import extract, opsets_of
from onnxprune.model.session import run, session
from onnxprune.model.states import state_inputs
from onnxprune.model.values import form, numbers
from onnxprune.planning.plan import PrunePlan
from onnxprune.planning.signature import plan_digest
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.verify import Verification
from onnxprune.rewrite.weights import WeightCheck
from onnxprune.trace.outputs import followed

Arrays = Mapping[str, NDArray[Any]]
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output as a model declares it.

    Attributes:
        name: its name.
        type: NumPy's name of its element type ("string" for text), or the kind of a value that isn't a tensor
            ("sequence").
        dims: a size, a symbol or None for each axis; None if the rank isn't declared.
    """

    name: str
    type: str
    dims: Dims | None


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What a model declares: versions, producer and interface.

    Attributes:
        ir_version: its IR version.
        opsets: opset versions by domain.
        producer: the tool that wrote it, with its version; may be empty.
        nodes: number of nodes of the main graph.
        inputs: its inputs, without initializers listed among them.
        outputs: its outputs.
    """

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    nodes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class OutputDistance:
    """Difference of one output of two models.

    Attributes:
        name: the output.
        difference: largest absolute difference relative to the first model's largest magnitude.
        cosine: cosine similarity of the two outputs, None where it is undefined.
        sound: whether the second output has the first's shape and is finite wherever the first is.
    """

    name: str
    difference: float
    cosine: float | None
    sound: bool


@dataclass(frozen=True, slots=True)
class Link:
    """The proof of a change of a whole network, see `onnxprune.planning.plan.Moves`.

    Attributes:
        what: what was done: "change of basis", "resizing", "merging of tokens", "lower ranks".
        error: the largest difference from what the network before is to compute, relative to an output's largest value.
    """

    what: str
    error: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of comparing a pruned model with its original.

    Attributes:
        changes: differences of the interfaces, one line each.
        verification: the oracle's result; None if it didn't run. If weights were changed after the rewriting, it is
            that of the model with the slices of the original in their place.
        distances: how far apart the outputs of the model and the original are; None unless they were compared: without
            a plan, or if weights were changed. Outputs behind a selection are left out where the two models select
            different numbers; the tensors in front are there.
        notes: what was compared in place of outputs, and why a plan wasn't used.
        tolerance: the largest difference at which compared outputs agree.
        weights: the weights that were changed after the rewriting; None if none were.
        broken: the weights that are noted to be sparse but whose zeros aren't in the pattern, each with what is wrong.
        links: the proofs of what the plan changes of the whole network before channels are removed, in order.
    """

    changes: tuple[str, ...] = ()
    verification: Verification | None = None
    distances: tuple[OutputDistance, ...] | None = None
    notes: tuple[str, ...] = ()
    tolerance: float = 0.0
    weights: WeightCheck | None = None
    broken: Mapping[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    @property
    def agree(self) -> bool | None:
        """Whether outputs that were compared without a plan agree; None if none were."""
        found = None if self.verification is not None else self.distances
        return None if found is None else all(d.sound and d.difference <= self.tolerance for d in found)

    @property
    def proved(self) -> bool:
        """Whether the oracle ran on the whole model, and passed: the rewriting is proved."""
        return self.verification is not None and self.verification.passed and not self.verification.unproved


def header_of(proto: ModelProto) -> ModelHeader:
    """Return what a model declares."""
    return ModelHeader(
        ir_version=proto.ir_version,
        opsets=opsets_of(proto),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        nodes=len(proto.graph.node),
        inputs=inputs_of(proto),
        outputs=outputs_of(proto),
    )


def inputs_of(proto: ModelProto) -> tuple[Port, ...]:
    """Return a model's inputs, without initializers listed among them."""
    initializers = {t.name for t in proto.graph.initializer}
    return tuple(_port(value) for value in proto.graph.input if value.name not in initializers)


def outputs_of(proto: ModelProto) -> tuple[Port, ...]:
    """Return a model's outputs."""
    return tuple(map(_port, proto.graph.output))


def check_origin(pruned: ModelProto, plan: PrunePlan) -> None:
    """Check that a pruned model was made with a plan, as far as its metadata says.

    Raises:
        VerificationError: the metadata names another plan (OP505).
    """
    digest = plan_digest(pruned)
    if digest not in (None, plan.digest):
        cause = "the pruned model was made with another plan"
        raise VerificationError("OP505", cause, where=f"its plan is {digest[:12]}")


def interface_changes(original: ModelProto, pruned: ModelProto) -> tuple[str, ...]:
    """Return the differences between the inputs and outputs of two models, one line each."""
    changes = []
    for what, of in (("input", inputs_of), ("output", outputs_of)):
        for a, b in zip_longest(of(original), of(pruned)):
            if a is None or b is None or a.name != b.name:
                names = (repr(p.name) if p else "none" for p in (a, b))
                changes.append(f"{what} {' became '.join(names)}")
            elif a != b:
                forms = (f"{p.type} {list(p.dims) if p.dims is not None else '?'}" for p in (a, b))
                changes.append(f"{what} {a.name!r} was {' and is '.join(forms)}")
    return tuple(changes)


def compare_outputs(
    original: ModelProto, pruned: ModelProto, inputs: Arrays, resized: Arrays | None = None
) -> tuple[OutputDistance, ...]:
    """Run two models on the same inputs and measure the differences of their outputs.

    Args:
        original: a model.
        pruned: another model with the same interface, except for the sizes of states.
        inputs: an array for each input.
        resized: the states of the second model, where they have other sizes. Those it returns aren't compared.

    Raises:
        ModelError: ONNX Runtime can't run one of the models (OP122).
    """
    found = followed(original)
    present = {name for node in pruned.graph.node if not in_body(node) for name in node.output}
    fronts = [name for name in found.tensors if name in present] if found.replaced else []
    states = [state.output for state in state_inputs(pruned).values()]
    names = list(dict.fromkeys([*(o.name for o in original.graph.output), *fronts]))
    parts = (extract(model, names) if fronts else model for model in (original, pruned))
    feeds = (inputs, {**inputs, **(resized or {})})
    expected, actual = (run(session(model, optimize=False), given) for model, given in zip(parts, feeds, strict=True))
    uncertain = found.sized | set(fronts) | set(states)
    alike = (n for n in expected if n not in uncertain or form(expected[n]) == form(actual[n]))
    return tuple(_distance(name, expected[name], actual[name]) for name in alike)


def _distance(name: str, expected: Any, actual: Any) -> OutputDistance:
    error = difference(actual, expected)
    x, y = numbers(expected), numbers(actual)
    if form(expected) != form(actual) or not len(x) or x.shape != y.shape:
        return OutputDistance(name, error, None, form(expected) == form(actual))
    sound = bool(np.isfinite(y[np.isfinite(x)]).all())
    both = np.isfinite(x) & np.isfinite(y)
    norms = float(np.linalg.norm(x[both]) * np.linalg.norm(y[both]))
    cosine = float(x[both] @ y[both]) / norms if norms else None
    return OutputDistance(name, error, cosine, sound)


def _port(value: ValueInfoProto) -> Port:
    kind = value.type.WhichOneof("value") or "undefined"
    if kind != "tensor_type":
        return Port(value.name, kind.removesuffix("_type"), None)
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        return Port(value.name, "string", _dims(tensor) if tensor.HasField("shape") else None)
    known = tensor.elem_type in helper.get_all_tensor_dtypes()
    element = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "undefined"
    return Port(value.name, element, _dims(tensor) if tensor.HasField("shape") else None)


def _dims(tensor: TypeProto.Tensor) -> Dims:
    # Some exporters write -1 for a size that isn't known.
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None for d in tensor.shape.dim
    )

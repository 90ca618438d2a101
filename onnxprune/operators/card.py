"""Cards: everything the package knows about an operator, in one table.

An operator is named by its type, with its domain in front unless that is ai.onnx: ``Conv``, ``com.microsoft:Gelu``.
Each of the other modules here describes a family of operators. Decorators register functions (`traces`, `rewrites`,
`gradient`, `written_out`), and `describe` registers facts. All of them take names, one or several in a string::

    describe("Gemm", factors=(0, 1), weights=(0, 1, 2), linear=product)

    @traces("Gemm")
    def gemm(op: TraceNode) -> None: ...

    @gradient("Gemm", of=1)
    def gemm_b(op: GradientNode, dy: Tensor) -> Tensor: ...

A missing facet has a reason, which `onnxprune rules` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from onnxprune.channels.values import Shape
    from onnxprune.model.tape import Tensor
    from onnxprune.operators.differentiated import GradientNode
    from onnxprune.operators.linear import LinearLayer
    from onnxprune.operators.node import Node
    from onnxprune.operators.rewritten import RewriteNode
    from onnxprune.operators.traced import TraceNode

Trace: TypeAlias = "Callable[[TraceNode], None]"
Rewrite: TypeAlias = "Callable[[RewriteNode], None]"
Gradient: TypeAlias = "Callable[[GradientNode, Tensor], Tensor]"
WrittenOut: TypeAlias = "Callable[[GradientNode], list[Tensor]]"
Count: TypeAlias = "Callable[[Node, list[Shape], Shape], int]"
Linear: TypeAlias = "Callable[[Node, Shape], LinearLayer | None]"
ZeroBytes: TypeAlias = "Callable[[Node], Mapping[int, int]]"
Facet = Literal["trace", "gradient", "linear"]
Alike = Literal["data", "factor", "mean", "sum"]
_F = TypeVar("_F", bound=Callable[..., Any])

# Reasons that several families give.
ACTIVATED = "an activation is fused into it"
EARLY = "no gradient rule is written for this operator of early exporters"
FUSED = "ONNX Runtime's fused form has no gradient: save the model unoptimized"
INTEGER = "it computes with integers; models in QDQ form can be trained"
INTEGERS: Mapping[Facet, str] = dict.fromkeys(("linear", "gradient"), "its weights are integers")
TWIN = "no gradient rule is written: its twin of the standard can be trained"


@dataclass(slots=True)
class Card:
    """What is known about an operator.

    Attributes:
        name: the operator.
        trace: passes channel ids from inputs to outputs; None for an operator that is deliberately left alone.
        rewrite: adapts attributes and parameters after channels are removed; None where nothing depends on their
            number.
        gradients: gradient rules by input; the key None means all inputs.
        flat: whether the derivative is zero everywhere: gradients stop there.
        quantizes: whether its integers stand for real numbers, so that gradients pass through them.
        written_out: expands the node into simpler operators, which have gradients.
        factors: the inputs that a contraction multiplies. Channels are summed over; one factor may be a weight.
        attends: whether it computes attention scores of queries and keys, whatever its factors are.
        macs: counts multiply-accumulates from the node, the shapes of its inputs and the shape of its first output,
            where the spec of the trace doesn't imply them.
        linear: returns a node with a weight as a linear map, see `onnxprune.operators.linear`; None for a node that
            isn't of that form.
        alike: how the output follows from the inputs, where that is linear and the same for every channel that they
            have in common: of the first one ("mean" if outputs are elements or means of them, so that a constant stays,
            else "data"), of one of the first two while the other has no channels there ("factor"), of all together
            ("sum"). Channels may then be mixed before it as well as behind it. A function tells it for a node.
        normalizes: what it divides its input by along the last axes, from its own axis on, before a scale and a shift:
            the root of the mean square, or the deviation from the mean, which it subtracts.
        weights: the inputs that are trained: weights, biases, scales and shifts.
        scale: the input that scales the normalized values, for a normalization.
        table: the input whose rows are looked up, as a product with one-hot rows would.
        zero_points: (data, zero point, axis) for each quantized input: the inputs' numbers, and the axis along which
            zero points differ.
        zero_bytes: returns the byte that stands for zeros in packed weights, by input, where it isn't 0.
        states: (input, output) for each state: where it goes in, and where the next one comes out.
        sizing: the inputs whose values set the output's size.
        picking: the inputs whose values say which elements of the others are output, or where they go.
        rounds: whether the state is rounded to 8 bits at every step, so that small errors become whole steps.
        reasons: why facets are missing, by facet.
    """

    name: str
    trace: Trace | None = None
    rewrite: Rewrite | None = None
    gradients: dict[int | None, Gradient] = field(default_factory=dict)
    flat: bool = False
    quantizes: bool = False
    written_out: WrittenOut | None = None
    factors: tuple[int, ...] = ()
    attends: bool = False
    macs: Count | None = None
    linear: Linear | None = None
    alike: Alike | Callable[[Node], Alike | None] | None = None
    normalizes: Literal["deviation", "mean square"] | None = None
    weights: tuple[int, ...] = ()
    scale: int | None = None
    table: int | None = None
    zero_points: tuple[tuple[int, int, int], ...] = ()
    zero_bytes: ZeroBytes | None = None
    states: tuple[tuple[int, int], ...] = ()
    sizing: tuple[int, ...] = ()
    picking: tuple[int, ...] = ()
    rounds: bool = False
    reasons: dict[Facet, str] = field(default_factory=dict)

    @property
    def contracts(self) -> bool:
        """Whether the operator sums products over channels."""
        return bool(self.factors)

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass through the operator, or are known to stop there."""
        return self.flat or bool(self.gradients) or self.written_out is not None

    def alike_at(self, node: Node) -> Alike | None:
        """Return how the output of a node follows from its inputs, see `alike`."""
        return self.alike(node) if callable(self.alike) else self.alike

    def gradient(self, index: int) -> Gradient | None:
        """Return the gradient rule for an input, or None."""
        return self.gradients.get(index) or self.gradients.get(None)


_CARDS: dict[str, Card] = {}


def _card(name: str) -> Card:
    return _CARDS.setdefault(name, Card(name))


def _names(operators: tuple[str, ...]) -> list[str]:
    return " ".join(operators).split()


def traces(*operators: str) -> Callable[[Trace], Trace]:
    """Register a function as the tracing rule of operators."""
    return _register(operators, "trace")


def rewrites(*operators: str) -> Callable[[Rewrite], Rewrite]:
    """Register a function as the rewriting rule of operators."""
    return _register(operators, "rewrite")


def written_out(*operators: str) -> Callable[[WrittenOut], WrittenOut]:
    """Register a function that expands operators into simpler ones, which have gradients."""
    return _register(operators, "written_out")


def gradient(*operators: str, of: int | None = 0) -> Callable[[Gradient], Gradient]:
    """Register the gradient with respect to input ``of`` of operators; None for all inputs.

    A rule gets the node and the gradient dy of its first output, and returns the gradient of the input. If the input
    was broadcast, the caller sums over the broadcast axes.
    """

    def register(rule: Gradient) -> Gradient:
        for name in _names(operators):
            _card(name).gradients[of] = rule
        return rule

    return register


def describe(*operators: str, reasons: Mapping[Facet, str] | None = None, **facts: Any) -> None:
    """Set facts of operators, see the attributes of `Card`, and the reasons of facets they lack."""
    for name in _names(operators):
        card = _card(name)
        card.reasons.update(reasons or {})
        for fact, value in facts.items():
            setattr(card, fact, value)


def flat(*operators: str) -> None:
    """Register operators whose derivative is zero everywhere: gradients stop there."""
    describe(*operators, flat=True)


def without(facet: Facet, reason: str, *operators: str) -> None:
    """Register why operators lack a facet."""
    describe(*operators, reasons={facet: reason})


def leave(reason: str, *operators: str) -> None:
    """Register operators as deliberately left alone: channels that touch them are pinned with this reason."""
    without("trace", reason, *operators)


def _register(operators: tuple[str, ...], facet: str) -> Callable[[_F], _F]:
    def register(rule: _F) -> _F:
        for name in _names(operators):
            setattr(_card(name), facet, rule)
        return rule

    return register


def operator_key(domain: str, op_type: str) -> str:
    """Return the name of an operator in the table."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}:{op_type}"


@cache
def cards() -> Mapping[str, Card]:
    """Return the whole table, with every family loaded."""
    package = import_module("onnxprune.operators")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return _CARDS


_UNKNOWN = Card("")


def card_of(domain: str, op_type: str) -> Card:
    """Return the card of an operator, an empty one if it is unknown."""
    return cards().get(operator_key(domain, op_type), _UNKNOWN)

"""The initializers to train: weights of contractions and normalizations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from onnx import ModelProto

from onnxprune.errors import PlanError
from onnxprune.model.bodies import is_body_input
from onnxprune.model.file import Weights, weights
from onnxprune.model.tape import REAL
from onnxprune.operators.card import card_of, operator_key
from onnxprune.recover.layers import LeftOut

_ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_NOT_VALUES: Mapping[str, Sequence[int]] = {"DequantizeLinear": (1, 2), "QuantizeLinear": (1, 2)}


def trainable(proto: ModelProto, *, freeze: Sequence[str] = (), also: Sequence[str] = ()) -> list[str]:
    """Return the initializers that training changes, in the model's order.

    These are the weights and biases of contractions and normalizations, also if other nodes transform them first, and
    vectors that are added or multiplied downstream of a contraction. Masks, position tables and preprocessing constants
    are only trained on request.

    Args:
        proto: a normalized model.
        freeze: patterns of initializers, or of nodes that read them, that aren't trained.
        also: patterns of further initializers to train.

    Raises:
        PlanError: a pattern matches nothing (OP304).
    """
    stored = weights(proto)
    found = _used_as_weights(proto, stored) | _matching(also, stored)
    for pattern in freeze:
        nodes = [n for n in proto.graph.node if fnmatchcase(n.name, pattern)]
        gone = _matching([pattern], stored, required=not nodes) | {name for node in nodes for name in node.input}
        found -= gone
    return [name for name in stored if name in found and stored.tensor(name).data_type in REAL]


def untrained(proto: ModelProto, trained: Iterable[str], unreached: Collection[str] = ()) -> tuple[LeftOut, ...]:
    """Return the layers with weights none of which is trained, with the reasons.

    Args:
        proto: the model as it is trained.
        trained: the initializers that training changes.
        unreached: those that no loss depends on.
    """
    stored = weights(proto)
    sources = _sources(proto, stored)
    changed, found = set(trained), list[LeftOut]()
    for node in proto.graph.node:
        card = card_of(node.domain, node.op_type)
        places = card.weights or card.factors
        own = set().union(*(sources.get(node.input[i], ()) for i in places if i < len(node.input)))
        if own and own.isdisjoint(changed) and any(name and name not in sources for name in node.input):
            floats = any(stored.tensor(name).data_type in REAL for name in own)
            reason = card.reasons.get("gradient") or ("it is frozen" if floats else "its weights are integers")
            reason = reason if own.isdisjoint(unreached) else "no loss depends on it"
            found.append(LeftOut(node.name, node.op_type, reason))
    return tuple(found)


def _used_as_weights(proto: ModelProto, stored: Weights) -> set[str]:
    sources = _sources(proto, stored)
    behind: set[str] = set()  # tensors downstream of a contraction
    found: set[str] = set()
    for node in proto.graph.node:
        key = operator_key(node.domain, node.op_type)
        given = [name for name in node.input if name]
        if given and all(name in sources for name in given) and not is_body_input(node):
            continue
        card = card_of(node.domain, node.op_type)
        places: Sequence[int] = card.weights if card.differentiable else ()
        if key in _ARITHMETIC and not behind.isdisjoint(given):
            places = [i for i, name in enumerate(node.input) if name in sources and _vectors(sources[name], stored)]
        for i, name in enumerate(node.input):
            if i in places and name in sources:
                found |= sources[name]
        if card.contracts or card.table is not None or not behind.isdisjoint(given):
            behind.update(filter(None, node.output))
    return {name for name in found if np.prod(stored.shape(name)) > 1}


def _sources(proto: ModelProto, stored: Weights) -> dict[str, set[str]]:
    """Return the initializers that each tensor is made of, for tensors computed from initializers alone."""
    sources = {name: {name} for name in stored}
    for node in proto.graph.node:
        given = [name for name in node.input if name]
        if given and all(name in sources for name in given) and not is_body_input(node):
            skipped = _NOT_VALUES.get(operator_key(node.domain, node.op_type), ())
            made = [sources[name] for i, name in enumerate(node.input) if name and i not in skipped]
            sources.update(dict.fromkeys(filter(None, node.output), set().union(*made)))
    return sources


def _vectors(names: Iterable[str], stored: Weights) -> bool:
    return all(is_vector(stored.shape(name)) for name in names)


def is_vector(shape: Sequence[int]) -> bool:
    """Whether all elements lie along one axis, as those of biases and parameters of normalizations do."""
    return int(np.prod(shape)) == max(shape, default=1)


def _matching(patterns: Iterable[str], stored: Weights, *, required: bool = True) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        names = {name for name in stored if fnmatchcase(name, pattern)}
        if not names and required:
            raise PlanError("OP304", f"the pattern {pattern!r} matches no weight", hint="see the command `inspect`")
        found |= names
    return found

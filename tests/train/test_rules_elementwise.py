"""Gradients of operators that act element by element."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.differences import Case, check

RNG = np.random.default_rng(7)
X = RNG.uniform(-2, 2, (3, 4, 5))
POSITIVE = RNG.uniform(0.3, 2, (3, 4, 5))
INSIDE = RNG.uniform(-0.9, 0.9, (3, 4, 5))

UNARY: dict[str, list[dict[str, object]]] = {
    **{
        name: [{}]
        for name in [
            "Abs",
            "Asinh",
            "Atan",
            "Cos",
            "Cosh",
            "Erf",
            "Exp",
            "Mish",
            "Neg",
            "Relu",
            "Sigmoid",
            "Sin",
            "Sinh",
            "Softplus",
            "Softsign",
            "Tanh",
        ]
    },
    "Celu": [{}, {"alpha": 0.7}],
    "Elu": [{}, {"alpha": 0.7}],
    "Gelu": [{}, {"approximate": "tanh"}],
    "HardSigmoid": [{}, {"alpha": 0.4, "beta": 0.3}],
    "HardSwish": [{}],
    "LeakyRelu": [{}, {"alpha": 0.3}],
    "Selu": [{}, {"alpha": 1.5, "gamma": 1.1}],
    "Shrink": [{"lambd": 0.6}],
    "Swish": [{}, {"alpha": 1.3}],
    "Tan": [{}],
    "ThresholdedRelu": [{"alpha": 0.4}],
}
DOMAINS = {"Acos": INSIDE, "Asin": INSIDE, "Atanh": INSIDE, "Tan": INSIDE, "Acosh": POSITIVE + 1}
DOMAINS |= dict.fromkeys(("Log", "Reciprocal", "Sqrt"), POSITIVE)
UNARY |= {name: [{}] for name in DOMAINS if name not in UNARY}
SCALES = {"HardSwish": 2.0, "HardSigmoid": 2.0}


@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary(name: str) -> None:
    opset = {"Gelu": 20, "Swish": 24}.get(name, 18)
    for attributes in UNARY[name]:
        x = DOMAINS.get(name, X) * SCALES.get(name, 1.0)
        check(Case(name, [x], attributes, opset=opset, runtime=name in ("Erf", "Gelu")))


SHAPES = [
    ((3, 4, 5), (3, 4, 5)),
    ((3, 4, 5), (4, 1)),
    ((5,), (3, 1, 5)),
    ((1,), (2, 3)),
    ((), (2, 2)),
    ((2, 1, 3), (1, 4, 1)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
def test_broadcasting(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(0.6, 1.6, shape) for shape in shapes)
    check(Case(name, [a, b], linear=name == "Mean"))


def test_more_operands() -> None:
    operands = [np.array(a) for a in ([[0.9, 0.2, 0.5], [0.1, 0.3, 0.8]], [0.6, 0.7, 0.4], [[0.55], [0.35]])]
    for name in ("Max", "Mean", "Min", "Sum"):
        check(Case(name, operands, linear=name == "Mean"))


def test_ties_are_shared() -> None:
    from tests.train.differences import found_gradients

    x = np.ones((2, 2))
    found = found_gradients(Case("Max", [x, x.copy()]), lambda i, shape: np.ones(shape))
    assert all((g == 0.5).all() for g in found.values())


def test_where_and_prelu() -> None:
    condition = RNG.random((3, 4, 1)) > 0.5
    check(Case("Where", [condition, X, RNG.uniform(-1, 1, (4, 5))]))
    check(Case("PRelu", [X, RNG.uniform(0.1, 0.5, (4, 1))]))


@pytest.mark.parametrize("bounds", [(-0.5, 0.7), (None, 0.7), (-0.5, None), (None, None)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    given = [None if b is None else np.array(b) for b in bounds]
    while given and given[-1] is None:
        given.pop()
    check(Case("Clip", [X, *given], of=[0]))


@pytest.mark.parametrize("name", ["Cast", "Identity", "Dropout"])
def test_what_passes(name: str) -> None:
    check(Case(name, [X], {"to": 1} if name == "Cast" else {}, linear=True))


def test_what_passes_to_the_first_operand() -> None:
    check(Case("CastLike", [X, np.float64([2.0])], of=[0], linear=True))
    check(Case("Mod", [X, np.float64([0.7])], {"fmod": 1}, of=[0]))


CONTRIB = {
    "BiasGelu": [X, RNG.uniform(-1, 1, 5)],
    "FastGelu": [X, RNG.uniform(-1, 1, 5)],
    "Gelu": [X],
    "QuickGelu": [X],
}


@pytest.mark.parametrize("name", sorted(CONTRIB))
def test_contrib(name: str) -> None:
    check(Case(f"com.microsoft:{name}", CONTRIB[name], runtime=True))

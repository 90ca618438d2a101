"""Every operator of the standard has a place in the table."""

from __future__ import annotations

from onnx import defs

from onnxprune.operators.registry import rules
from onnxprune.report.operators import operators


def test_every_operator_of_the_standard_is_listed_once() -> None:
    names = [o.name for o in operators()]
    assert len(names) == len(set(names))
    standard = {s.name for s in defs.get_all_schemas() if not s.domain and not s.deprecated}
    assert standard <= set(names)
    assert rules().keys() <= set(names)


def test_states() -> None:
    known = {o.name: o for o in operators()}
    assert known["Conv"].state == "rule"
    assert (known["Conv"].family, known["Conv"].rewrites) == ("contraction", True)
    assert known["Relu"].state == "rule"
    assert known["If"].state == "left alone"
    for operator in known.values():
        assert (operator.state == "unknown") == (operator.note is None)
        rule = rules().get(operator.name)
        assert (operator.state == "rule") == (rule is not None and rule.trace is not None)

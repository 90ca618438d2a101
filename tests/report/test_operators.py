"""Every operator of the standard has a place in the table."""

from __future__ import annotations

from onnx import defs

from benchmarks.operators import PAGE
from onnxprune.model.bodies import BODY_INPUTS
from onnxprune.operators.card import cards
from onnxprune.report.operators import count_states, markdown, operators


def test_every_operator_of_the_standard_is_listed_once() -> None:
    names = [o.name for o in operators()]
    assert len(names) == len(set(names))
    standard = {s.name for s in defs.get_all_schemas() if not s.domain and not s.deprecated}
    assert standard <= set(names)
    assert cards().keys() - {BODY_INPUTS} <= set(names)


def test_states() -> None:
    known = {o.name: o for o in operators()}
    assert sum(count_states(known.values()).values()) == len(known)
    assert known["Conv"].state == "rule"
    assert (known["Conv"].family, known["Conv"].rewrites) == ("convolution", True)
    assert known["Relu"].state == "rule"
    assert known["SequenceMap"].state == "left alone"
    for operator in known.values():
        assert (operator.state == "unknown") == (operator.note is None)
        card = cards().get(operator.name)
        assert (operator.state == "rule") == (card is not None and card.trace is not None)


def test_facets() -> None:
    known = {o.name: o for o in operators()}
    conv, relu, lstm = known["Conv"], known["Relu"], known["LSTM"]
    assert conv.counted and conv.trained and conv.repaired and conv.unrepaired is None
    assert relu.trained and not relu.counted and relu.unrepaired == "it has no weights"
    assert lstm.trained and lstm.counted and not lstm.repaired and "gates" in str(lstm.unrepaired)
    assert known["com.microsoft:FusedConv"].untrained
    for operator in known.values():
        if operator.state == "rule":
            assert operator.trained == (operator.untrained is None), operator.name
            assert operator.repaired == (operator.unrepaired is None), operator.name


def test_the_page_is_that_of_the_cards() -> None:
    assert PAGE.read_text() == markdown(operators()), "write it again: python -m benchmarks.operators"

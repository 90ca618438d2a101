"""Why channels are coupled or pinned, on networks where the answer is plain."""

from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.report.coupling import Axis, Location, Partner, explain_node, find_node, held_by
from onnxprune.report.index import Index
from tests.report.network import network
from tests.toolbox import Net, analyze


@pytest.fixture(scope="module")
def index() -> Index:
    return Index(analyze(network()))


def explained(index: Index, name: str) -> tuple[Axis, ...]:
    return explain_node(index, find_node(index, name))


def test_branches_are_coupled_over_the_sum(index: Index) -> None:
    output, given = explained(index, "left")
    assert output.role == "output"
    assert output.places == (Location("left_w", (0,)), Location("left_b", (0,)))
    (coupled,) = output.coupled
    assert (coupled.group.index, coupled.channels) == (1, 8)
    assert coupled.partners == (Partner("right", ("join",)),)
    assert not output.held
    assert given.role == "input"
    assert given.coupled[0].partners == (Partner("stem", ()),)


def test_pins_have_the_path_to_them(index: Index) -> None:
    output, _ = explained(index, "head")
    (held,) = output.held
    assert (held.pin.code, held.channels, held.path) == ("OP202", 10, ("shift",))
    channels = {axis.size: axis for axis in explained(index, "stem")}
    assert [h.pin.code for h in channels[3].held] == ["OP201"]
    assert channels[3].held[0].path == ()


def test_a_node_without_weights_is_explained_by_its_data(index: Index) -> None:
    (axis,) = explained(index, "join")
    assert axis.role == "input and output"
    assert {partner.node for partner in axis.coupled[0].partners} == {"left", "right"}


def test_a_node_without_channels() -> None:
    net = Net()
    image = net.input((1, 3, 8, 8))
    net.output(net.conv(net.op("Relu", image, name="first"), 4))
    index = Index(analyze(net.model()))
    assert explained(index, "first") == ()


def test_the_nearest_reason_comes_first() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 8, 3, name="stem")
    net.output(net.op("Sigmoid", x, name="near"))
    net.output(net.op("Add", x, net.conv(net.op("Softmax", x, axis=1, name="far"), 8), name="sum"))
    index = Index(analyze(net.model()))
    held = next(axis for axis in explained(index, "stem") if axis.size == 8).held
    assert {"OP202", "OP204"} <= {h.pin.code for h in held}
    assert [len(h.path) for h in held] == sorted(len(h.path) for h in held)


def test_everything_that_a_code_pins(index: Index) -> None:
    found = [(axis.nodes, axis.place, axis.channels, axis.size) for axis in held_by(index, "OP202")]
    assert found == [
        (("head",), Location("head_w", (1,)), 10, 10),
        (("shift",), Location("shift_b", (0,)), 10, 10),
    ]
    assert not list(held_by(index, "OP205"))


def test_names_may_be_patterns(index: Index) -> None:
    assert find_node(index, "st*m").name == "stem"
    with pytest.raises(UsageError, match=r"OP606.*2 nodes match"):
        find_node(index, "[lr]*t")


def test_unknown_names_get_a_suggestion(index: Index) -> None:
    with pytest.raises(UsageError, match=r"OP606[\s\S]*did you mean stem or shift\?"):
        find_node(index, "stme")

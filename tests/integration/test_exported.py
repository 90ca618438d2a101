"""Networks that PyTorch's two exporters write: every layer is reached, the groups are the same, pruning is proved."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from onnxprune.settings.planning import Attention
from tests.integration.checks import analyzed, assert_no_rule_failed, assert_prunes, footprints, unreached
from tests.integration.conftest import Export
from tests.toolbox import run_once

pytest.importorskip("torch")

from tests.zoo.catalog import NETWORKS
from tests.zoo.export import EXPORTERS

pytestmark = pytest.mark.dev


MODES: list[tuple[str, Attention]] = [
    *((name, "heads") for name in NETWORKS),
    *((name, "width") for name, network in NETWORKS.items() if network.attention),
]
GROUPS = Path(__file__).with_name("groups.txt")


@pytest.mark.parametrize("name,mode", MODES)
def test_layers_are_reached_alike(exported: Export, name: str, mode: Attention) -> None:
    """All layers can be made smaller, and both exporters' models have the same groups."""
    network = NETWORKS[name]
    found = []
    for exporter in EXPORTERS:
        graph = analyzed(exported(name, exporter), network.shapes(network.sizes), mode).graph
        assert_no_rule_failed(graph)
        assert set(unreached(graph)) == set(network.unreached), exporter
        found.append(Counter(footprints(graph)))
    assert (found[0] == found[1]) == (network.apart is None), [found[0] - found[1], found[1] - found[0]]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name,mode", MODES)
def test_groups_do_not_depend_on_sizes(exported: Export, name: str, mode: Attention, exporter: str) -> None:
    """A trace at other sizes, or at those that the package chooses itself, finds the same."""
    network, model = NETWORKS[name], exported(name, exporter)
    expected = footprints(analyzed(model, network.shapes(network.sizes), mode).graph)
    assert footprints(analyzed(model, network.shapes(network.other_sizes(exporter)), mode).graph) == expected
    if exporter not in network.baked:
        assert footprints(analyzed(model, None, mode).graph) == expected


# Each exporter's models go to one of the budgets, and to the other one in the long run of the tests.
@pytest.mark.parametrize(
    "exporter,budget",
    [
        ("dynamo", "macs"),
        ("torchscript", "ratio"),
        pytest.param("dynamo", "ratio", marks=pytest.mark.slow),
        pytest.param("torchscript", "macs", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name,mode", MODES)
def test_pruned_is_proved(exported: Export, name: str, mode: Attention, exporter: str, budget: str) -> None:
    network, model = NETWORKS[name], exported(name, exporter)
    elsewhere = network.draw(network.other_sizes(exporter), seed=2)
    run_once(model, elsewhere)  # or it is the exporter's fault
    analysis = analyzed(model, network.shapes(network.sizes), mode)
    assert_prunes(analysis, budget, network.draw(network.sizes, seed=1), elsewhere)


OPSETS = [
    ("bert", "torchscript", 11, ()),
    ("llama", "dynamo", 23, ("RMSNormalization",)),
    ("lstm_tagger", "torchscript", 9, ()),
    ("many_ends", "torchscript", 9, ()),
    ("resnet_group_norm", "dynamo", 23, ("GroupNormalization",)),
    ("super_resolution", "torchscript", 9, ("Upsample",)),
    ("swin", "torchscript", 13, ()),
    ("vit_scaled", "dynamo", 23, ("Attention",)),
]


@pytest.mark.slow
@pytest.mark.parametrize("name,exporter,opset,operators", OPSETS)
def test_other_opsets(exported: Export, name: str, exporter: str, opset: int, operators: tuple[str, ...]) -> None:
    """Older and newer spellings of the same networks."""
    network, model = NETWORKS[name], exported(name, exporter, opset)
    assert set(operators) <= {node.op_type for node in model.graph.node}
    analysis = analyzed(model, network.shapes(network.sizes))
    assert_no_rule_failed(analysis.graph)
    assert set(unreached(analysis.graph)) == set(network.unreached)
    elsewhere = network.draw(network.other_sizes(exporter), seed=2)
    assert_prunes(analysis, "macs", network.draw(network.sizes, seed=1), elsewhere)


def test_groups_are_those_known(exported: Export, update: bool) -> None:
    """A snapshot against over-coupling: what leaves together in each network, as torch.export writes it."""
    lines = []
    for name, mode in MODES:
        network = NETWORKS[name]
        graph = analyzed(exported(name, "dynamo"), network.shapes(network.sizes), mode).graph
        lines.append(f"{name} {mode} | " + " | ".join(footprints(graph)))
    if update:
        GROUPS.write_text("\n".join(lines) + "\n")
    assert lines == GROUPS.read_text().splitlines()

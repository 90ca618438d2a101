"""Networks that PyTorch's two exporters write: every layer is reached, the groups are the same, pruning is proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto

from tests.integration.checks import (
    BUDGETS,
    analysed,
    assert_no_rule_failed,
    assert_prunes,
    footprints,
    unreached,
)
from tests.toolbox import run_once

pytest.importorskip("torch")

from tests.zoo.catalogue import NETWORKS  # noqa: E402
from tests.zoo.export import EXPORTERS  # noqa: E402

pytestmark = pytest.mark.dev

Export = Callable[[str, str], ModelProto]

MODES = [(name, mode) for name, n in NETWORKS.items() for mode in (("heads", "width") if n.attention else ("heads",))]
GROUPS = Path(__file__).with_name("groups.txt")


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name,mode", MODES)
def test_layers_are_reached(exported: Export, name: str, mode: str, exporter: str) -> None:
    network = NETWORKS[name]
    graph = analysed(exported(name, exporter), network.shapes(network.sizes), mode).graph
    assert_no_rule_failed(graph)
    assert set(unreached(graph)) == set(network.unreached)


@pytest.mark.parametrize("name,mode", MODES)
def test_exporters_agree(exported: Export, name: str, mode: str) -> None:
    network = NETWORKS[name]
    found = [
        Counter(footprints(analysed(exported(name, e), network.shapes(network.sizes), mode).graph)) for e in EXPORTERS
    ]
    assert (found[0] == found[1]) == (network.apart is None), [found[0] - found[1], found[1] - found[0]]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name,mode", MODES)
def test_pruned_is_proved(exported: Export, name: str, mode: str, exporter: str, budget: str) -> None:
    network, model = NETWORKS[name], exported(name, exporter)
    elsewhere = network.draw(network.other_sizes(exporter), seed=2)
    run_once(model, elsewhere)  # or it is the exporter's fault
    analysis = analysed(model, network.shapes(network.sizes), mode)
    assert_prunes(analysis, budget, network.draw(network.sizes, seed=1), elsewhere)


def test_groups_are_those_known(exported: Export, update: bool) -> None:
    """A snapshot against over-coupling: what leaves together in each network, as torch.export writes it."""
    lines = []
    for name, mode in MODES:
        network = NETWORKS[name]
        graph = analysed(exported(name, "dynamo"), network.shapes(network.sizes), mode).graph
        lines.append(f"{name} {mode} | " + " | ".join(footprints(graph)))
    if update:
        GROUPS.write_text("\n".join(lines) + "\n")
    assert lines == GROUPS.read_text().splitlines()

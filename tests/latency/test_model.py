"""The model of a network's time: shapes against those of `PrunedGraph`, fits against SciPy and known laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.latency import search as search_module
from onnxprune.latency.model import NetworkModel, fit_rates
from onnxprune.latency.probe import probe_configs
from onnxprune.latency.search import search
from onnxprune.latency.widths import Config, full_width, narrowest, removal
from onnxprune.latency.work import LayerWork, Sizes, tensors_of, works
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.latency.networks import candidates_of, residual


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


class Network:
    """A traced network with all that its model needs."""

    def __init__(self) -> None:
        self.graph = residual()
        self.candidates = candidates_of(self.graph)
        self.fixed = np.zeros(len(self.graph.pinned), dtype=bool)
        self.sizes = Sizes(self.graph, self.candidates, self.fixed, tensors_of(self.graph.proto))
        self.works = works(self.graph.proto, self.graph.shapes, self.sizes)
        self.counts = [len(c) for c in self.candidates]

    def fit(self, law: Callable[[LayerWork, Config], float], seed: int = 0) -> NetworkModel:
        configs = probe_configs(self.counts, seed)
        seconds = np.array([[law(work, config) for work in self.works] for config in configs])
        return NetworkModel(self.works, self.sizes, configs, seconds, self.counts)

    def linear(self, work: LayerWork, config: Config) -> float:
        return 2e-6 + 1e-11 * work.macs(self.sizes, config) + 1e-10 * work.traffic(self.sizes, config)

    def random_configs(self, count: int) -> list[Config]:
        rng = np.random.default_rng(9)
        return [np.array([rng.integers(n) for n in self.counts]) for _ in range(count)]


class TestSizes:
    def test_as_in_the_pruned_graph(self, network: Network) -> None:
        for config in network.random_configs(10):
            kept = PrunedGraph(network.graph, removal(network.candidates, config, network.fixed))
            for name in tensors_of(network.graph.proto):
                assert network.sizes.shape(name, config) == kept.shape(name)

    def test_a_joint_depends_on_both_branches(self, network: Network) -> None:
        joint = next(w for w in network.works if w.name == "joint")
        assert len(joint.groups) == 3

    def test_signatures_depend_on_shapes(self, network: Network) -> None:
        first, second = (next(w for w in network.works if w.name == name) for name in ("a1", "b1"))
        whole = full_width(network.candidates)
        assert first.signature(network.sizes, whole) == second.signature(network.sizes, whole)
        assert first.signature(network.sizes, narrowest(network.candidates)) != first.signature(network.sizes, whole)


class TestFit:
    def test_rates_against_scipy(self) -> None:
        optimize = pytest.importorskip("scipy.optimize")
        for seed in range(20):
            rng = np.random.default_rng(seed)
            features = np.stack([np.ones(15), *rng.uniform(0, 1e9, (2, 15))], axis=1)
            seconds = rng.uniform(1e-6, 1e-3, 15)
            relative = features / seconds[:, None] / np.abs(features / seconds[:, None]).max(axis=0)
            _, residual_norm = optimize.nnls(relative, np.ones(15))
            rates = fit_rates(features, seconds)
            assert (rates >= 0).all()
            assert np.linalg.norm(features @ rates / seconds - 1) == pytest.approx(residual_norm, rel=1e-6)

    def test_a_linear_law_is_found(self, network: Network) -> None:
        model = network.fit(network.linear)
        for config in network.random_configs(10):
            assert model(config) == pytest.approx(sum(network.linear(w, config) for w in network.works), rel=1e-3)

    def test_a_constant_that_no_layer_takes(self, network: Network) -> None:
        """What profiling adds to every layer is found from the whole; a whole that was disturbed says nothing."""
        plain = network.fit(network.linear)
        whole = full_width(network.candidates)
        configs = probe_configs(network.counts, 0)
        profiled = np.array([[network.linear(w, s) + 4e-6 for w in network.works] for s in configs])
        model = NetworkModel(network.works, network.sizes, configs, profiled, network.counts, [(whole, plain(whole))])
        for config in network.random_configs(10):
            assert model(config) == pytest.approx(plain(config), rel=0.02)
        slow = [
            np.array([[network.linear(w, s) for w in network.works] for s in configs]),
            network.counts,
            [(whole, 9.0)],
        ]
        assert NetworkModel(network.works, network.sizes, configs, *slow)(whole) == pytest.approx(plain(whole))

    def test_step_effects_are_fitted(self, network: Network) -> None:
        """A level that is slow in every layer, whatever the other groups have, is known as slow."""
        slow = 1  # of the first group

        def law(work: LayerWork, config: Config) -> float:
            return network.linear(work, config) * (1.5 if 0 in work.groups and config[0] == slow else 1.0)

        model = network.fit(law)
        off = []
        for config in network.random_configs(20):
            config[0] = slow
            true = sum(law(w, config) for w in network.works)
            plain = sum(network.linear(w, config) for w in network.works)
            off.append(abs(model(config) - true) / (true - plain))
        assert np.mean(off) < 0.5  # of the step, where a straight line would miss all of it


class TestSearch:
    def test_within_reach_of_the_best(self) -> None:
        """All configurations of a small network, tried one by one."""
        network = Network()
        network.candidates = [c for c in network.candidates if len(c) > 1][:4]
        network.counts = [len(c) for c in network.candidates]
        network.sizes = Sizes(network.graph, network.candidates, network.fixed, tensors_of(network.graph.proto))
        network.works = works(network.graph.proto, network.graph.shapes, network.sizes)
        model = network.fit(network.linear)
        whole = full_width(network.candidates)
        for share in (0.5, 0.7, 0.9):
            budget = share * model(whole)
            if model(narrowest(network.candidates)) > budget:
                continue
            found = search(model, network.candidates, budget)
            assert found is not None and model(found) <= budget
            everything = (np.array(s) for s in np.ndindex(*network.counts))
            best = max(self.value(network, s) for s in everything if model(s) <= budget)
            assert self.value(network, found) >= best - 0.05 * abs(best)

    @staticmethod
    def value(network: Network, config: Config) -> float:
        return float(sum(c.values[i] for c, i in zip(network.candidates, config, strict=True)))

    def test_out_of_reach(self, network: Network) -> None:
        assert search(network.fit(network.linear), network.candidates, 1e-9) is None

    def test_slow_steps_are_skipped(self, network: Network) -> None:
        """A count that is no faster than the next larger one is never chosen."""

        def law(work: LayerWork, config: Config) -> float:
            stepped = config.copy()
            stepped[stepped % 2 == 1] -= 1  # odd candidates take the time of the next wider one
            return network.linear(work, stepped)

        model = network.fit(law)
        whole = full_width(network.candidates)
        found = search(model, network.candidates, 0.6 * model(whole))
        assert found is not None and (found % 2 == 1).mean() < 0.35


def test_widths_that_save_no_time_are_not_chosen() -> None:
    """Two groups; in the second, 12 channels take as long as 16, and 24 longer than 32, as blocks of 16 do."""
    costs = [np.array([10.0, 8.0, 6.0, 4.0]), np.array([10.0, 11.0, 6.0, 6.0, 3.0])]

    class Model:
        def __call__(self, config: Config) -> float:
            return float(sum(own[width] for own, width in zip(costs, config.tolist(), strict=True)))

    def widened(*config: int) -> list[int]:
        return search_module._widened(Model(), [None, None], np.array(config)).tolist()  # type: ignore

    assert widened(0, 1) == [0, 0] and widened(2, 3) == [2, 2]
    assert widened(3, 4) == [3, 4] and widened(1, 2) == [1, 2], "and others stay"


def test_probes_see_every_width() -> None:
    configs = np.stack(probe_configs([4, 9, 1, 6], seed=0))
    for group, count in enumerate([4, 9, 1, 6]):
        assert set(configs[:, group].tolist()) == set(range(count))

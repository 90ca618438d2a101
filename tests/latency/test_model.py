"""The model of a network's time: shapes against those that `PrunedGraph` tells, fits against SciPy and known laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.latency.model import NetworkModel, fit_rates
from onnxprune.latency.probe import probe_states
from onnxprune.latency.rungs import State, removal
from onnxprune.latency.search import deepest, search
from onnxprune.latency.sizes import Sizes
from onnxprune.latency.work import Work, tensors_of, works
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.latency.networks import choices_of, residual


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


class Network:
    """A traced network with all that its model needs."""

    def __init__(self) -> None:
        self.graph = residual()
        self.choices = choices_of(self.graph)
        self.fixed = np.zeros(len(self.graph.pinned), dtype=bool)
        self.sizes = Sizes(self.graph, self.choices, self.fixed, tensors_of(self.graph.proto))
        self.works = works(self.graph.proto, self.graph.shapes, self.sizes)
        self.rungs = [len(c) for c in self.choices]

    def fit(self, law: Callable[[Work, State], float], seed: int = 0) -> NetworkModel:
        states = probe_states(self.rungs, seed)
        seconds = np.array([[law(work, state) for work in self.works] for state in states])
        return NetworkModel(self.works, self.sizes, states, seconds, self.rungs)

    def linear(self, work: Work, state: State) -> float:
        return 2e-6 + 1e-11 * work.macs(self.sizes, state) + 1e-10 * work.traffic(self.sizes, state)

    def random_states(self, count: int) -> list[State]:
        rng = np.random.default_rng(9)
        return [np.array([rng.integers(n) for n in self.rungs]) for _ in range(count)]


class TestSizes:
    def test_as_kept_tells_them(self, network: Network) -> None:
        for state in network.random_states(10):
            kept = PrunedGraph(network.graph, removal(network.choices, state, network.fixed))
            for name in tensors_of(network.graph.proto):
                assert network.sizes.shape(name, state) == kept.shape(name)

    def test_a_joint_depends_on_both_branches(self, network: Network) -> None:
        joint = next(w for w in network.works if w.name == "joint")
        assert len(joint.choices) == 3

    def test_signatures_tell_shapes(self, network: Network) -> None:
        first, second = (next(w for w in network.works if w.name == name) for name in ("a1", "b1"))
        whole = np.zeros(len(network.choices), dtype=np.int64)
        assert first.signature(network.sizes, whole) == second.signature(network.sizes, whole)
        assert first.signature(network.sizes, deepest(network.choices)) != first.signature(network.sizes, whole)


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
        for state in network.random_states(10):
            assert model(state) == pytest.approx(sum(network.linear(w, state) for w in network.works), rel=1e-3)

    def test_a_constant_that_no_layer_takes(self, network: Network) -> None:
        """What profiling adds to every layer is found from the whole; a whole that was disturbed says nothing."""
        plain = network.fit(network.linear)
        whole = np.zeros(len(network.choices), dtype=np.int64)
        states = probe_states(network.rungs, 0)
        profiled = np.array([[network.linear(w, s) + 4e-6 for w in network.works] for s in states])
        model = NetworkModel(network.works, network.sizes, states, profiled, network.rungs, [(whole, plain(whole))])
        for state in network.random_states(10):
            assert model(state) == pytest.approx(plain(state), rel=0.02)
        slow = [
            np.array([[network.linear(w, s) for w in network.works] for s in states]),
            network.rungs,
            [(whole, 9.0)],
        ]
        assert NetworkModel(network.works, network.sizes, states, *slow)(whole) == pytest.approx(plain(whole))

    def test_a_staircase_is_told(self, network: Network) -> None:
        """A rung that is slow in every layer, whatever the other groups have, is known as slow."""
        slow = 1  # of the first choice

        def law(work: Work, state: State) -> float:
            return network.linear(work, state) * (1.5 if 0 in work.choices and state[0] == slow else 1.0)

        model = network.fit(law)
        off = []
        for state in network.random_states(20):
            state[0] = slow
            true = sum(law(w, state) for w in network.works)
            plain = sum(network.linear(w, state) for w in network.works)
            off.append(abs(model(state) - true) / (true - plain))
        assert np.mean(off) < 0.5  # of the step, where a straight line would miss all of it


class TestSearch:
    def test_within_reach_of_the_best(self) -> None:
        """All states of a small network, tried one by one."""
        network = Network()
        network.choices = [c for c in network.choices if len(c) > 1][:4]
        network.rungs = [len(c) for c in network.choices]
        network.sizes = Sizes(network.graph, network.choices, network.fixed, tensors_of(network.graph.proto))
        network.works = works(network.graph.proto, network.graph.shapes, network.sizes)
        model = network.fit(network.linear)
        whole = np.zeros(len(network.choices), dtype=np.int64)
        for share in (0.5, 0.7, 0.9):
            budget = share * model(whole)
            if model(deepest(network.choices)) > budget:
                continue
            found = search(model, network.choices, budget)
            assert found is not None and model(found) <= budget
            everything = (np.array(s) for s in np.ndindex(*network.rungs))
            best = max(self.value(network, s) for s in everything if model(s) <= budget)
            assert self.value(network, found) >= best - 0.05 * abs(best)

    @staticmethod
    def value(network: Network, state: State) -> float:
        return float(sum(c.values[i] for c, i in zip(network.choices, state, strict=True)))

    def test_out_of_reach(self, network: Network) -> None:
        assert search(network.fit(network.linear), network.choices, 1e-9) is None

    def test_slow_steps_are_skipped(self, network: Network) -> None:
        """A count that is no faster than the next larger one is never chosen."""

        def law(work: Work, state: State) -> float:
            stepped = state.copy()
            stepped[stepped % 2 == 1] -= 1  # odd rungs take the time of the rung above
            return network.linear(work, stepped)

        model = network.fit(law)
        whole = np.zeros(len(network.choices), dtype=np.int64)
        found = search(model, network.choices, 0.6 * model(whole))
        assert found is not None and (found % 2 == 1).mean() < 0.35


def test_probes_see_every_rung() -> None:
    states = np.stack(probe_states([4, 9, 1, 6], seed=0))
    for choice, count in enumerate([4, 9, 1, 6]):
        assert set(states[:, choice].tolist()) == set(range(count))

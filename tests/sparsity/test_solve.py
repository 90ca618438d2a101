"""Masks and solutions of one layer, against loops over single weights and direct least squares."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from onnx import helper

from onnxprune.errors import PlanError
from onnxprune.operators.linear import ConvolutionLayer, LinearLayer, ProductLayer, TransposedLayer
from onnxprune.recover import lstsq
from onnxprune.recover.columns import quadratic
from onnxprune.recover.lstsq import Mask, Moments, Rows, constrained, reconstruct
from onnxprune.settings.sparsity import Pattern, SparsifySettings
from onnxprune.sparsity.patterns import choose, misfit
from onnxprune.sparsity.solve import RIDGE, Way, alternate, solve, sweep

NODE = helper.make_node("Conv", ["x", "w"], ["y"])


def convolution(groups: int = 1, kernel: tuple[int, ...] = (3, 3)) -> LinearLayer:
    return ConvolutionLayer(NODE, "x", "w", None, groups, kernel)


def samples(features: int, outputs: int, seed: int = 0, groups: int = 1) -> tuple[Rows, Rows, Rows]:
    """Return weights, correlated inputs and the outputs of these weights on slightly other inputs."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(groups, outputs, features + 1))
    mixed = rng.normal(size=(600, groups, features)) @ rng.normal(size=(features, features))
    inputs = np.maximum(mixed, 0) + 0.1
    clean = inputs + 0.05 * rng.normal(size=inputs.shape)
    ones = np.ones((*clean.shape[:2], 1))
    targets = np.einsum("ngf,gof->ngo", np.concatenate([clean, ones], axis=2), weights)
    return weights, inputs, targets.reshape(len(targets), -1)


def moments(inputs: Rows, targets: Rows) -> Moments:
    found = Moments()
    found.add(inputs, targets)
    return found


class TestPatterns:
    @pytest.mark.parametrize("layer", [convolution(), convolution(2), TransposedLayer(NODE, "x", "w", None, 2, (3, 3))])
    @pytest.mark.parametrize(("text", "keep", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
    def test_runs_are_along_the_channels_of_a_tap(self, layer: LinearLayer, text: str, keep: int, of: int) -> None:
        inputs, outputs = 16, 6
        transposed = isinstance(layer, TransposedLayer)
        shape = (inputs, outputs // layer.groups, 3, 3) if transposed else (outputs, inputs // layer.groups, 3, 3)
        weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        matrix = layer.matrix(weight)
        stored = layer.weight_of(np.where(choose(Pattern.read(text), matrix**2, 0.0, 9), matrix, 0.0), weight)
        own = inputs // layer.groups
        for o in range(outputs):
            for at in np.ndindex(3, 3):
                group = o // (outputs // layer.groups)
                there = slice(group * own, (group + 1) * own), o % (outputs // layer.groups), *at
                column = stored[there] if transposed else stored[(o, slice(None), *at)]
                before = weight[there] if transposed else weight[(o, slice(None), *at)]
                for first in range(0, own, of):
                    run = np.flatnonzero(column[first : first + of])
                    largest = np.argsort(-np.abs(before[first : first + of]))[:keep]
                    assert sorted(run) == sorted(largest)
        assert np.array_equal(stored[stored != 0], weight[stored != 0])

    def test_unstructured_keeps_the_largest(self) -> None:
        scores = np.random.default_rng(2).random((2, 5, 12))
        mask = choose(Pattern(), scores, 0.7, 4)
        assert (~mask).sum() == round(0.7 * scores.size)
        assert scores[mask].min() > scores[~mask].max()

    def test_blocks_go_by_their_sums(self) -> None:
        layer, rng = ProductLayer(NODE, "x", "w", None, transposed=True), np.random.default_rng(3)
        weight = rng.normal(size=(4, 6))
        mask = choose(Pattern.read("block-2x3"), layer.matrix(weight) ** 2, 0.5)[0]
        sums = {(i, j): (weight[i : i + 2, j : j + 3] ** 2).sum() for i in (0, 2) for j in (0, 3)}
        worst = sorted(sums, key=lambda cell: sums[cell])[:2]
        for i, j in sums:
            assert (~mask[i : i + 2, j : j + 3]).all() == ((i, j) in worst)
            assert mask[i : i + 2, j : j + 3].all() == ((i, j) not in worst)

    def test_what_does_not_fit_has_a_reason(self) -> None:
        assert misfit(Pattern.read("2:4"), convolution(), (8, 6, 3, 3)) == "its 6 input channels aren't a multiple of 4"
        depthwise = misfit(Pattern.read("2:4"), convolution(8), (8, 1, 3, 3))
        assert depthwise == "its 1 input channels of a group aren't a multiple of 4"
        assert misfit(Pattern.read("block-4x1"), convolution(), (6, 8, 3, 3)) == "its 6 outputs aren't a multiple of 4"
        assert misfit(Pattern.read("2:4"), convolution(), (8, 8, 3, 3)) is None
        assert misfit(Pattern(), convolution(8), (8, 1, 3, 3)) is None

    @pytest.mark.parametrize("text", ["2:2", "0:4", "4:2", "2:4 ", "block-0x2", "block-2", "", "2:4:8", "99999:100000"])
    def test_wrong_ones_are_refused(self, text: str) -> None:
        with pytest.raises(PlanError, match="is not a pattern of zeros") as error:
            SparsifySettings(pattern=text)  # type: ignore[arg-type]
        assert error.value.code == "OP303"

    def test_settings_that_contradict_each_other_are_refused(self) -> None:
        for wrong in (
            {"pattern": "2:4", "sparsity": 0.6},
            {"method": "obs"},
            {"recover": "none"},
            {"limit": 3},
            {"allocation": "reconstruction"},
        ):
            with pytest.raises(PlanError) as error:
                from onnxprune.settings import build

                build(SparsifySettings, wrong)
            assert error.value.code == "OP302"


def directly(inputs: Rows, targets: Rows, start: Rows, mask: Mask, ridge: float) -> Rows:
    """Return the least squares of one group with zeros, by the samples themselves, one output after the other."""
    scale = ridge * (inputs**2).sum(axis=0).mean()
    found = np.zeros_like(start)
    for o, own in enumerate(mask):
        free = np.flatnonzero(own[:-1])
        rows = [np.column_stack([inputs[:, free], np.ones(len(inputs))])]
        rows.append(np.sqrt(scale) * np.eye(len(free), len(free) + 1))
        goal = np.concatenate([targets[:, o], np.sqrt(scale) * start[o, free]])
        solution = np.linalg.lstsq(np.concatenate(rows), goal, rcond=None)[0]
        found[o, free], found[o, -1] = solution[:-1], solution[-1]
    return found


class TestSolutions:
    def test_with_a_mask_it_is_least_squares_over_what_stays(self) -> None:
        weights, inputs, targets = samples(10, 4)
        mask = np.random.default_rng(1).random(weights.shape) < 0.4
        mask[..., -1] = True
        found = moments(inputs, targets).solve(weights, 1e-3, mask)
        wanted = directly(inputs[:, 0], targets, weights[0], mask[0], 1e-3)
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-6)
        assert not found[~mask].any()
        free = moments(inputs, targets).solve(weights, 1e-3)
        assert np.abs(np.where(mask, free, 0.0)[0] - wanted).max() > 0.01  # the control: zeros alone aren't it

    def test_groups_are_solved_apart(self) -> None:
        weights, inputs, targets = samples(6, 3, groups=2)
        mask = np.random.default_rng(2).random(weights.shape) < 0.5
        mask[..., -1] = True
        found = moments(inputs, targets).solve(weights, 1e-2, mask)
        for g in range(2):
            wanted = directly(inputs[:, g], targets[:, 3 * g : 3 * g + 3], weights[g], mask[g], 1e-2)
            np.testing.assert_allclose(found[g], wanted, rtol=1e-5, atol=1e-6)

    def test_the_ridge_is_chosen_on_samples_held_back(self) -> None:
        weights, inputs, targets = samples(12, 3)
        mask = np.random.default_rng(3).random(weights.shape) < 0.5
        mask[..., -1] = True
        fitted, held = moments(inputs[:15], targets[:15]), moments(inputs[15:], targets[15:])
        found = reconstruct(fitted, held, weights, mask)
        assert not found[~mask].any()
        tried = [fitted.solve(weights, ridge, mask) for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
        assert held.error(found) == min(map(held.error, [*tried, np.where(mask, weights, 0.0)]))

    def test_a_sweep_makes_up_for_what_left_before(self) -> None:
        """With the first columns gone, what is left must be the exact constrained minimum."""
        weights, inputs, targets = samples(9, 3)
        goal, curvature = quadratic(moments(inputs, targets), weights, RIDGE)
        goal[..., :4] *= 1e-3
        mask, found = sweep(Pattern(), 4 / 9, goal, curvature, 1)
        assert not mask[..., :4].any() and mask[..., 4:].all()
        wanted = constrained(curvature, goal @ curvature, mask)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
        assert np.abs(found - np.where(mask, goal, 0.0)).max() > 1e-6  # the control

    @pytest.mark.parametrize("find", [sweep, alternate])
    @pytest.mark.parametrize("text", ["unstructured", "2:4", "block-1x2"])
    def test_both_keep_the_pattern_and_its_taps(self, find: object, text: str) -> None:
        weights, inputs, targets = samples(36, 4)
        goal, curvature = quadratic(moments(inputs, targets), weights, RIDGE)
        pattern = Pattern.read(text)
        mask, found = find(pattern, 0.5, goal, curvature, 9)  # type: ignore[operator]
        assert not found[~mask].any() and abs(np.mean(~mask) - 0.5) < 0.03
        again = choose(pattern, mask.astype(float), 0.5, 9)
        assert np.array_equal(again, mask)

    def test_the_alternation_comes_near_the_best_subset(self) -> None:
        better = []
        for seed in range(6):
            weights, inputs, targets = samples(8, 1, seed)
            goal, curvature = quadratic(moments(inputs, targets), weights, RIDGE)

            def error(mask: Mask, goal: Rows = goal, curvature: Rows = curvature) -> float:
                apart = constrained(curvature, goal @ curvature, mask) - goal
                return float(np.einsum("gof,gfh,goh->", apart, curvature, apart))

            masks = []
            for free in combinations(range(8), 4):
                masks.append(np.zeros((1, 1, 8), dtype=bool))
                masks[-1][..., list(free)] = True
            errors = sorted(map(error, masks))
            found = error(alternate(Pattern(), 0.5, goal, curvature, 1)[0])
            assert errors[0] <= found * (1 + 1e-9)  # nothing beats all subsets
            better.append(np.searchsorted(errors, found * (1 - 1e-9)) / len(errors))
        assert np.mean(better) < 0.1  # among the best tenth

    @pytest.mark.parametrize("method", ["magnitude", "wanda", "obs", "alternating"])
    def test_every_method_can_be_solved_and_intercepts_stay(self, method: str) -> None:
        weights, inputs, targets = samples(16, 4)
        layer, fitted = ProductLayer(NODE, "x", "w", None), moments(inputs, targets)
        plain, solved = (
            solve(Way(method, Pattern(), repair), 0.5, layer, fitted, fitted, weights)  # type: ignore[arg-type]
            for repair in (False, True)
        )
        assert fitted.error(solved) < fitted.error(plain) or method in ("obs", "alternating")
        assert (solved[..., :-1] == 0).sum() == 32 and solved[..., -1].all()
        if method in ("magnitude", "wanda"):
            kept = plain[..., :-1] != 0
            assert np.array_equal(plain[..., :-1][kept], weights[..., :-1][kept])

    def test_wanda_weighs_by_inputs(self) -> None:
        weights, inputs, targets = samples(8, 2)
        weights[..., :-1] = np.sign(weights[..., :-1])  # magnitude alone couldn't tell
        inputs = inputs * np.arange(1, 9)
        found = solve(
            Way("wanda", Pattern(), False), 0.5, convolution(kernel=()), moments(inputs, targets), None, weights
        )
        power = (inputs[:, 0] ** 2).sum(axis=0)
        assert set(np.flatnonzero(found[0, 0, :-1])) == set(np.argsort(-power)[:4])

    def test_too_many_weights_are_left_as_they_were_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then only the intercepts make up for the mean error."""
        weights, inputs, targets = samples(10, 4)
        way, fitted = Way("obs", Pattern(), True), moments(inputs, targets)
        chosen = solve(replace(way, repair=False), 0.5, convolution(kernel=()), fitted, fitted, weights)
        monkeypatch.setattr(lstsq, "_LARGEST", 1.0)
        found = solve(way, 0.5, convolution(kernel=()), fitted, fitted, weights)
        assert np.array_equal(found[..., :-1], chosen[..., :-1])
        ones = np.concatenate([inputs[:, 0], np.ones((len(inputs), 1))], axis=1)
        np.testing.assert_allclose((ones @ found[0].T - targets).mean(axis=0), 0, atol=1e-6)
        assert np.abs((ones @ chosen[0].T - targets).mean(axis=0)).max() > 1e-3  # the control

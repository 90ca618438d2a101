"""Criteria of other packages, and what goes wrong with them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.errors import PlanError, UsageError
from onnxprune.importance import GroupView, criteria, registry, score
from onnxprune.importance.registry import GROUP
from onnxprune.runtime import plugins
from tests.importance.network import build, weights

BUILT_IN = {"apoz", "bn-scale", "fpgm", "l1", "l2", "lamp", "mean-abs", "obs", "random", "variance"}


def widest(view: GroupView) -> NDArray[np.float64]:
    """The largest weight of a unit: a criterion a user might write."""
    largest = [abs(rows.rows).max(axis=1) for rows in view.of("weight")]
    return np.asarray(np.max(largest, axis=0), dtype=np.float64)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that two entry points name, one of them in vain; the table of criteria is restored afterwards."""
    module = ModuleType("some_package")
    module.__dict__.update(widest=widest, text="no function")
    monkeypatch.setitem(sys.modules, "some_package", module)
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    return module


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name.replace("_", "-"), value, GROUP) for name, value in points.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: found if group == GROUP else [])


def test_built_in() -> None:
    assert criteria().keys() >= BUILT_IN


def test_a_package_adds_a_criterion(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError):
        score(build(weights()), "widest")
    install(monkeypatch, widest="some_package:widest")
    assert criteria()["widest"] is widest
    first, second = score(build(weights()), "widest")
    w = weights()
    raw = np.array([max(abs(w["conv2.w"][c]).max(), abs(w["fc.w"][:, 16 * c : 16 * c + 16]).max()) for c in range(10)])
    np.testing.assert_allclose(second, raw / raw.mean(), rtol=1e-5)
    assert len(first) == 12


def test_a_package_may_use_the_decorator(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.__dict__["widest"] = registry.criterion("inner-name", comparable=True)(widest)
    install(monkeypatch, widest="some_package:widest")
    _, second = score(build(weights()), "widest")
    assert second.max() == pytest.approx(max(abs(weights()[name]).max() for name in ("conv2.w", "fc.w")))


def test_a_broken_package_is_named_and_harms_no_other(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gone="no_such_package:f", text="some_package:text")
    score(build(weights()), "l2")
    for name, package in (("gone", "no_such_package"), ("text", "some_package")):
        with pytest.raises(UsageError) as caught:
            score(build(weights()), name)
        assert caught.value.code == "OP607"
        assert package in str(caught.value.where)
    with pytest.raises(UsageError):
        criteria()


def test_two_packages_with_one_name(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("widest", value, GROUP) for value in ("some_package:widest", "other_package:widest")]
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points)
    with pytest.raises(UsageError) as caught:
        score(build(weights()), "widest")
    assert "some_package" in str(caught.value) and "other_package" in str(caught.value)


@pytest.mark.parametrize(("name", "meant"), [("L2", "l2"), ("bnscale", "bn-scale"), ("fpmg", "fpgm"), ("lam", "lamp")])
def test_did_you_mean(name: str, meant: str) -> None:
    with pytest.raises(PlanError) as caught:
        score(build(weights()), name)
    assert caught.value.code == "OP308"
    assert f"did you mean {meant}?" == caught.value.hint


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(PlanError) as caught:
        score(build(weights()), "hessian")
    assert all(name in str(caught.value.hint) for name in BUILT_IN)


@pytest.mark.parametrize(
    "scores",
    [
        lambda view: 1 / 0,
        lambda view: np.ones(3),
        lambda view: np.full(len(view.group.units), np.inf),
        lambda view: "much",
        lambda view: None,
    ],
)
def test_a_criterion_that_fails_is_named(plugin: ModuleType, scores: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.__dict__["bad"] = scores
    install(monkeypatch, bad="some_package:bad")
    with pytest.raises(PlanError) as caught:
        score(build(weights()), "bad")
    assert caught.value.code == "OP309"
    assert "'bad'" in caught.value.cause and "conv1" in str(caught.value.where)


def test_signed_scores_keep_their_order(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.__dict__["negative"] = lambda view: -1 - np.arange(len(view.group.units))
    install(monkeypatch, negative="some_package:negative")
    for scores in score(build(weights()), "negative"):
        assert (np.diff(scores) < 0).all()

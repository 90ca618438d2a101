"""Plots show the figures of the results, by what matplotlib is given to draw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.plot import TradeOff, plot_layers, plot_sensitivity, plot_widths
from onnxprune.report.labels import PLAIN, Labels
from onnxprune.report.summary import summarize_plan
from onnxprune.sensitivity.curves import Curve, Point

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.dev

MODEL = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"
SHARES = (0.25, 0.5, 1.0)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written."""
    from matplotlib.figure import Figure

    found: list[Any] = []
    write = Figure.savefig

    def savefig(figure: Any, *args: Any, **options: Any) -> None:
        write(figure, *args, **options)
        found.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


@pytest.fixture(scope="module")
def traced() -> op.TracedModel:
    return op.analyze(MODEL)


def curve(group: int, errors: list[float], units: int = 100) -> Curve:
    points = [Point(int(units * share), error) for share, error in zip((0.25, 0.5, 0.9), errors, strict=True)]
    return Curve(group, tuple(range(units)), tuple(points))


def test_few_groups_are_curves(traced: op.TracedModel, figures: list[Any], tmp_path: Path) -> None:
    errors = [[0.001, 0.01, 0.3], [0.0, 0.2, float("inf")]]
    plot_sensitivity(traced.graph, [curve(i, e) for i, e in enumerate(errors)], SHARES, tmp_path / "x.png", "error [1]")
    (axes,) = figures[0].axes
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]
    assert lines[0] == ([0, 25, 50, 90], [0, 0.001, 0.01, 0.3])
    assert lines[1] == ([0, 25, 50], [0, 0, 0.2])  # what isn't finite has no place
    assert axes.get_ylabel() == "error [1]" and "[%]" in axes.get_xlabel()
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert not any("$" in tick for tick in ticks) and any("0.1" in tick for tick in ticks)
    assert next(text.get_text() for text in axes.get_legend().get_texts()).startswith("L1  ")


def test_many_groups_are_a_heat_map(traced: op.TracedModel, figures: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    errors = np.sort(10 ** rng.uniform(-6, 0, (13, 3)))
    errors[5, 2] = np.inf
    many = [curve(i % len(traced.graph.groups), e.tolist()) for i, e in enumerate(errors)]
    plot_sensitivity(traced.graph, many, SHARES, tmp_path / "x.svg", "error")
    axes, bar = figures[0].axes
    shown = [text.get_text() for text in axes.texts]
    order = sorted(range(13), key=lambda i: i % len(traced.graph.groups))
    rows = [[f"{e:.2g}" if np.isfinite(e) else "not finite" for e in errors[i]] for i in order]
    assert sorted(map(tuple, np.reshape(shown, (13, 3)).tolist())) == sorted(map(tuple, rows))
    image = axes.images[0].get_array()
    finite = errors[np.isfinite(errors)]
    assert image.shape == (13, 3) and image.max() == finite.max() and image.min() == finite.min()
    assert bar.get_ylabel() == "error"


def test_widths_are_those_of_the_plan(traced: op.TracedModel, figures: list[Any], tmp_path: Path) -> None:
    plan = op.plan(traced, target=op.Target("macs", 0.5))
    summary = summarize_plan(op.apply_plan(traced.graph, plan))
    trials = [(0.5, 0.0, True), (0.25, 0.02, False), (0.1, float("inf"), False), (float("nan"), 0.0, True)]
    plot_widths(summary.groups, summary.labels, tmp_path / "x.png", TradeOff("MACs", "top-1", trials, 0.01))
    search, axes = figures[0].axes
    before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert before == [len(group.units) for group in traced.graph.groups]
    sizes = {tensor.name: tensor.dims for tensor in op.prune(traced, plan).proto.graph.initializer}
    stem = traced.graph.groups[0]
    assert after[0] == sizes["stem.conv.weight"][0] and stem.name == "/stem/conv/Conv"
    assert sum(before) - sum(after) == sum(change.removed for change in summary.groups) > 0
    points = {tuple(xy) for part in search.collections for xy in part.get_offsets().tolist()}
    assert points == {(50.0, 0.0), (25.0, 2.0)} and "percentage points" in search.get_ylabel()
    assert [text.get_text() for text in search.texts] == ["chosen"]
    assert search.texts[0].xy == (50.0, 0.0)


def test_times_of_layers(figures: list[Any], tmp_path: Path) -> None:
    layers = [
        LayerChange(
            f"layer{i}", "Conv", ((8, 8), (4, 8)), (64, 32), (1e-3 * (60 - i), 5e-4 * (60 - i)), True, "", i + 1
        )
        for i in range(60)
    ]
    plot_layers(layers, ("a.onnx", "b.onnx"), "on cpu", tmp_path / "x.pdf")
    (axes,) = figures[0].axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(widths[0], [60 - i for i in range(40)])
    np.testing.assert_allclose(widths[1], np.array(widths[0]) / 2)
    assert "the 40 slowest of 60" in axes.get_title("left") and "[ms]" in axes.get_xlabel()
    assert {text.get_text().strip() for text in axes.texts} == {"-50%"}


def test_names_are_only_names(figures: list[Any], tmp_path: Path) -> None:
    """A formula that isn't one, a control character, another script, a very long name."""
    for name in ("$\\frac{$", "a\x1b[31mb", "層", "x" * 500):
        layers = [LayerChange(name, "Conv", ((8,), (4,)), (8, 4), (1e-3, 5e-4), True)]
        plot_layers(layers, ("$a$", "b"), "on cpu", tmp_path / "x.png")
        (label,) = [text.get_text() for text in figures[-1].axes[0].get_yticklabels()]
        assert "\x1b" not in label and len(label) <= 40
    assert Labels() == PLAIN


def test_a_file_of_no_known_format_and_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(op.ModelError, match="OP117"):
        plot_layers([], ("a", "b"), "on cpu", tmp_path / "x.what")
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(op.UsageError, match=r"onnxprune\[plot\]"):
        plot_layers([], ("a", "b"), "on cpu", tmp_path / "x.png")

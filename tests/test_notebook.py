"""What results look like in a notebook: short, and nothing of a model's names is taken for HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune import notebook
from tests.data.support import model

MODEL, DATA = (str(Path(__file__).parents[1] / "models" / name) for name in ("digits_resnet.onnx", "digits_test.npz"))


class Cells(HTMLParser):
    """The text of each row's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_results_are_short_and_have_a_table() -> None:
    small = op.prune_model(MODEL, target="macs=0.5", data=DATA)
    plan = small.plan
    for result in (small, plan, small.pruned, small.analysis, small.model):
        assert len(repr(result)) < 300, type(result)
    assert f"{plan.after['macs']:,}" in repr(plan)
    rows = {row[0]: row[1:] for row in Cells(plan._repr_html_()).rows}
    assert rows["MACs"][:2] == [f"{plan.before['macs']:,}", f"{plan.after['macs']:,}"]
    assert rows["MACs"][2] == f"{100 * (plan.after['macs'] / plan.before['macs'] - 1):+.1f}%"
    assert "proved: error" in small.pruned._repr_html_()
    assert Cells(small._repr_html_()).tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


def test_evaluations_have_a_table_of_scores() -> None:
    found = op.evaluate(MODEL, op.open_data(DATA, op.load(MODEL).proto), against=MODEL)
    rows = {row[0]: row[1:] for row in Cells(found._repr_html_()).rows}
    assert rows["top-1"][0].startswith(f"{found['top1'].model.value:.1%} (")
    assert rows["top-1"][2] == "+0.0 points"


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    two = model("float[N,4] x", outputs="float[N,4] y, float[N,4] z", body="y = Relu(x)\nz = Abs(x)")
    two.graph.output[1].name = two.graph.node[1].output[0] = evil
    data = op.open_data({"x": np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)}, two)
    text = op.evaluate(two, data, against=two)._repr_html_()
    assert "&lt;script&gt;" in text and "script" not in Cells(text).tags
    assert "script" not in Cells(notebook.table(evil, [evil], [[evil]], evil)).tags


@pytest.mark.parametrize("target", ["macs=0.5", "macs=50%", ["macs=0.5", "params=90%"]])
def test_targets_may_be_text(target: object) -> None:
    plan = op.plan(MODEL, target=target)
    assert plan.removed == op.plan(MODEL, target=op.Target("macs", 0.5)).removed


def test_a_target_that_is_none_is_refused_with_the_right_word() -> None:
    with pytest.raises(op.PlanError, match="did you mean macs"):
        op.plan(MODEL, target="mac=0.5")

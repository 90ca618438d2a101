"""Draw the picture of the README from the results of `benchmarks.recovery`: ``python -m benchmarks.picture``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import DOCS

PICTURE = DOCS / "images" / "recovery.svg"
_MODEL, _DATA, _TITLE = "cifar_resnet20_ts", "cifar10_test423", "ResNet-20 on CIFAR-10"
_LINES = (  # name, allocation, criterion, recovery, color
    ("onnxprune --data --axes channels, 512 inputs", "reconstruction", "obs", "reconstruct", "#2a6fb0"),
    ("same share of every layer (l2), repaired", "uniform", "l2", "reconstruct", "#7fb069"),
    ("same share of every layer (l2), as it is", "uniform", "l2", "none", "#9aa3ad"),
)


def _points(cases: list[dict[str, Any]], *choice: str) -> list[tuple[float, float]]:
    names = ("allocation", "criterion", "recovery")
    found = (
        (100 * case["macs"], case["top1"][_DATA][0])
        for case in cases
        if case["case"]["model"] == _MODEL
        and case["case"].get("axes", "channels") == "channels"
        and not case["case"].get("blocks", False)
        and case["case"]["calibration"] == "own"
        and tuple(case["case"][name] for name in names) == choice
        and not case["failure"]
    )
    return sorted(found)


def draw(path: Path) -> None:
    """Draw accuracy against the share of the multiply-accumulates that is left."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cases = json.loads((DOCS / "benchmarks" / "recovery.json").read_text())["results"]["cases"]
    first = next(case for case in cases if case["case"]["model"] == _MODEL)
    dense = first["top1"][_DATA][0] - first["change"][_DATA][0]
    with rc_context({"font.size": 10, "svg.hashsalt": "onnxprune", "svg.fonttype": "path"}):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.axhline(dense, color="#333333", linewidth=0.8, linestyle=":")
        axes.text(35, dense + 1.5, "original", ha="right", va="bottom", color="#333333")
        for name, *choice, color in _LINES:
            points = [*_points(cases, *choice), (100.0, dense)]
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=name, markersize=4)
        axes.set(xlabel="multiply-accumulates left, %", ylabel="accuracy, %", title=_TITLE, ylim=(0, 104))
        axes.invert_xaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(PICTURE)

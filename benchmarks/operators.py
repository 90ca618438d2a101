"""Write docs/operators.md, the table of all operator cards: ``python -m benchmarks.operators``."""

from __future__ import annotations

from pathlib import Path

from onnxprune.report.operators import markdown, operators

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

if __name__ == "__main__":
    PAGE.write_text(markdown(operators()))

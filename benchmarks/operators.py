"""Writes docs/operators.md: what is known of every operator, from the cards themselves."""

from __future__ import annotations

from pathlib import Path

from onnxprune.report.operators import markdown, operators

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

if __name__ == "__main__":
    PAGE.write_text(markdown(operators()))

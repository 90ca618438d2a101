"""What a command writes about its run, for people who weren't there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.errors import UsageError
from onnxprune.settings.declare import Settings, setting

PAGES, TEXTS = (".html", ".htm"), (".md", ".markdown")
"""Suffixes of reports: of pages, and of Markdown receipts."""


@dataclass(frozen=True, slots=True)
class ReportSettings(Settings):
    """What to write about a run."""

    _error: ClassVar = (UsageError, "OP602")

    report: tuple[str, ...] = setting(
        (),
        "Also write a report: a page of all that was found (.html, one file, no scripts), or a short receipt (.md), as "
        "for a pull request.",
        metavar="FILE.html|FILE.md",
    )
    card: str | None = setting(
        None,
        "Also write a model card: Markdown with the metadata of a Hugging Face model index, of measured values only.",
        metavar="README.md",
    )
    examples: int | None = setting(
        None,
        "Where a model is compared with its original: keep this many of the samples on which they disagree most.",
        at_least=0,
        at_most=100,
        shown="8 with a `report` that is a page, else 0",
    )

    def __post_init__(self) -> None:
        """Check the fields, and the suffixes of reports.

        Raises:
            UsageError: a suffix is unknown, or a field isn't allowed (OP602).
        """
        Settings.__post_init__(self)
        for name in self.report:
            if not name.lower().endswith((*PAGES, *TEXTS)):
                raise UsageError("OP602", f"{name!r} is neither a page (.html) nor Markdown (.md)", where="report")
        if self.card is not None and not self.card.lower().endswith(TEXTS):
            raise UsageError("OP602", f"{self.card!r} isn't Markdown (.md)", where="card")

    @property
    def kept(self) -> int:
        """The number of samples on which models disagree that are kept."""
        if self.examples is not None:
            return self.examples
        return _EXAMPLES if any(name.lower().endswith(PAGES) for name in self.report) else 0


_EXAMPLES = 8

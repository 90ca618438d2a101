"""The catalog of codes, read from ``codes.md`` when a code is first looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means: a title of a few words and an explanation in plain words."""

    title: str
    explanation: str


class Catalog(Mapping[str, CodeInfo]):
    """Every code with its title and explanation, in order of code."""

    @cached_property
    def _entries(self) -> dict[str, CodeInfo]:
        from importlib import resources  # not before it is needed: an import of this package stays light

        text = resources.files(__package__).joinpath("codes.md").read_text(encoding="utf-8")
        sections = re.findall(r"^## (\S+) (.+)\n\n((?:.+\n)+)", text, re.MULTILINE)
        return {code: CodeInfo(title, " ".join(body.split())) for code, title, body in sections}

    def __getitem__(self, code: str) -> CodeInfo:
        """Return what a code means."""
        return self._entries[code]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the codes, in order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of codes."""
        return len(self._entries)


CATALOG = Catalog()

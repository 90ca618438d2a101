"""Names of a model's nodes as tables show them: numbered, and without what all of them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from onnx import ModelProto

from onnxprune.operators.contractions import layer_names
from onnxprune.report.layout import FAINT, Name, Tables, paragraph

_LONG = 32  # characters; shorter names are shown as they are
_WORTHWHILE = 8  # characters; less isn't left out
_FUSED = ";"  # TensorFlow Lite joins the names of what it fused
_SEPARATORS = "/.:_"


@dataclass(frozen=True, slots=True)
class Labels:
    """The numbers of a model's layers, and what is left out of its nodes' names.

    Attributes:
        numbers: the number of each layer, from 1 in graph order.
        prefix: what is left out in front.
        suffix: what is left out at the end.
        first: whether everything from the first ";" on is left out.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""
    suffix: str = ""
    first: bool = False

    @classmethod
    def of(cls, proto: ModelProto) -> Labels:
        """Return the labels of a normalized model.

        Examples:
            >>> import onnxprune as op
            >>> labels = Labels.of(op.analyze("models/digits_resnet.onnx").graph.proto)
            >>> labels.name("/stem/conv/Conv").tag
            'L1  '
        """
        return cls.numbered({name: number for number, name in enumerate(layer_names(proto), 1)})

    @classmethod
    def numbered(cls, numbers: Mapping[str, int]) -> Labels:
        """Return the labels of a model's layers, given by their numbers."""
        names = list(numbers)
        short = [name.partition(_FUSED)[0] for name in names]
        first = short != names and len(set(short)) == len(names)
        shown = short if first else names
        if len(shown) < 2 or max(map(len, shown)) <= _LONG:
            return cls(numbers, first=first)
        prefix = _common(shown)
        suffix = _common([name[len(prefix) :][::-1] for name in shown])[::-1]
        return cls(numbers, prefix, suffix, first)

    def name(self, node: str) -> Name:
        """Return a node's name for a table, with its number if it is a layer."""
        if not self.numbers:
            return Name(self.short(node))
        number, widest = self.numbers.get(node), f"L{max(self.numbers.values())}  "
        return Name(self.short(node), tag=("" if number is None else f"L{number}").ljust(len(widest)))

    def short(self, node: str) -> str:
        """Return a node's name without what is left out."""
        text = node.partition(_FUSED)[0] if self.first else node
        inner = text.removeprefix(self.prefix).removesuffix(self.suffix)
        return inner if len(inner) == len(text) - len(self.prefix) - len(self.suffix) else text

    @property
    def left_out(self) -> str:
        """A sentence that says what is left out of the names; empty if nothing is."""
        parts = [
            *([f'"{self.prefix}" in front'] if self.prefix else []),
            *([f'"{self.suffix}" at the end'] if self.suffix else []),
            *(['what follows the first ";"'] if self.first else []),
        ]
        return f"Names are shown without {' and '.join(parts)}." if parts else ""

    def note(self) -> Tables:
        """Say what is left out of the names, if anything is."""
        if self.left_out:
            yield paragraph(f"{self.left_out} Commands take the numbers of layers, such as L1.", FAINT)


PLAIN = Labels()
"""Labels that show names as they are."""


def _common(names: Sequence[str]) -> str:
    """Return the common beginning of names, up to a separator; empty if it isn't worth leaving out."""
    both = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], both))
    end = max(shared.rfind(separator) for separator in _SEPARATORS) + 1
    return shared[:end] if end >= _WORTHWHILE else ""

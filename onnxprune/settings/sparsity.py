"""How to set weights to zero, one by one or in patterns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxprune.errors import PlanError
from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.planning import Target
from onnxprune.settings.pruning import READING, DataSettings
from onnxprune.settings.running import RunSettings
from onnxprune.settings.types import Share

SparseMethod = Literal["magnitude", "wanda", "obs", "alternating"]

SHARE = 0.5
"""Default share of weights to set to zero."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where zeros may be in a layer's matrix, whose rows are outputs and whose columns are inputs.

    Inputs that follow each other are channels at the same position of the kernel.

    Attributes:
        keep: in each run of `of` inputs of an output, at most this many weights differ from zero; 0 if that isn't so.
        of: the length of these runs.
        rows: zeros come in blocks of this many outputs, ...
        columns: ... and of this many inputs.

    Examples:
        >>> Pattern.read("2:4")
        Pattern(keep=2, of=4, rows=1, columns=1)
        >>> str(Pattern.read("block-1x2")), str(Pattern())
        ('block-1x2', 'unstructured')
    """

    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    def __str__(self) -> str:
        """Return the pattern as `read` takes it."""
        if self.of:
            return f"{self.keep}:{self.of}"
        return "unstructured" if self.rows == self.columns == 1 else f"block-{self.rows}x{self.columns}"

    @classmethod
    def read(cls, text: str) -> Pattern:
        """Read a pattern: ``unstructured``, ``2:4``, ``block-4x1``.

        Raises:
            PlanError: it is none (OP303).
        """
        if text == "unstructured":
            return cls()
        if (runs := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)) and 0 < int(runs[1]) < int(runs[2]):
            return cls(int(runs[1]), int(runs[2]))
        if (block := re.fullmatch(r"block-(\d{1,4})x(\d{1,4})", text)) and 0 not in map(int, block.groups()):
            return cls(rows=int(block[1]), columns=int(block[2]))
        hint = "write unstructured, 2:4 (at most 2 of 4 differ from zero) or block-1x4 (outputs x inputs)"
        raise PlanError("OP303", f"{text!r} is not a pattern of zeros", where="pattern", hint=hint)


def read_size(text: str) -> Target:
    """Read a limit on bytes: 25% of the model's file, 0.25, or 300kB.

    Raises:
        PlanError: it is none (OP303).

    Examples:
        >>> read_size("25%").limit(1000), read_size("2MB").limit(1000)
        (250.0, 2000000.0)
    """
    try:
        return Target.parse(f"size={text.strip().removeprefix('size=')}")
    except PlanError as error:
        hint = "write a share of the model's file such as 25%, or bytes such as 300kB"
        raise PlanError("OP303", f"{text!r} is no size", where="packed_size", hint=hint) from error


@dataclass(frozen=True, slots=True)
class SparsifySettings(Settings):
    """How to make a model's weights sparse."""

    _rules: ClassVar = (
        Rule("packed_size", ["sparsity"], "both {first} and {other} say how many weights are zero", "drop one"),
        Rule(
            "packed_size",
            ["channels"],
            "{other} is for channels that leave to meet a size",
            "drop it: without {first} only weights are set to zero",
            forbids=False,
        ),
        Rule(
            "data",
            [*READING, "method=wanda", "method=obs", "method=alternating", "recover", "allocation=reconstruction"],
            "{other} needs inputs",
            "give some with {first}; labels are optional",
            forbids=False,
        ),
    )

    pattern: Pattern = setting(
        Pattern(),
        "Where zeros may be: unstructured, N:M (at most N of M inputs in a row that aren't zero, such as 2:4) or "
        "block-RxC (blocks of R outputs and C inputs).",
        read=Pattern.read,
        metavar="PATTERN",
    )
    sparsity: Share | None = setting(
        None,
        "Share of the weights to set to zero, of all layers that can be sparse together; N:M says it already.",
        above=0,
        below=1,
        shown=f"{SHARE:.0%}",
    )
    packed_size: Target | None = setting(
        None,
        "Set as many weights to zero as it takes for the packed result (`onnxprune pack`) to have no more bytes than "
        "this: a share of the file as it is given, such as 25%, or bytes, such as 300kB. With `data`, channels are "
        "removed first where that changes the outputs less.",
        read=read_size,
        metavar="SIZE",
    )
    channels: bool = setting(True, "With `packed_size` and `data`: try removing channels.")
    method: SparseMethod | None = setting(
        None,
        "How weights are chosen: by magnitude, by magnitude times input (wanda), column by column with the error made "
        "up (obs, as SparseGPT), or moved together with the weights that stay (alternating).",
        shown="alternating with `data`, else magnitude",
    )
    allocation: Literal["uniform", "reconstruction"] | None = setting(
        None,
        "How many weights each layer loses: the same share (uniform), or by how much the outputs change with zeros in "
        "it alone (reconstruction).",
        shown="reconstruction with `data`, else by the layers' weights (LAMP)",
    )
    recover: Literal["reconstruct", "none"] | None = setting(
        None,
        "Solve for the weights that stay by least squares (reconstruct), or leave them as they were chosen (none).",
        shown="reconstruct with `data`",
    )
    keep: tuple[str, ...] = setting((), "Keep nodes whose name matches dense.", metavar="PATTERN")
    samples: DataSettings = setting(DataSettings, "Inputs.")
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1)
    seed: int = setting(0, "Random seed.", at_least=0)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")

    def __post_init__(self) -> None:
        """Check the settings; N:M says how many weights are zero already.

        Raises:
            PlanError: see `Settings`.
        """
        Settings.__post_init__(self)
        if self.packed_size is not None and self.packed_size.quantity != "size":
            raise PlanError("OP303", f"{self.packed_size} is no size", where="packed_size")
        own = 1 - self.pattern.keep / self.pattern.of if self.pattern.of else None
        other = next((name for name in ("packed_size", "sparsity") if getattr(self, name) not in (None, own)), None)
        if own is not None and other is not None:
            cause = f"the pattern {self.pattern} sets {own:.4g} of the weights to zero, and `{other}` says otherwise"
            raise PlanError("OP302", cause, hint="drop one")
        if self.pattern.of and self.allocation is not None:
            cause = f"the pattern {self.pattern} has the same zeros in every layer, so `allocation` has no effect"
            raise PlanError("OP302", cause, hint="drop it")

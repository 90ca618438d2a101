"""Errors with a stable code.

An error is one line of cause, the place and a hint; `CATALOG` explains its code at length (``codes.md`` has the text).
Families: OP1xx models and files, OP2xx why channels are pinned (reasons, never raised), OP3xx plans and budgets, OP4xx
rewriting, OP5xx verification, OP6xx usage, OP7xx data and metrics, OP8xx benchmarks, OP9xx training.
"""

from __future__ import annotations

from typing import ClassVar

from onnxprune.errors.catalog import CATALOG, CodeInfo

__all__ = [
    "CATALOG",
    "BenchmarkError",
    "CodeInfo",
    "DataError",
    "DivergenceError",
    "InstallationError",
    "ModelError",
    "OnnxPruneError",
    "PlanError",
    "RegressionError",
    "RewriteError",
    "TrainingError",
    "UsageError",
    "VerificationError",
]


class OnnxPruneError(Exception):
    """Something the user can act on; every public function raises only this for bad input.

    Args:
        code: A key of `CATALOG`; another one is a bug.
        cause: What is wrong, in one line.
        where: The place: a file, node, tensor or option.
        hint: What the user may do about it.
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, code: str, cause: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Make an error; the arguments are kept as attributes."""
        assert code in CATALOG, f"{code} is not in the catalog"
        super().__init__(code, cause, where, hint)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that errors cross process boundaries."""
        return _rebuild, (type(self), self.code, self.cause, self.where, self.hint)

    @property
    def code(self) -> str:
        """The stable code, such as OP101."""
        return str(self.args[0])

    @property
    def cause(self) -> str:
        """What is wrong, in one line."""
        return str(self.args[1])

    @property
    def where(self) -> str | None:
        """The place, if there is one."""
        return None if self.args[2] is None else str(self.args[2])

    @property
    def hint(self) -> str | None:
        """What the user may do, if there is advice."""
        return None if self.args[3] is None else str(self.args[3])

    def at(self, where: str) -> OnnxPruneError:
        """Return the error with another place."""
        return type(self)(self.code, self.cause, where=where, hint=self.hint)

    def __str__(self) -> str:
        """Return the error as it is printed: cause, place and hint, a line each."""
        lines = [f"error[{self.code}]: {self.cause}"]
        if self.where is not None:
            lines.append(f"  --> {self.where}")
        if self.hint is not None:
            lines.append(f"  help: {self.hint}")
        return "\n".join(lines)


class ModelError(OnnxPruneError):
    """A model or its file can't be read, written or understood (OP1xx)."""


class PlanError(OnnxPruneError):
    """A budget, a setting or a plan can't be met or doesn't fit the model (OP3xx)."""


class RewriteError(OnnxPruneError):
    """A plan can't be carried out on the graph (OP4xx)."""


class VerificationError(OnnxPruneError):
    """The pruned model isn't proved equal to its masked original (OP5xx)."""

    exit_status: ClassVar[int] = 1


class UsageError(OnnxPruneError):
    """An option, an argument or the installation is wrong (OP6xx)."""


class InstallationError(UsageError):
    """A check of the installation found something that can't work (OP609)."""

    exit_status: ClassVar[int] = 1


class DataError(OnnxPruneError):
    """Data can't be read, don't fit the model, or don't allow what is to be measured (OP7xx)."""


class TrainingError(OnnxPruneError):
    """A model can't be trained as asked (OP9xx)."""


class BenchmarkError(OnnxPruneError):
    """Time can't be measured, or compared with an earlier measurement (OP8xx)."""


class RegressionError(BenchmarkError):
    """A model is slower than the baseline allows (OP806) or than required (OP807), or larger than allowed (OP808)."""

    exit_status: ClassVar[int] = 1


class DivergenceError(TrainingError):
    """A training diverged (OP907)."""

    exit_status: ClassVar[int] = 1


def _rebuild(kind: type[OnnxPruneError], code: str, cause: str, where: str | None, hint: str | None) -> OnnxPruneError:
    return kind(code, cause, where=where, hint=hint)

"""A proof that proves nothing is worth a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.cli.output import Output

if TYPE_CHECKING:
    from onnxprune.plan import PrunePlan
    from onnxprune.verify import Verification


def warn_if_idle(out: Output, plan: PrunePlan | None, verification: Verification | None) -> None:
    """Warn if channels left, but no output shows it: then a wrong removal might not have shown either."""
    idle = verification is not None and verification.passed and not verification.telling
    if idle and plan is not None and plan.removed:
        out.warn(
            "no output changes by more than the error allowed when the removed weights are set to zero, so that the "
            "comparison proves little (OP504): give real inputs with --input"
        )

"""Whether a provider that was asked for really runs a model. ONNX Runtime falls back to the CPU without a word."""

from __future__ import annotations

from onnxprune.benchmark.profile import Profile
from onnxprune.benchmark.provider import Provider
from onnxprune.errors import UsageError


def notes_on_use(name: str, provider: Provider, found: Profile, *, accept: bool = False) -> list[str]:
    """Tell what ran elsewhere than was asked.

    Args:
        name: the model.
        provider: the provider that was asked for.
        found: what ran.
        accept: whether it may run nothing at all, with a note.

    Raises:
        UsageError: it runs nothing, and that isn't accepted (OP608).
    """
    own = next((p for p in found.placement() if p.provider == provider.name), None)
    others = ", ".join(p.provider for p in found.placement() if p.provider != provider.name)
    if own is None:
        cause = f"{provider.name} runs no node of {name}: {others} runs all of them"
        if accept:
            return [cause]
        raise UsageError("OP608", cause, hint="leave the provider out; `onnxprune doctor` tells more")
    if not others:
        return []
    return [
        f"{name}: {provider.name} runs {own.nodes:.0%} of the nodes ({own.time:.0%} of the time), {others} the rest"
    ]

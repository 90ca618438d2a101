"""How models are run, by all commands that run one."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.settings.declare import Settings, setting


@dataclass(frozen=True, slots=True)
class RunSettings(Settings):
    """How ONNX Runtime runs models."""

    custom_ops: tuple[str, ...] = setting(
        (),
        "Library of custom operators for ONNX Runtime. It is native code and runs with your rights: give only "
        "libraries that you trust.",
        metavar="LIB.so",
    )

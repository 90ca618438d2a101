"""How to clean a model: which optimizers rewrite its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.settings.declare import Settings, setting
from onnxprune.settings.running import RunSettings

OptimizerName = Literal["onnxprune", "onnxruntime", "onnxsim"]


@dataclass(frozen=True, slots=True)
class CleanSettings(Settings):
    """How to clean a model."""

    optimizers: tuple[OptimizerName, ...] | None = setting(
        None,
        "Optimizers to try: onnxprune (what every model that is written goes through), onnxruntime (its rewrites that "
        "keep standard operators) or onnxsim.",
        least=1,
        shown="all that are installed",
    )
    optimizer_seconds: float = setting(300, "Seconds that an optimizer may take.", above=0)
    timed: bool = setting(True, "Leave out what makes the model slower on this machine.")
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1)
    seed: int = setting(0, "Random seed of the inputs that outputs are compared on.", at_least=0)
    inputs: Any = setting(None, "Arrays to compare outputs on, by input name.", by_hand=True, shown="generated")
    input_shapes: Any = setting(None, "Shapes of inputs with symbolic dimensions, by name.", by_hand=True)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")

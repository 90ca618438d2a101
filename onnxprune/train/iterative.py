"""Pruning in several steps, with training in between.

Each step removes the same share of what is left, and the network recovers before the next: later channels are chosen
by weights that have adapted to the loss of earlier ones (H. Li et al., "Pruning filters for efficient ConvNets", ICLR
2017, among others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx import ModelProto

from onnxprune.data import Dataset
from onnxprune.errors import PlanError
from onnxprune.model import Source, load
from onnxprune.pipeline import Pruned, Settings, analyse, make_plan, prune
from onnxprune.train.finetune import FineTuned, finetune
from onnxprune.train.settings import TrainSettings

_CALIBRATION = 512
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Round:
    """One step: what was removed, and what training made of the rest.

    Attributes:
        pruned: the model before training, with its plan and its proof.
        tuned: the same after training.
    """

    pruned: Pruned
    tuned: FineTuned


def prune_iteratively(
    model: Source,
    data: Dataset,
    settings: Settings,
    steps: int,
    *,
    training: TrainSettings | None = None,
    validation: Dataset | None = None,
    progress: Callable[[Round], None] = lambda done: None,
) -> tuple[ModelProto, tuple[Round, ...]]:
    """Prune a model to a target in several steps, trained by the original after each.

    Args:
        model: the model.
        data: what to train on and to choose channels by; labels aren't needed.
        settings: how it is pruned, to a target.
        steps: how many steps there are.
        training: how it is trained after each.
        validation: samples to judge by.
        progress: told of each step that is done.

    Returns:
        The model, and the steps.

    Raises:
        PlanError: there is no target (OP302), or no step (OP303); a step can't reach its part of the target (OP301).
        VerificationError: a pruned model isn't what it should be.
        TrainingError: it can't be trained.
    """
    if settings.target is None:
        raise PlanError("OP302", "pruning in steps needs a target", hint='for example Target("macs", 0.5)')
    if steps < 1:
        raise PlanError("OP303", f"{steps} is out of range: must be at least 1", where="steps")
    original = load(model)
    share = replace(settings.target, value=settings.target.value ** (1 / steps))
    calibration = data.subset(range(min(_CALIBRATION, len(data))))
    current, rounds = original.proto, list[Round]()
    for _ in range(steps):
        analysis = analyse(current)
        plan = make_plan(
            analysis,
            replace(settings, target=share),
            batches=lambda: (batch.inputs for batch in calibration.batches(_BATCH)),
        )
        pruned = prune(analysis, plan)
        tuned = finetune(pruned.proto, data, teacher=original, validation=validation, settings=training)
        rounds.append(Round(pruned, tuned))
        progress(rounds[-1])
        current = tuned.proto
    return current, tuple(rounds)

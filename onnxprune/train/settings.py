"""What a training is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from onnxprune.errors import PlanError
from onnxprune.train.augment import Augmentation
from onnxprune.train.losses import LOSSES, LossName, LossSettings
from onnxprune.train.optimizers import SCHEDULES, ScheduleName

OptimizerName = Literal["adamw", "lamb", "sgd"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
RATES: Mapping[str, float] = {"adamw": 5e-4, "lamb": 1e-3, "sgd": 0.02}
"""Peak learning rates that suit a network that is trained already."""

_SMALL_BATCH = 8  # below, moments of a batch are too rough


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What a training is told.

    Attributes:
        epochs: how often the data are gone through.
        batch: samples in a batch; a model of fixed batch size takes its own.
        losses: losses by name with their weights; None for what the data and the teacher allow.
        features: tensors whose values are to be the teacher's, in both models.
        feature_weight: weight of the distance of these.
        slimming: weight of the sum of the absolute scales of batch normalizations, which drives those of channels that
            matter little to zero, to be pruned by the criterion bn-scale.
        lasso: weight of the sum of squares of all that leaves together, units that matter little counting more, which
            drives whole channels to zero, to be pruned by the criterion l2.
        loss: how losses are made.
        output: the output that is trained; by default the first of real numbers.
        optimizer: lamb, adamw or sgd.
        rate: peak learning rate; None for one that suits the optimizer.
        momentum: of sgd.
        decay: weight decay; norms and biases are exempt.
        clip: largest norm of the gradient; 0 for any.
        schedule: how the rate goes on after warming up.
        warm_up: share of all steps in which it rises.
        accumulate: so many batches make a step.
        norms: whether batch normalizations use the batch's moments; None for yes where batches are large enough.
        augmentation: what is done to images.
        freeze: patterns of weights, or of nodes that read them, that stay as they are.
        also: patterns of initializers that are trained although they don't look like weights.
        patience: stop after so many epochs without a better model; 0 for never.
        seed: of the order of samples and of augmentation.
    """

    epochs: int = 10
    batch: int = 64
    losses: Mapping[LossName, float] | None = None
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    slimming: float = 0.0
    lasso: float = 0.0
    loss: LossSettings = field(default_factory=LossSettings)
    output: str | None = None
    optimizer: OptimizerName = "lamb"
    rate: float | None = None
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float = 5.0
    schedule: ScheduleName = "cosine"
    warm_up: float = 0.05
    accumulate: int = 1
    norms: Literal["batch", "frozen"] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    freeze: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    patience: int = 0
    seed: int = 0

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            PlanError: one is (OP303).
        """
        for name in ("epochs", "batch", "accumulate"):
            _in_range(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("decay", "clip", "patience", "seed", "feature_weight", "slimming", "lasso"):
            _in_range(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _in_range("rate", self.rate, self.rate is None or self.rate > 0, "above 0")
        _in_range("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        _in_range("warm-up", self.warm_up, 0 <= self.warm_up < 1, "at least 0 and below 1")
        _in_range("smoothing", self.loss.smoothing, 0 <= self.loss.smoothing < 1, "at least 0 and below 1")
        _in_range("temperature", self.loss.temperature, self.loss.temperature > 0, "above 0")
        _in_range("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, "one of " + ", ".join(OPTIMIZERS))
        _in_range("schedule", self.schedule, self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES))
        for name, weight in (self.losses or {}).items():
            _in_range("loss", name, name in LOSSES, "one of " + ", ".join(LOSSES))
            _in_range(f"loss {name}", weight, weight > 0, "above 0")

    @property
    def sparsifies(self) -> bool:
        """Whether the weights are made sparse, which what judges a model doesn't see."""
        return bool(self.slimming or self.lasso)

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return RATES[self.optimizer] if self.rate is None else self.rate

    def norms_for(self, batch: int) -> Literal["batch", "frozen"]:
        """Return how batch normalizations are trained in batches of a size."""
        return self.norms or ("frozen" if batch < _SMALL_BATCH else "batch")


def _in_range(name: str, value: object, holds: bool, must: str) -> None:
    if not holds:
        raise PlanError("OP303", f"{value} is out of range: must be {must}", where=f"--{name.replace('_', '-')}")

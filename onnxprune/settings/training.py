"""How a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxprune.settings.declare import Settings, Share, setting

LossName = Literal["cross-entropy", "kl", "mse", "bce"]
OptimizerName = Literal["lamb", "adamw", "sgd"]
ScheduleName = Literal["constant", "cosine", "one-cycle", "step"]

RATES: Mapping[str, float] = {"adamw": 5e-4, "lamb": 1e-3, "sgd": 0.02}
"""Peak learning rates that suit a network that is trained already."""

_SMALL_BATCH = 8  # below, moments of a batch are too rough


@dataclass(frozen=True, slots=True)
class LossSettings(Settings):
    """What losses are made with.

    Attributes:
        smoothing: share of the probability that cross-entropy spreads evenly over all classes.
        temperature: by which logits are divided before distributions are compared.
    """

    temperature: float = setting(4.0, "Temperature of kl.", above=0)
    smoothing: Share = setting(0.0, "Share of cross-entropy's labels spread evenly.", at_least=0, below=1)


@dataclass(frozen=True, slots=True)
class Augmentation(Settings):
    """What is done to each image, drawn again each time.

    Attributes:
        flip: whether half of them are mirrored left to right.
        crop: maximum shift in pixels; zero-padded.
        cutout: side of a square that is set to zero (DeVries and Taylor, 2017); 0 for none.
    """

    flip: bool = setting(False, "Mirror half of the images, left to right.")
    crop: int = setting(0, "Shift images by up to this many pixels.", at_least=0, shown="")
    cutout: int = setting(0, "Cover a square of this side in each image.", at_least=0, shown="")

    @property
    def idle(self) -> bool:
        """Whether nothing is done."""
        return not (self.flip or self.crop or self.cutout)


@dataclass(frozen=True, slots=True)
class TrainSettings(Settings):
    """How a model is trained.

    Attributes:
        epochs: how often the data are gone through.
        batch: samples in a batch; a model of fixed batch size takes its own.
        output: the output that is trained; by default the first of real numbers.
        losses: losses by name with their weights; None for what the data and the teacher allow.
        features: tensors whose values are to be the teacher's, in both models.
        feature_weight: weight of the distance of these.
        loss: how losses are made.
        slimming: weight of the sum of the absolute scales of batch normalizations, which drives those of channels that
            matter little to zero, to be pruned by the criterion bn-scale.
        lasso: weight of the sum of squares of all that leaves together, units that matter little counting more, which
            drives whole channels to zero, to be pruned by the criterion l2.
        optimizer: lamb, adamw or sgd.
        rate: peak learning rate; None for one that suits the optimizer.
        momentum: of sgd.
        decay: weight decay; norms and biases are exempt.
        clip: largest norm of the gradient; 0 for any.
        schedule: how the rate goes on after warming up.
        warm_up: share of all steps in which it rises.
        accumulate: number of batches in a step.
        norms: whether batch normalizations use the batch's moments; None for yes where batches are large enough.
        patience: stop after this many epochs without a better model; 0 for never.
        augmentation: what is done to images.
        freeze: patterns of weights, or of nodes that read them, that stay as they are.
        also: patterns of initializers that are trained although they don't look like weights.
        seed: of the order of samples and of augmentation.
    """

    epochs: int = setting(10, "Passes through the data.", at_least=1)
    batch: int = setting(64, "Samples in a batch.", at_least=1)
    output: str | None = setting(
        None, "The output that is trained.", flag="--output-name", metavar="NAME", shown="the first"
    )
    losses: Mapping[LossName, float] | None = setting(
        None,
        "cross-entropy, kl, mse or bce, with a weight: kl=0.5. Repeatable.",
        above=0,
        flag="--loss",
        shown="kl with a teacher, and cross-entropy with labels",
    )
    features: tuple[str, ...] = setting(
        (), "Follow the teacher at this tensor. Repeatable.", flag="--feature", metavar="TENSOR"
    )
    feature_weight: float = setting(1.0, "Weight of --feature.", at_least=0)
    loss: LossSettings = setting(LossSettings)
    slimming: float = setting(0.0, "Weight of the sum of BatchNormalization's scales.", at_least=0)
    lasso: float = setting(
        0.0, "Weight of the squares of channels, weak ones most; best with --optimizer sgd.", at_least=0
    )
    optimizer: OptimizerName = setting("lamb", "LAMB, AdamW, or SGD with Nesterov momentum.")
    rate: float | None = setting(
        None, "Peak learning rate.", above=0, shown="0.001 for lamb, 0.0005 for adamw, 0.02 for sgd"
    )
    momentum: float = setting(0.9, "Momentum of sgd.", at_least=0, below=1)
    decay: float = setting(5e-4, "Weight decay; norms and biases are exempt.", at_least=0)
    clip: float = setting(5.0, "Largest norm of the gradient, 0 for any.", at_least=0)
    schedule: ScheduleName = setting("cosine", "How the learning rate goes on after rising.")
    warm_up: Share = setting(0.05, "Share of all steps in which the rate rises.", at_least=0, below=1)
    accumulate: int = setting(1, "Number of batches in a step.", at_least=1)
    norms: Literal["batch", "frozen"] | None = setting(
        None, "Whether batch normalizations use the batch's moments.", shown="batch, from 8 samples on"
    )
    patience: int = setting(0, "Stop after this many epochs without a better model.", at_least=0, shown="never")
    augmentation: Augmentation = setting(Augmentation)
    freeze: tuple[str, ...] = setting((), "Leave these weights or nodes as they are.", metavar="PATTERN")
    also: tuple[str, ...] = setting((), "Train these initializers as well.", flag="--train", metavar="PATTERN")
    seed: int = setting(0, "Seed of everything random.", at_least=0)

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

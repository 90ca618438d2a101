"""How to train a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.types import Share

LossName = Literal["cross-entropy", "kl", "mse", "nmse", "huber", "bce"]
OptimizerName = Literal["lamb", "adamw", "sgd"]
SparseName = Literal["rigl", "gmp", "ticket"]
ScheduleName = Literal["constant", "cosine", "one-cycle", "step"]

RATES: Mapping[str, float] = {"adamw": 5e-4, "lamb": 1e-3, "sgd": 0.02}
"""Default peak learning rates, for networks that are already trained."""

_SPARSITY, _STEPS = 0.9, 5
_SMALL_BATCH = 8  # smaller batches have statistics that are too noisy


@dataclass(frozen=True, slots=True)
class LossSettings(Settings):
    """Parameters of losses."""

    temperature: float = setting(4.0, "Divide logits by this before kl compares distributions.", above=0)
    delta: float = setting(1.0, "Error from which on the loss huber is linear.", above=0)
    smoothing: Share = setting(
        0.0, "Share of the label's probability that cross-entropy spreads over all classes.", at_least=0, below=1
    )


@dataclass(frozen=True, slots=True)
class Augmentation(Settings):
    """Random changes of images, drawn again for every batch."""

    flip: bool = setting(False, "Flip half of the images left to right.")
    crop: int = setting(0, "Shift images by up to this many pixels, zero-padded.", at_least=0, shown="")
    cutout: int = setting(
        0, "Zero a square with this side in every image (DeVries and Taylor, 2017).", at_least=0, shown=""
    )

    @property
    def idle(self) -> bool:
        """Whether images stay as they are."""
        return not (self.flip or self.crop or self.cutout)


@dataclass(frozen=True, slots=True)
class TrainSettings(Settings):
    """How to train a model."""

    _rules: ClassVar = (
        Rule(
            "sparse",
            ["sparsity", "mask_interval"],
            "{other} is for weights that become zero",
            "name a method with {first}",
            False,
        ),
        Rule("sparse", ["slimming", "lasso"], "{first} and {other} both make weights zero", "drop one"),
        Rule("sparse=ticket", ["steps"], "{other} is for lottery tickets", "set {first} to ticket", False),
        Rule(
            "sparse=ticket",
            ["mask_interval", "minutes", "keep_zeros"],
            "{other} has no effect on lottery tickets, which keep zeros and train each network for `epochs`",
            "drop it",
        ),
    )

    epochs: int = setting(10, "Number of passes through the data.", at_least=1)
    minutes: float | None = setting(
        None,
        "Run only as many of the epochs as fit into this time, measured by the first steps.",
        above=0,
        metavar="MINUTES",
    )
    batch: int = setting(
        64,
        "Batch size. One that the file fixes at 1 is ignored where samples can run together all the same; else a fixed "
        "one is used.",
        at_least=1,
    )
    output: str | None = setting(
        None,
        "Train this output only.",
        flag="--train-output",
        metavar="NAME",
        shown="all of real numbers",
    )
    losses: Mapping[LossName, float] | None = setting(
        None,
        "Loss to minimize, with its weight: cross-entropy, kl, mse, nmse (mse over the variance of the teacher's "
        "output) or bce, such as kl=0.5.",
        above=0,
        flag="--loss",
        shown="with a teacher, kl for scores of classes and nmse for other outputs; cross-entropy with labels",
    )
    features: tuple[str, ...] = setting(
        (),
        "Also match the teacher's values of this tensor, which both models have. Of a tensor that lost channels, those "
        "that stayed are matched, which needs --plan.",
        flag="--feature",
        metavar="TENSOR",
    )
    feature_weight: float = setting(1.0, "Weight of the loss on features.", at_least=0)
    loss: LossSettings = setting(LossSettings, "Parameters of the losses.")
    slimming: float = setting(
        0.0,
        "Weight of an L1 penalty on the scales of BatchNormalization. It drives unimportant channels to zero; prune "
        "them with the criterion bn-scale.",
        at_least=0,
    )
    lasso: float = setting(
        0.0,
        "Weight of a penalty on the squares of all weights that are removed together, larger for less important units. "
        "It drives whole channels to zero; prune them with the criterion l2. Best with sgd.",
        at_least=0,
    )
    sparse: SparseName | None = setting(
        None,
        "Make single weights zero while training: the smallest are dropped again and again, and those with the largest "
        "gradient grow in their place (rigl), or ever more of the smallest stay zero (gmp). "
        "ticket trains several times: after each, the smallest stay zero and the others go back to their early values; "
        "the same zeros with shuffled values are the control.",
    )
    sparsity: Share | None = setting(
        None,
        "With `sparse`: share of the weights of all layers that are zero in the end.",
        above=0,
        below=1,
        shown="0.9",
    )
    steps: int | None = setting(
        None,
        "With `sparse` ticket: set weights to zero in this many steps, and train after each.",
        at_least=1,
        metavar="N",
        shown=str(_STEPS),
    )
    mask_interval: int | None = setting(
        None,
        "With `sparse`: number of steps between changes of what is zero; none after three quarters of all steps.",
        at_least=1,
        metavar="STEPS",
        shown="100, or fewer if there are fewer than 4000 steps",
    )
    keep_zeros: bool = setting(True, "Keep the zeros of weights of which a tenth or more are zero.")
    optimizer: OptimizerName = setting("lamb", "LAMB, AdamW, or SGD with Nesterov momentum.")
    rate: float | None = setting(
        None, "Peak learning rate.", above=0, shown=", ".join(f"{rate:g} for {name}" for name, rate in RATES.items())
    )
    momentum: float = setting(0.9, "Momentum of sgd.", at_least=0, below=1)
    decay: float = setting(5e-4, "Weight decay; normalization parameters and biases are exempt.", at_least=0)
    clip: float = setting(5.0, "Largest norm of the gradient; 0 turns clipping off.", at_least=0)
    schedule: ScheduleName = setting("cosine", "Schedule of the learning rate after warm-up.")
    warm_up: Share = setting(0.05, "Share of all steps in which the learning rate rises.", at_least=0, below=1)
    accumulate: int = setting(1, "Number of batches per step.", at_least=1)
    norms: Literal["batch", "frozen"] | None = setting(
        None,
        "Statistics that BatchNormalization uses in training: the batch's, or the model's own (frozen).",
        shown=f"batch from {_SMALL_BATCH} samples on, else frozen",
    )
    patience: int = setting(
        0, "Stop after this many epochs without improvement; 0 turns early stopping off.", at_least=0
    )
    augmentation: Augmentation = setting(Augmentation, "Random changes of images.")
    freeze: tuple[str, ...] = setting(
        (), "Don't train weights that match this pattern, or whose nodes do.", metavar="PATTERN"
    )
    also: tuple[str, ...] = setting(
        (),
        "Also train initializers that match this pattern, although they don't look like weights.",
        flag="--train",
        metavar="PATTERN",
    )
    seed: int = setting(0, "Random seed, for the order of samples and for augmentation.", at_least=0)

    @property
    def sparsifies(self) -> bool:
        """Whether training makes weights sparse, which validation doesn't show."""
        return bool(self.slimming or self.lasso or self.sparse)

    @property
    def final_sparsity(self) -> float:
        """The share of zeros in the end."""
        return _SPARSITY if self.sparsity is None else self.sparsity

    @property
    def ticket_steps(self) -> int:
        """The number of steps in which a lottery ticket gets its zeros."""
        return _STEPS if self.steps is None else self.steps

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return RATES[self.optimizer] if self.rate is None else self.rate

    def norms_for(self, batch: int) -> Literal["batch", "frozen"]:
        """Return the statistics that batch normalizations use at a batch size."""
        return self.norms or ("frozen" if batch < _SMALL_BATCH else "batch")

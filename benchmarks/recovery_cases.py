"""The cases of `benchmarks.recovery`: trained models with their data, and ways to prune and repair them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from benchmarks.common import ROOT
from onnxprune.data import Dataset, open_data, read_recipe, split
from onnxprune.importance import criteria
from onnxprune.recover import Method
from onnxprune.settings.planning import Allocation
from onnxprune.workflow.analysis import TracedModel

SHARED = ROOT.parent / "shared"
SEED = 0
SHARES = (0.5, 0.75, 0.35)
NONE = "none"
GRADIENTS, DISTILLED = "gradients", "distilled"
RECOVERIES = ("reconstruct", NONE, *(m for m in get_args(Method) if m != "reconstruct"))

Calibration = Literal["own", "random"]
"""Calibration inputs: the model's own kind of data, or noise."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model and its data.

    Attributes:
        name: its file.
        calibration: the data to calibrate on.
        limit: number of samples to calibrate on.
        judged: the data to evaluate on; empty for the other samples of the calibration data.
        recipe: how data become inputs.
    """

    name: str
    calibration: str
    limit: int
    judged: tuple[str, ...] = ()
    recipe: str = ""

    @property
    def path(self) -> Path:
        """Where the model is."""
        return SHARED / "models" / f"{self.name}.onnx"

    def data(self, analysis: TracedModel) -> tuple[Mapping[Calibration, Dataset], Mapping[str, Dataset]]:
        """Return the calibration data and the test data."""

        def opened(spec: Path | str, limit: int | None = None) -> Dataset:
            recipe = read_recipe(self.recipe) if self.recipe else None
            return open_data(spec, analysis.graph.proto, recipe=recipe, limit=limit, seed=SEED)

        folder = SHARED / "data"
        if self.judged:
            own = opened(folder / self.calibration, self.limit)
            judged = {Path(f).stem: opened(folder / f) for f in self.judged}
        else:
            whole = opened(folder / self.calibration)
            own, rest = split(whole, len(whole) - self.limit, seed=SEED)
            judged = {Path(self.calibration).stem: rest}
        return {"own": own, "random": opened("random", self.limit)}, judged


_CIFAR = ("cifar10_test423.npz", "cifar10_jpeg_test5000.npz")
SUBJECTS = (
    Subject("cifar_resnet56_dynamo", "cifar10_calib4660.npz", 512, _CIFAR),
    Subject("cifar_resnet20_ts", "cifar10_calib4660.npz", 512, _CIFAR),
    Subject("mobilenetv2_10_224_tf2_f32", "imagenet500_224.zip", 200, recipe="scale=1/127.5 mean=1 label_offset=1"),
    Subject("squeezenet_fp16_winml", "imagenet500_224.zip", 200, recipe="channels=BGR mean=103.94,116.78,123.68"),
    Subject("mlptiny_resnet8_cifar10", "cifar10_jpeg_train.zip", 512, _CIFAR[1:], recipe="scale=1"),
    Subject("mlptiny_kws_dscnn", "kws_mfcc_500.npz", 250),
)
PACKAGED = (Subject("efficientnet_lite0", "imagenet500_224.zip", 200, recipe="scale=1/127 mean=1"),)
"""Those in packages of the `bench` extra."""
DEFAULT = "axes: channels and resolution"  # the variant that is `prune --data` without options
_EVERY_CRITERION = "cifar_resnet20_ts"
_RESIDUAL = ("cifar_resnet56_dynamo", "cifar_resnet20_ts", "mobilenetv2_10_224_tf2_f32")  # with blocks that can leave


@dataclass(frozen=True, slots=True)
class Case:
    """One combination to measure.

    Attributes:
        model: the subject's name.
        macs: the share of MACs that remains.
        allocation: how many channels each layer loses.
        criterion: which channels it loses.
        recovery: how the model is repaired.
        calibration: the calibration inputs.
        axes: what may be made smaller, as `--axes` takes it.
        blocks: whether residual blocks may leave as well, as by `--remove-blocks auto`.
    """

    model: str
    macs: float
    allocation: Allocation = "reconstruction"
    criterion: str = "obs"
    recovery: str = "reconstruct"
    calibration: Calibration = "own"
    axes: str = "channels"
    blocks: bool = False

    @property
    def smaller(self) -> str:
        """What may be made smaller."""
        return f"{self.axes},blocks" if self.blocks else self.axes

    def __str__(self) -> str:
        """Return it in the form that --only matches."""
        parts = (self.model, self.macs, self.allocation, self.criterion, self.recovery, self.calibration, self.smaller)
        return "/".join(map(str, parts))


def variants(model: str, macs: float) -> Mapping[str, Case]:
    """Return the case with every part, and the cases that lack some, by name."""
    whole = Case(model, macs)
    plain = replace(whole, allocation="uniform", criterion="l2")
    found = {
        "every part": whole,
        "allocation: uniform": replace(whole, allocation="uniform"),
        "allocation: global": replace(whole, allocation="global"),
        "criterion: l2": replace(whole, criterion="l2"),
        "recovery: bn": replace(whole, recovery="bn"),
        "recovery: bias": replace(whole, recovery="bias"),
        "recovery: none": replace(whole, recovery=NONE),
        "allocation: uniform, criterion: l2": plain,
        "allocation: uniform, criterion: l2, recovery: bn": replace(plain, recovery="bn"),
        "allocation: uniform, criterion: l2, recovery: none": replace(plain, recovery=NONE),
        "recovery: reconstruct, then gradients": replace(whole, recovery=GRADIENTS),
        "recovery: reconstruct, then distilled": replace(whole, recovery=DISTILLED),
        "axes: resolution": replace(whole, axes="resolution"),
        DEFAULT: replace(whole, axes="channels,resolution"),
        "axes: channels and basis": replace(whole, axes="channels,basis"),
        "axes: rank": replace(whole, axes="rank"),
        "axes: channels and rank": replace(whole, axes="channels,rank"),
        "axes: channels, resolution and rank": replace(whole, axes="channels,resolution,rank"),
        "inputs: noise": replace(whole, calibration="random"),
        "inputs: noise, recovery: bn": replace(whole, calibration="random", recovery="bn"),
    }
    return found | ({"axes: channels and blocks": replace(whole, blocks=True)} if model in _RESIDUAL else {})


_BY_AXES = (
    "every part",
    "axes: resolution",
    DEFAULT,
    "axes: channels and basis",
    "axes: rank",
    "axes: channels and rank",
    "axes: channels, resolution and rank",
)
"""The variants of models in packages; at other shares, there are more of the others."""

_AT_OTHER_SHARES = (
    *_BY_AXES,
    "allocation: uniform",
    "criterion: l2",
    "recovery: none",
    "recovery: reconstruct, then gradients",
    "axes: channels and blocks",
    "allocation: uniform, criterion: l2",
    "allocation: uniform, criterion: l2, recovery: none",
)


def selection() -> Iterator[Case]:
    """Yield the most informative cases: each part on each model, every criterion on one of them."""
    for subject in SUBJECTS:
        yield from variants(subject.name, SHARES[0]).values()
        for share in SHARES[1:]:
            yield from (case for name, case in variants(subject.name, share).items() if name in _AT_OTHER_SHARES)
        if subject.name == _EVERY_CRITERION:
            yield from _crossed(subject, SHARES[0])
    for subject in PACKAGED:
        yield from (case for name, case in variants(subject.name, SHARES[0]).items() if name in _BY_AXES)


def everything() -> Iterator[Case]:
    """Yield the selection, then every criterion and recovery for every model and budget: days."""
    yield from dict.fromkeys([*selection(), *(c for s, share in product(SUBJECTS, SHARES) for c in _crossed(s, share))])


def _crossed(subject: Subject, share: float) -> Iterator[Case]:
    """Cross criteria with recoveries. Criteria that compare between layers rank globally as well."""
    plans: list[tuple[Allocation, str]] = [("reconstruction", "obs"), ("reconstruction", "l2")]
    plans += [("uniform", name) for name in criteria()] + [("global", "lamp"), ("global", "obs")]
    for (allocation, criterion), recovery in product(plans, RECOVERIES):
        yield Case(subject.name, share, allocation, criterion, recovery)

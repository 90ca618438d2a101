"""The whole way from a model to a smaller one: what `shrink` and the command `prune` take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxprune.settings.declare import Rule, Settings, Share, flat, setting
from onnxprune.settings.planning import LatencySettings, PlanSettings, Policies

Method = Literal["reconstruct", "bn", "bias"]

LIMIT = 512
"""Samples to calibrate on where nothing else is said."""

_TOLERANCE: dict[str, Any] = {
    "help": "Largest error allowed, relative to an output's largest value.",
    "at_least": 0,
    "shown": "1e-4 for float32, by the coarsest type of the weights",
}
_PLANNING = [d.name for kind in (PlanSettings, LatencySettings) for d in flat(kind) if d.name != "seed"]
_WITH_DATA = ["preprocess", "limit", "recover", "max_drop", "finetune"]
_NO_DATA = "give some with `data`, labels not needed; `data` random takes noise where there are none"


@dataclass(frozen=True, slots=True)
class DataSettings(Settings):
    """Inputs to choose channels by, to repair with and to train on.

    Attributes:
        data: what `onnxprune.open_data` takes, or a `Dataset`.
        preprocess: how they become inputs, a recipe.
        limit: how many to calibrate on at most, and to train on at most; None for 512, and for all.
    """

    data: Any = setting(
        None,
        "Inputs to choose channels by and to repair the model with, labels not needed: an .npz or .npy file, a folder "
        "of .npy files, a folder or .zip of images, a Python function module:function, digits, or random.",
        metavar="DATA",
    )
    preprocess: Any = setting(None, "How --data become inputs; see `onnxprune evaluate`.", metavar="RECIPE")
    limit: int | None = setting(None, "Take this many samples of --data.", at_least=1, shown=str(LIMIT))


@dataclass(frozen=True, slots=True)
class RepairSettings(Settings):
    """How a pruned model is repaired.

    Attributes:
        method: "reconstruct" refits all weights by least squares, "bn" a scale and an intercept for each output, "bias"
            the intercepts.
        seed: of the samples that are used.
    """

    method: Method = "reconstruct"
    seed: int = setting(0, at_least=0)


@dataclass(frozen=True, slots=True)
class ShrinkSettings(Settings):
    """How a model is made smaller.

    Attributes:
        planning: how to plan.
        latency: where a target on latency is measured.
        policies: what leaves together.
        transform: a pass of the user's that the model goes through first: "module:function", or a function that takes
            and returns an onnx-graphsurgeon graph.
        inputs: inputs for the proof, by name; generated ones by default.
        input_shapes: sizes for inputs with symbolic dimensions, by name.
        verify: whether the result is proved.
        tolerance: largest error allowed, relative to an output's largest value; None for 1e-4, or by the coarsest type
            of the weights.
        calibration: inputs to choose channels by, to repair with and to train on.
        sensitivity: sensitivities that were measured before: curves, or the file that `onnxprune sensitivity` wrote.
        plan: a plan to carry out, or its file, instead of making one.
        recover: how the pruned model is repaired; None for "reconstruct" where there are data.
        max_drop: instead of a budget, the largest drop in accuracy.
        finetune: for how many epochs the pruned model is trained; None for not at all.
        steps: in how many steps the model is pruned, and trained after each.
        rewind: the model with the weights that the pruned one goes back to before training.
    """

    _rules: ClassVar = (
        Rule("plan", _PLANNING, "{first} says what to remove, and so does {other}", "drop one"),
        Rule("plan", ["sensitivity", "max_drop"], "{first} says what to remove, and so does {other}", "drop one"),
        Rule("max_drop", ["ratio", "target"], "both {first} and {other} say how much to remove", "give one of them"),
        Rule("max_drop", ["verify"], "{first} proves what it finds, and {other} forbids it", "drop one"),
        Rule("max_drop", ["recover=none"], "{first} is about repaired models, and {other} leaves them as they are"),
        Rule(
            "max_drop",
            ["finetune"],
            "{first} judges models that aren't trained",
            "prune with {first} first, then train with the command `finetune`",
        ),
        Rule("verify", ["inputs", "tolerance"], "{first} leaves nothing to {other}"),
        Rule(
            "data", ["preprocess", "limit", "recover", "max_drop", "finetune"], "{other} needs inputs", _NO_DATA, False
        ),
        Rule("finetune", ["steps", "rewind"], "{other} is about training", "say how long with {first}", forbids=False),
        *(
            Rule(
                name,
                ["plan", "sensitivity"],
                "in steps, each is planned by what training made of the one before",
                "leave {other} out",
            )
            for name in ("steps", "rewind")
        ),
        Rule(
            "target=latency",
            ["provider", "threads"],
            "{other} says where a latency is measured, and none is limited",
            "set {first} to a latency, or drop {other}",
            forbids=False,
        ),
        Rule(
            "target=latency",
            ["allocation=uniform", "allocation=global"],
            "{other} doesn't look at time",
            "leave it out: a latency has an allocation of its own",
        ),
        Rule("remove_blocks", ["sensitivity"], "sensitivities that were measured before don't go with {first}"),
    )

    planning: PlanSettings = setting(PlanSettings)
    latency: LatencySettings = setting(LatencySettings)
    policies: Policies = setting(Policies)
    transform: Any = setting(
        None,
        "Pass MODEL through this function first; it takes and returns an onnx-graphsurgeon graph.",
        metavar="MODULE:FUNCTION",
    )
    inputs: Any = setting(None, by_hand=True)
    input_shapes: Any = setting(None, by_hand=True)
    verify: bool = setting(True, "Write the result without proving it.", flag="--no-verify")
    tolerance: float | None = setting(None, **_TOLERANCE)
    calibration: DataSettings = setting(DataSettings)
    sensitivity: Any = setting(
        None, "What `onnxprune sensitivity -o` measured, for the allocation reconstruction.", metavar="FILE.json"
    )
    plan: Any = setting(None, "Apply this plan; excludes the options that would make one.", metavar="PLAN.json")
    recover: Literal["reconstruct", "bn", "bias", "none"] | None = setting(
        None,
        "Refit all weights by least squares, the mean and variance of every channel, the mean only, or nothing.",
        shown="reconstruct, if there is --data",
    )
    max_drop: Share | None = setting(
        None,
        "Instead of a budget: remove as much as lowers accuracy by no more than this, measured on a part of --data "
        "that isn't calibrated on. Without labels, disagreement with the original counts.",
        at_least=0,
        below=1,
    )
    finetune: int | None = setting(
        None,
        "Train the pruned model on all of --data to follow the original, and on labels if there are any.",
        at_least=1,
        metavar="EPOCHS",
    )
    steps: int = setting(1, "With --finetune: prune in this many steps, and train after each.", at_least=1)
    rewind: Any = setting(
        None,
        "With --finetune: train what remains from the weights of this model, an early stage of MODEL's training.",
        metavar="EARLY",
    )


@dataclass(frozen=True, slots=True)
class VerifySettings(Settings):
    """How a pruned model is held against its original.

    Attributes:
        plan: the plan by which it was made, or its file.
        inputs: an array for each input, by name; generated ones by default.
        tolerance: largest error allowed, relative to an output's largest value; None for 1e-4, or by the coarsest type
            of the weights.
        seed: of generated inputs; None for 0.
    """

    _rules: ClassVar = (
        Rule("plan", ["tolerance"], "{other} needs {first}: without it nothing is proved", forbids=False),
        Rule("inputs", ["seed"], "{other} draws inputs, and {first} gives them", "drop one"),
    )

    plan: Any = setting(
        None, "The plan by which PRUNED was made; only with it can equality be proved.", metavar="PLAN.json"
    )
    inputs: Any = setting(None, by_hand=True)
    tolerance: float | None = setting(None, **_TOLERANCE)
    seed: int | None = setting(None, "Seed of generated inputs.", at_least=0, shown="0")

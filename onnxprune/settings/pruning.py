"""How to get from a model to a smaller one: the settings of `prune_model`, of `verify` and of their commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxprune.settings.declare import Rule, Settings, flat, setting
from onnxprune.settings.evaluation import TaskSettings
from onnxprune.settings.planning import LatencySettings, Limited, PlanSettings, Policies
from onnxprune.settings.running import RunSettings
from onnxprune.settings.types import Share

Method = Literal["reconstruct", "bn", "bias"]

LIMIT = 512
"""Default number of calibration samples."""

_TOLERANCE: dict[str, Any] = {
    "help": "Largest error allowed, relative to the output's largest absolute value.",
    "at_least": 0,
    "shown": "1e-4 for float32, more for coarser types of weights",
}
READING = ("preprocess", "limit", "labels", "tokenizer", "task", "output_name", "postprocess", "alphabet", "blank")
PLANNING = [
    d.name
    for kind in (PlanSettings, LatencySettings)
    for d in flat(kind)
    if d.name not in ("seed", "threads", "provider")
]
"""Settings that say what to remove, which a plan says already."""


@dataclass(frozen=True, slots=True)
class DataSettings(Settings):
    """Input data, and how they are read."""

    data: Any = setting(
        None,
        "Input data, labels optional: an .npz or .npy file, a folder of .npy files, a folder or .zip of images, texts "
        "or lists of numbers in a .txt, .jsonl or .csv file, a Python function module:function that returns batches, "
        "digits, or random (synthetic inputs).",
        metavar="DATA",
    )
    preprocess: Any = setting(
        None,
        "How to turn data into inputs: 'resize=256 crop=224 channels=RGB scale=1/255 mean=0.485,0.456,0.406 "
        "std=0.229,0.224,0.225 label_offset=0' for images, 'text=FIELD labels=FIELD length=128' for texts, or a TOML "
        "file with these keys.",
        metavar="RECIPE",
        shown="the usual one that suits the model best, with a warning",
    )
    limit: int | None = setting(
        None,
        "Number of samples to use, chosen at random.",
        at_least=1,
        shown=f"{LIMIT} for calibration, all for training and evaluation",
    )
    labels: Any = setting(
        None,
        "Labels in a file of their own, in the order of the samples or by the names of image files: .npy or .npz, .txt "
        "(a line for each), .jsonl, COCO .json, or a folder of mask images.",
        metavar="LABELS",
    )
    tokenizer: Any = setting(
        None,
        "For texts: the model's tokenizer, a file of the package tokenizers.",
        metavar="TOKENIZER.json",
        shown="tokenizer.json in the model's folder",
    )
    reading: TaskSettings = setting(TaskSettings, "What outputs and labels mean.")


@dataclass(frozen=True, slots=True)
class RepairSettings(Settings):
    """How to repair a pruned model."""

    method: Method = setting(
        "reconstruct",
        "reconstruct refits all weights by least squares, bn a scale and an intercept for each output channel, bias "
        "the intercepts.",
    )
    seed: int = setting(0, "Random seed, for the choice of samples.", at_least=0)


@dataclass(frozen=True, slots=True)
class TrimSettings(Settings):
    """What to trim before channels are removed; without a budget, nothing else is removed."""

    last_token_logits: bool = setting(
        False,
        "Compute a decoder's logits for the last position only, as generation needs them: axis 1 of this output gets "
        "size 1. Sequences must be padded on the left, if at all.",
    )
    vocabulary: Any = setting(
        None,
        "Keep only the tokens whose ids this file lists, one in each line or as a JSON list. They are numbered anew in "
        "their old order; the new ids are written beside the model.",
        metavar="FILE",
    )
    keep_token_ids: bool = setting(
        False,
        "With `vocabulary`: let the model take old ids and give logits for them, minus infinity for removed tokens. A "
        "removed id is read as the first one that is kept.",
    )


@dataclass(frozen=True, slots=True)
class PruneSettings(Settings):
    """How to make a model smaller."""

    _rules: ClassVar = (
        Rule("plan", [*PLANNING, "sensitivity", "max_drop"], "both {first} and {other} say what to remove", "drop one"),
        Rule("max_drop", ["ratio"], "both {first} and {other} say how much to remove", "give one of them"),
        Rule(
            "max_drop",
            ["minimize"],
            "{other} needs a limit of the loss",
            "set it with {first}, or set a `target`",
            forbids=False,
        ),
        Rule("target", ["minimize"], "{first} says how much to remove, so {other} has no effect", "drop one"),
        Rule("max_drop", ["verify"], "{first} proves every trial, and {other} turns proofs off", "drop one"),
        Rule("max_drop", ["recover=none"], "{first} repairs every trial, and {other} turns repair off", "drop one"),
        Rule("max_drop", ["steps", "rewind"], "{first} can't be combined with {other}", "drop one"),
        *(
            Rule(name, ["checkpoint"], "pruning in steps can't be resumed, so {other} has no effect", "drop one")
            for name in ("steps", "rewind")
        ),
        Rule("checkpoint", ["resume"], "{other} needs a checkpoint", "name the file with {first}", forbids=False),
        *(
            Rule(
                name,
                ["resolution=auto", "axes"],
                "with {first}, only channels are chosen, at a resolution that is named",
                "drop {other}, or name a size with `resolution`",
            )
            for name in ("steps", "rewind")
        ),
        Rule("verify", ["inputs", "tolerance"], "{first} turns the proof off, so {other} has no effect", "drop one"),
        Rule(
            "data",
            [*READING, "recover", "repair_minutes", "repair_epochs", "max_drop", "finetune", "checkpoint"],
            "{other} needs inputs",
            "give some with {first}; labels are optional, and random generates synthetic inputs",
            forbids=False,
        ),
        Rule("finetune", ["repair_minutes", "repair_epochs"], "{first} trains the repaired model already", "drop one"),
        Rule("finetune", ["steps", "rewind"], "{other} needs training", "set the epochs with {first}", forbids=False),
        *(
            Rule(
                name,
                ["plan", "sensitivity"],
                "with {first}, every step is planned after the training of the step before, so {other} has no effect",
                "drop {other}",
            )
            for name in ("steps", "rewind")
        ),
        Rule(
            "target=latency|minimize=latency",
            ["cache"],
            "{other} says how to measure latency, but no latency is limited",
            "set {first} to a latency, or drop {other}",
            forbids=False,
        ),
        Rule(
            "target=latency|minimize=latency",
            ["allocation=uniform", "allocation=global"],
            "{other} doesn't take time into account",
            "drop it: a latency target has its own allocation",
        ),
        Rule("vocabulary", ["keep_token_ids"], "{other} needs a list of tokens", "give it with {first}", forbids=False),
    )

    planning: PlanSettings = setting(PlanSettings, "How to plan.")
    latency: LatencySettings = setting(LatencySettings, "Where a latency target is measured.")
    policies: Policies = setting(Policies, "What is removed together.")
    trimming: TrimSettings = setting(TrimSettings, "What to trim first.")
    running: RunSettings = setting(RunSettings, "How models are run.")
    transform: Any = setting(
        None,
        "Function that the model passes through before tracing; it takes and returns an onnx-graphsurgeon graph.",
        metavar="MODULE:FUNCTION",
    )
    inputs: Any = setting(None, "Arrays for the proof, by input name.", by_hand=True, shown="generated")
    input_shapes: Any = setting(None, "Shapes of inputs with symbolic dimensions, by name.", by_hand=True)
    verify: bool = setting(
        True, "Prove that the result computes what the original computes with the removed weights set to zero."
    )
    tolerance: float | None = setting(None, **_TOLERANCE)
    calibration: DataSettings = setting(DataSettings, "Data to choose channels with, to repair and to train on.")
    sensitivity: Any = setting(
        None,
        "Sensitivities measured before, for the allocation reconstruction: the file of `onnxprune sensitivity -o`, or "
        "curves.",
        metavar="FILE.json",
    )
    plan: Any = setting(None, "Apply this plan instead of making one.", metavar="PLAN.json")
    recover: Literal["reconstruct", "bn", "bias", "none"] | None = setting(
        None,
        "Repair the pruned model: refit all weights by least squares (reconstruct), the mean and variance of every "
        "channel (bn), the mean only (bias), or nothing (none).",
        shown="reconstruct with `data`",
    )
    repair_minutes: float | None = setting(
        None,
        "After that, repair with gradients for up to this many minutes, without labels: the inner tensors and outputs "
        "are trained to be the original's. A fifth of the samples for calibration is held back and decides whether "
        "the result is better. With `max_drop`, the trials share the time.",
        above=0,
        metavar="MINUTES",
    )
    repair_epochs: int | None = setting(
        None,
        "The same for at most this many passes through the samples, which gives the same result on a machine of any "
        "speed.",
        at_least=1,
        metavar="EPOCHS",
    )
    max_drop: Share | None = setting(
        None,
        "Allow this drop in accuracy, and save what it permits, by channels and smaller images (see `axes`). With "
        "`target`, remove what that asks for, and fail if the drop is larger. Samples of `data` choose the result that "
        "aren't used for calibration, and others judge it. Without labels, the drop is the disagreement with the "
        "original (for outputs that aren't class scores, the squared error relative to their variance).",
        at_least=0,
        below=1,
    )
    minimize: Limited | None = setting(
        None, "With `max_drop`: the cost to minimize: macs, params, size, memory or latency.", shown="macs"
    )
    finetune: int | None = setting(
        None,
        "Train the pruned model for this many epochs on all of `data`, with the original as teacher and with labels if "
        "there are any; with `max_drop`, every trial, on the samples that measure nothing.",
        at_least=1,
        metavar="EPOCHS",
    )
    steps: int = setting(1, "With `finetune`: prune in this many steps, and train after each.", at_least=1)
    rewind: Any = setting(
        None,
        "With `finetune`: before training, reset the remaining weights to those of this model, an early checkpoint of "
        "the original.",
        metavar="EARLY",
    )
    checkpoint: Any = setting(
        None,
        "With `data`: save what is done to this file: measured groups, repaired layers, trials. Training has a file "
        "beside it.",
        metavar="FILE",
    )
    resume: bool = setting(False, "Resume from `checkpoint`, if the file exists.")


@dataclass(frozen=True, slots=True)
class VerifySettings(Settings):
    """How to compare a pruned model with its original."""

    _rules: ClassVar = (
        Rule("inputs", ["seed"], "{other} is for generated inputs, and {first} replaces them", "drop one"),
        Rule("data", READING, "{other} needs inputs", "give some with {first}; labels are optional", forbids=False),
    )

    plan: Any = setting(
        None,
        "Plan that the model was pruned with; without any, nothing can be proved.",
        metavar="PLAN.json",
        shown="the one in the model's metadata",
    )
    inputs: Any = setting(None, "Arrays to compare on, by input name.", by_hand=True, shown="generated")
    tolerance: float | None = setting(None, **_TOLERANCE)
    seed: int | None = setting(None, "Random seed of generated inputs.", at_least=0, shown="0")
    calibration: DataSettings = setting(DataSettings, "Data to measure the agreement with the original on.")

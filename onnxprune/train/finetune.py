"""Fine-tuning: train a model with a backend, and keep the better of before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from onnxprune.data import Data, Dataset
from onnxprune.errors import OnnxPruneError, PlanError, TrainingError
from onnxprune.evaluation import Evaluation, evaluate, recognize
from onnxprune.evaluation.measure import interface_difference
from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import Model, Source, load
from onnxprune.model.session import Provider
from onnxprune.normalize import normalize
from onnxprune.planning.signature import carry_on, fingerprints, note_changes
from onnxprune.progress import Progress, silent, within
from onnxprune.recover import LeftOut
from onnxprune.runtime.functions import find_function, guarded, is_function_name
from onnxprune.settings.training import TrainSettings
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.train.backend import Job, Trained, TrainingBackend, plugin_backend
from onnxprune.train.batches import TrainingBatches, objective_of
from onnxprune.train.fake_quant import requantized, with_fake_quantization
from onnxprune.train.history import Epoch
from onnxprune.train.hold_out import hold_out_or_none, split_off
from onnxprune.train.loop import Loop
from onnxprune.train.masks import Masks
from onnxprune.train.runner import runner_for
from onnxprune.train.step import build_step
from onnxprune.train.tickets import Ticket, TicketRound, search
from onnxprune.train.trainable import untrained


@dataclass(frozen=True, slots=True)
class FineTuned:
    """The result of fine-tuning.

    Attributes:
        proto: the better model of before and after.
        kept: which one it is; "after" also without validation, or with a sparsity penalty.
        history: the epochs.
        epoch: the epoch of the trained model, None if the backend doesn't report it.
        metric: the metric that decided, None without validation.
        before: the evaluation before training, on held-out samples.
        after: the evaluation of the trained model.
        follows: the losses of each tensor that was trained.
        failure: why training ended early, if it diverged.
        sparsified: whether a sparsity penalty was used, whose effect no metric measures.
        untrained: the layers whose weights weren't trained, with the reasons.
        epochs: the number of epochs that were to be run, None if the backend doesn't report it.
        ticket: the lottery ticket, if one was looked for; the rest is of its training.
    """

    proto: ModelProto = field(repr=False)
    kept: Literal["before", "after"]
    history: tuple[Epoch, ...] = ()
    epoch: int | None = None
    metric: str | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failure: TrainingError | None = None
    sparsified: bool = False
    untrained: tuple[LeftOut, ...] = ()
    epochs: int | None = None
    ticket: Ticket | None = None


def finetune(
    model: Source,
    data: Dataset,
    *,
    teacher: Source | None = None,
    kept: PrunedGraph | None = None,
    validation: Dataset | None = None,
    hold_out: float = 0.1,
    labels: bool = True,
    settings: TrainSettings | None = None,
    backend: str | TrainingBackend = "native",
    training_python: Path | None = None,
    metric: str | None = None,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    every: int = 0,
    resume: bool = False,
    stoppable: bool = False,
    examples: int = 0,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
    threads: int | None = None,
    rewind: Source | None = None,
) -> FineTuned:
    """Train a model further, and keep the better of before and after; or look for a lottery ticket.

    Args:
        model: the model.
        data: training samples; labels aren't needed with a teacher.
        teacher: the original model, whose outputs are the target.
        kept: the teacher, traced, without what was pruned (`apply_plan`): for features that lost channels.
        validation: samples for validation.
        hold_out: share of the data that is held out for validation if none is given; 0 for none.
        labels: whether to learn from labels, if there are any.
        settings: the settings.
        backend: "native", "module:function" of a function that trains, the name of a plug-in's backend
            ("ort-training"), or any `TrainingBackend`.
        training_python: the Python interpreter that a plug-in trains in.
        metric: the metric that decides; by default the distance from the teacher, or accuracy without a teacher.
        progress: called after each step; its detail has the epoch, the loss and the learning rate.
        checkpoint: the file for checkpoints.
        every: steps between checkpoints, in addition to one after each epoch; 0 for none.
        resume: whether to resume from the checkpoint, if it exists.
        stoppable: whether an interrupt ends the training, and the best model so far is taken.
        examples: number of samples on which the trained model and the teacher disagree most to keep.
        providers: execution providers, in order of preference.
        threads: threads within an operator; ONNX Runtime's default if None.
        rewind: for a lottery ticket, the same network with the weights that each network after the first begins with;
            those of the model by default.

    Returns:
        The model and its training. If training diverged, ``failure`` says why.

    Raises:
        TrainingError: the model can't be trained as asked (OP901 to OP908).
        DataError: the data can't be read or don't fit.
        ModelError: a model can't be loaded or run.
        PlanError: a setting is out of range (OP303), or a pattern matches nothing (OP304).
    """
    settings = settings or TrainSettings()
    if settings.sparse is not None and backend != "native":
        raise TrainingError("OP908", "only the native backend makes weights sparse", hint="drop `backend` or `sparse`")
    if rewind is not None and settings.sparse != "ticket":
        raise PlanError("OP302", "`rewind` is for lottery tickets", hint="set `sparse` to ticket")
    source, original = load(model), None if teacher is None else load(teacher)
    data = data.evened() if isinstance(data, Data) else data  # training steps have fixed shapes
    if validation is None and hold_out:
        data, validation = split_off(source.proto, data, hold_out, settings.seed)

    taught = None if original is None else normalize(original.proto)

    def train(start: Source, at: Path | None, progress: Progress) -> FineTuned:
        given = load(start)
        job = Job(
            *(normalize(given.proto), data, settings, taught),
            labels=labels,
            kept=kept,
            progress=progress,
            checkpoint=at,
            every=every,
            resume=resume,
            stoppable=stoppable,
            providers=providers,
            threads=threads,
        )
        by = find_backend(backend, training_python) if isinstance(backend, str) else backend
        return _finetune(job, (given, original), validation, by, metric, examples)

    if settings.sparse != "ticket":
        return train(source, checkpoint, progress)
    proto, names = normalize(source.proto), list[str]()
    early = None if rewind is None else normalize(load(rewind).proto)

    def named(start: ModelProto, name: str) -> FineTuned:
        names.append(name)
        at = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}.{name}{checkpoint.suffix}")
        tuned = train(start, at, within(progress, f"training {len(names)} of {settings.ticket_steps + 2}"))
        if tuned.failure is not None:
            raise tuned.failure
        return tuned

    found = search(proto, early, settings, named)
    (_, dense), (zeros, last) = found.rounds[0], found.rounds[-1]

    def compared(other: FineTuned) -> Evaluation | None:
        if validation is None:
            return None
        known: dict[str, Any] = {"seed": settings.seed, "providers": providers, "threads": threads}
        return evaluate(last.proto, validation, against=other.proto, output=settings.output, **known)

    ticket = Ticket(
        tuple(TicketRound(share, tuned.after) for share, tuned in found.rounds),
        TicketRound(zeros, found.control.after),
        compared(found.control),
        compared(dense),
        rewound=early is not None,
    )
    note_changes(last.proto, fingerprints(proto), "training")
    return replace(last, before=dense.before, ticket=ticket)


def _finetune(
    job: Job,
    sources: tuple[Model, Model | None],
    validation: Dataset | None,
    backend: TrainingBackend,
    metric: str | None,
    examples: int,
) -> FineTuned:
    """Train a model once, given a job without what validation and labels add to it, and the files of both models."""
    proto, settings, kept = job.model, job.settings, job.kept
    runs: dict[str, Any] = {"output": settings.output, "providers": job.providers, "threads": job.threads}
    task = recognize(proto, job.data, **runs) if job.labeled else None
    about: dict[str, Any] = {"metric": metric, "batch": settings.batch, "seed": settings.seed}
    judge = hold_out_or_none(proto, validation, job.teacher, **about, **runs)
    identity = (
        *(None if source is None else source.sha256 for source in sources),
        None if kept is None else hashlib.sha256(kept.removed.tobytes()).hexdigest(),
        settings,
        len(job.data),
        judge and judge.metric,
    )
    job = replace(
        job,
        task=task,
        judge=judge,
        start=None if judge is None else judge.worth(judge.first),
        fingerprint=hashlib.sha256(repr(identity).encode()).hexdigest(),
    )
    trained = backend.train(job)
    carry_on(proto, trained.model)
    note_changes(trained.model, fingerprints(proto), "training")
    names = ("history", "epoch", "epochs", "follows", "failure", "untrained")
    told: dict[str, Any] = {name: getattr(trained, name) for name in names}
    if judge is None:
        return FineTuned(close_bodies(trained.model), "before" if trained.epoch == 0 else "after", **told)
    after = judge.evaluate(trained.model, examples=examples)
    better = judge.worth(after) > judge.worth(judge.first)
    if settings.sparsifies:  # the benefit only shows when the model is pruned
        better = trained.epoch != 0
    return FineTuned(
        *(close_bodies(trained.model if better else proto), "after" if better else "before"),
        metric=judge.metric,
        before=judge.first,
        after=after,
        sparsified=settings.sparsifies,
        **told,
    )


def find_backend(name: str, training_python: Path | None = None) -> TrainingBackend:
    """Return a backend by its name.

    Raises:
        TrainingError: the name is unknown (OP908).
        DataError: a function can't be imported (OP710).
        UsageError: a plug-in can't be loaded (OP607).
    """
    if name == "native":
        return Native()
    return Function(name) if is_function_name(name) else plugin_backend(name, training_python)


_CPU = "CPUExecutionProvider"


class Native:
    """Trains on the installed ONNX Runtime, on any of its execution providers."""

    def train(self, job: Job) -> Trained:
        """Train a model.

        Raises:
            TrainingError: the model can't be trained as asked (OP901 to OP906).
        """
        model = with_fake_quantization(job.model)
        fast = all((p if isinstance(p, str) else p[0]) == _CPU for p in job.providers)
        batches = TrainingBatches(job, goal := objective_of(job, model))
        step = build_step(model, goal, job.settings, batches.example, scales=batches.scales, fast=fast)
        runner = runner_for(step, providers=job.providers, threads=job.threads)
        masked = {name: step.state[name].shape for name in step.masked}
        masks = Masks(masked, runner, job.settings) if masked else None
        trained = Loop(replace(job, model=model), batches, runner, masks).all()
        made = trained.model if model is job.model else requantized(trained.model, job.model)
        left = untrained(model, step.weights, step.unreached)
        return replace(trained, model=made, follows=goal.follows, untrained=left)


class Function:
    """Trains by a user's ``module:function``.

    The function is called with the model (an onnx ModelProto) and the data (a `Dataset`, whose ``batches(size)`` yields
    inputs and labels). It returns the trained model as a ModelProto, bytes or a path.
    """

    def __init__(self, name: str) -> None:
        """Import the function.

        Raises:
            DataError: it can't be imported (OP710).
        """
        self.name = name
        self._function = find_function(name)

    def train(self, job: Job) -> Trained:
        """Call the function.

        Raises:
            DataError: the function failed (OP710).
            TrainingError: it returned no model, or one with other inputs or outputs (OP908).
        """
        model = ModelProto()
        model.CopyFrom(job.model)
        with guarded(self.name, "the training"):
            given = self._function(model, job.data)
        try:
            found = load(given).proto
        except (OnnxPruneError, TypeError, AttributeError) as error:
            cause = f"it did not return a model: {error}".splitlines()[0]
            raise TrainingError("OP908", cause, where=self.name) from error
        if difference := interface_difference(found, job.model):
            raise TrainingError("OP908", f"it returned another model: {difference}", where=self.name)
        return Trained(found)

"""`onnxprune prune`: remove channels, prove the result and write it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from onnxprune.cli import options
from onnxprune.cli.making import makes
from onnxprune.cli.models import read_model, user_functions
from onnxprune.cli.output import Output, check_output, warn_of_gaps, what_is_kept, write_text
from onnxprune.errors import PlanError
from onnxprune.settings import PruneSettings, build

if TYPE_CHECKING:
    from onnxprune.plot import TradeOff
    from onnxprune.workflow.prune_model import PruneResult

_REASONS = 5

_EXAMPLES = """\b
Examples:
  onnxprune prune model.onnx -o small.onnx --target macs=50%
  onnxprune prune model.onnx -o small.onnx --target latency=50% --threads 1
  onnxprune prune model.onnx -o small.onnx --ratio 30% --input x.npy
  onnxprune prune model.onnx -o small.onnx --target macs=50% --save-plan plan.json
  onnxprune prune model.onnx -o small.onnx --plan plan.json
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data images/
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data train.npz --finetune 10
  onnxprune prune model.onnx -o small.onnx --target macs=25% --data train.npz --finetune 5 --steps 3
  onnxprune prune model.onnx -o small.onnx --max-drop 1% --data val/
  onnxprune prune model.onnx -o small.onnx --resolution 160 --target macs=50%
  onnxprune prune decoder.onnx -o small.onnx --last-token-logits --vocabulary ids.txt
"""


@makes("prune", PruneSettings, "File for the pruned model.", examples=_EXAMPLES)
@options.file(
    "--save-plan", "PLAN.json", "Also write the plan that was applied; with --plan, it gives the same result."
)
@options.input_shapes
@options.inputs
@options.summary
@options.plot("Plot the widths of groups before and after, and with --max-drop its trials.")
def command(
    model: Path,
    output: Path,
    given: dict[str, Any],
    save_plan: Path | None,
    input_shapes: list[Any],
    inputs: list[Any],
    summary: bool,
    plot: Path | None,
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Remove the least important channels of MODEL, prove the result and write it.

    The proof: the pruned model must compute what the original computes with the removed weights set to zero. If it
    doesn't, nothing is written and the exit status is 1.

    With --data, channels are removed where the outputs change least. The proved model is then repaired: its weights are
    refitted so that the layers reproduce their original outputs. With --finetune, it is also trained, with the original
    as teacher and with labels if there are any; `onnxprune finetune` has more options. With --steps, pruning and
    training alternate.

    With --resolution, images are resized inside the model, and the whole network runs on fewer pixels. Inputs and
    outputs of the file stay as they are. This is proved by itself, against the original run on resized images.

    With --axes channels,basis, combinations of channels are removed where only linear operators touch them, as in the
    bottlenecks of MobileNets, the residual streams of transformers with norms in front of their branches, or within
    the heads of attentions (--attention width). The network in another basis is proved by itself, against the original.

    With --last-token-logits or --vocabulary, a language model is trimmed first, which loses nothing of what is left.
    Each is proved by itself, and needs no budget.
    """
    from onnxprune.model.file import file_size, save
    from onnxprune.plot import plot_widths
    from onnxprune.report.console import (
        cost_tables,
        latency_tables,
        pin_tables,
        removal_tables,
    )
    from onnxprune.report.documents import document
    from onnxprune.report.evaluation import evaluation_tables, finetuning_tables, left_out_tables
    from onnxprune.report.outcome import outcome_tables
    from onnxprune.report.pruning import changed, pruning_fields
    from onnxprune.report.summary import summarize
    from onnxprune.report.trials import trial_tables
    from onnxprune.report.verification import comparison_tables, proof_checks, proof_tables
    from onnxprune.rewrite.comparison import Comparison
    from onnxprune.workflow.genai import config_after, config_beside, config_for, read_config
    from onnxprune.workflow.outcome import outcome
    from onnxprune.workflow.prune_model import prune_model

    settings = build(PruneSettings, {**given, **({"inputs": True} if inputs else {})})
    config = config_beside(model)
    target = output if config is None else config_for(output, config)
    reads = [model, config, settings.plan, settings.sensitivity, settings.calibration.data, settings.rewind]
    reads += [settings.trimming.vocabulary, *(path for _, path in inputs)]
    check_output(output, force, inputs=reads)
    if save_plan is not None:
        if save_plan.absolute() == output.absolute():
            raise PlanError("OP302", "-o and --save-plan name the same file", where=str(output), hint="name another")
        check_output(save_plan, force, inputs=reads)
    if config is not None:
        read_config(config)  # refuses a damaged one before the work
        check_output(target, force, inputs=reads)
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    if checkpoint is not None:
        check_output(checkpoint, force or settings.resume, inputs=[*reads, output])
    out.on_stop(partial(what_is_kept, checkpoint, time(), useful=settings.calibration.data is not None))
    if plot is not None:
        check_output(plot, force, inputs=[*reads, output])
    user_functions(*map(given.get, ("data", "transform", "postprocess", "criterion")))
    with out.progress() as progress:
        progress("load", 0, None)
        loaded, shapes, arrays = read_model(model, input_shapes, inputs)
        weights = output.with_name(f"{output.stem}.onnx.data")
        new_ids = output.with_name(f"{output.stem}.vocabulary.json")
        if settings.trimming.vocabulary is not None:
            check_output(new_ids, force, inputs=reads)
        if loaded.external:
            check_output(weights, force, inputs=[*reads, *loaded.data_files])
        size = file_size(loaded)
        settings = replace(settings, input_shapes=shapes, inputs=arrays)
        result = prune_model(loaded, settings, progress=progress, consume=True, examples=examples)
        text = (
            None
            if config is None
            else config_after(read_config(config), result.pruned.kept, output.name, result.new_ids)
        )
        progress("write", 0, None)
        save(result.model, output, force=force)
        if save_plan is not None:
            write_text(save_plan, result.plan.to_json())
        if result.new_ids is not None:
            write_text(new_ids, json.dumps({"new_ids": result.new_ids}) + "\n")
        if text is not None:
            write_text(target, text)
        out.on_stop(lambda: f"stopped; {output} was written")
        found = (
            outcome(result, settings, examples=examples, layers=out.reports, progress=progress)
            if summary and (out.form != "table" or out.verbosity >= 0 or out.reports)
            else None
        )
    written = replace(result.model, path=output, data_files=(weights,) if result.model.external else ())
    files = size, file_size(written)
    change, dense = changed(result), summarize(result.analysis.graph)
    if plot is not None:
        plot_widths(change.groups, change.labels, plot, _trade_off(result))
        out.note(f"wrote {plot}")
    checked, evaluation, tuned = Comparison(verification=result.pruned.verification), result.evaluation, result.tuned
    latency = result.plan.settings.get("latency")
    out.summary(
        document(
            "prune",
            model=model,
            output=output,
            **pruning_fields(result, change, dense),
            file_size={"before": files[0], "after": files[1]},
            evaluation=evaluation,
            drop=result.drop,
            outcome=found,
        ),
        *([pin_tables(dense, f"see `onnxprune explain {model}`", first=_REASONS)] if out.verbosity > 0 else []),
        *([comparison_tables(checked)] if out.verbosity > 0 else []),
        left_out_tables("not repaired", result.unrepaired, dense.labels),
        *([] if tuned is None else [finetuning_tables(tuned)]),
        cost_tables(change, files),
        removal_tables(change),
        *([] if latency is None else [latency_tables(latency)]),
        *([trial_tables(result.trials, result.metric)] if len(result.trials) > 1 else []),
        *([] if evaluation is None else [evaluation_tables(evaluation)]),
        proof_tables(result.pruned, result.repairs, tuned),
        *([] if found is None else [outcome_tables(found, files)]),
        checks=proof_checks(checked.verification),
    )  # what matters most comes last
    warn_of_gaps(out, result.plan, result.pruned.verification)
    also = [new_ids] if result.new_ids is not None else []
    also += [target] if config is not None else []
    also += [save_plan] if save_plan is not None else []
    out.note(f"wrote {' and '.join(map(str, [output, *also]))}")
    if result.verdict is not None:
        out.note(result.verdict)


def _trade_off(result: PruneResult) -> TradeOff | None:
    """Return the trials of a search for the smallest model, if there was one."""
    from onnxprune.plot import TradeOff
    from onnxprune.settings.evaluation import METRICS

    if not result.trials or result.allowed is None:
        return None
    facts = METRICS.get(result.metric)
    trials = [(trial.share, trial.loss, trial.accepted) for trial in result.trials]
    title, share = (result.metric, True) if facts is None else (facts.title, facts.share)
    return TradeOff(result.minimized, title, trials, result.allowed, share)

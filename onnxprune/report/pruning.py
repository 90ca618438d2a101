"""Fields of the documents of pruning: what was removed, proved and repaired, and what chose it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnxprune.report.documents import fields, pick
from onnxprune.report.evaluation import finetuning_fields
from onnxprune.report.summary import ModelSummary, PlanSummary, summarize_plan
from onnxprune.report.trials import trial_fields
from onnxprune.rewrite.comparison import Comparison
from onnxprune.sensitivity import entry_of
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.prune_model import PruneResult


def changed(result: PruneResult) -> PlanSummary:
    """Return what a run removed, relative to the model as it was given."""
    return planned(result.analysis, result.pruned.kept)


def planned(analysis: TracedModel, kept: PrunedGraph) -> PlanSummary:
    """Return what a plan changes and removes, relative to the model as it was given.

    Args:
        analysis: the traced model with the changes.
        kept: the same, and what is removed from it.
    """
    changes = tuple(map(str, analysis.changes))
    return replace(summarize_plan(kept), before=analysis.cost, changes=changes, ranks=analysis.moves.ranks)


def pruning_fields(result: PruneResult, change: PlanSummary, dense: ModelSummary) -> dict[str, Any]:
    """Return what a document contains of a run.

    Args:
        result: the run's result.
        change: see `changed`.
        dense: the summary of the model as it was given.
    """
    graph, tuned, limit = result.analysis.graph, result.tuned, result.allowed
    return {
        **fields(result.plan),
        **fields(change),
        **fields(Comparison(verification=result.pruned.verification)),
        "pins": dense.pins,
        "repairs": result.repairs,
        "unrepaired": result.unrepaired,
        "trims": [pick(trimmed, "what", "error") for trimmed in result.trims],
        "sensitivity": [entry_of(curve, graph) for curve in result.curves],
        "allowed": None if limit is None else {"drop": limit, "metric": result.metric, "cost": result.minimized},
        "trials": [trial_fields(trial) for trial in result.trials],
        "finetuning": None if tuned is None else finetuning_fields(tuned),
    }

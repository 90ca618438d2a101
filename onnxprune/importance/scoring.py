"""Score all groups of a traced model with a criterion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.importance.activations import Activations, gather
from onnxprune.importance.base import GroupView, Scores, SlotRows
from onnxprune.importance.gates import GateGradients
from onnxprune.importance.products import Products
from onnxprune.importance.registry import find
from onnxprune.importance.roles import roles
from onnxprune.importance.weight_view import WeightView
from onnxprune.model.stream import Batches
from onnxprune.progress import Progress, silent
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group


def score(
    graph: ChannelGraph,
    name: str = "l2",
    *,
    seed: int = 0,
    batches: Batches | None = None,
    progress: Progress = silent,
) -> list[Scores]:
    """Score the units of every group.

    Raw scores are divided by the mean of their absolute values over the group, as in DepGraph (Fang et al., CVPR 2023):
    large weights alone don't make a layer more important. The scores of lamp and obs are comparable already and aren't
    divided.

    Args:
        graph: the traced model.
        name: the criterion.
        seed: for random criteria.
        batches: returns the inputs, for criteria that run the network.
        progress: called with the groups that are done.

    Returns:
        For every group of ``graph.groups`` the scores of its units in their order, shape (units,); higher is more
        important, NaN means not scored.

    Raises:
        PlanError: there is no such criterion (OP308), it failed (OP309), it can score no group (OP311), or it needs
            inputs (OP312); or the seed is negative (OP303).
        ModelError: a weight isn't finite (OP126).
        UsageError: the criterion's package can't be loaded (OP607).
    """
    entry = find(name)
    if entry.data and batches is None:
        hint = "give unlabeled inputs with `data`, or use a criterion that reads only weights, such as l2"
        raise PlanError("OP312", f"criterion {name!r} needs inputs", hint=hint)
    scores = []
    for view in views(graph, seed=seed, batches=None if entry.data is False else batches):
        scores.append(raw_scores(name, view))
        progress("score", len(scores), len(graph.groups))
    if scores and all(np.isnan(s).all() for s in scores):
        cause = f"criterion {name!r} can score no group of channels"
        if entry.reads:
            cause += f": none has {entry.reads}"
        raise PlanError("OP311", cause, hint="use another criterion, such as l2")
    return scores if entry.comparable else [_relative(s) for s in scores]


def views(
    graph: ChannelGraph, *, seed: int = 0, batches: Batches | None = None, groups: Iterable[Group] | None = None
) -> Iterator[GroupView]:
    """Yield a traced model's groups as criteria see them; weights are read when they are needed.

    Args:
        graph: the traced model.
        seed: of the random generators, one for each group.
        batches: returns the inputs, for `GroupView.activations`, `GroupView.gates` and `GroupView.products`.
        groups: the groups to yield, in this order; all by default.

    Raises:
        PlanError: the seed is negative (OP303).
    """
    if seed < 0:
        raise PlanError("OP303", f"{seed} is out of range: must be at least 0", where="seed")
    weights, role = WeightView(graph), roles(graph)
    summed = graph.summed
    labels = {slot: graph.unit_of[ids] for slot, ids in graph.slots.items()}
    chosen = graph.groups if groups is None else groups
    gates = None if batches is None else GateGradients(graph, batches, seed)
    products = None if batches is None else Products(graph, batches)
    unread: Iterable[tuple[Group, Activations]] = ((group, ()) for group in chosen)
    for group, activations in unread if batches is None else gather(graph, chosen, batches, seed=seed):
        rows = tuple(
            SlotRows(
                tensor=slot[0],
                axis=slot[1],
                role=role.get(slot[0], "vector"),
                reads=slot in summed,
                units=group.units,
                labels=labels[slot],
                weights=weights,
            )
            for slot in group.slots
        )
        yield GroupView(group, rows, np.random.default_rng((seed, group.index)), activations, gates, products)


def raw_scores(name: str, view: GroupView) -> Scores:
    """Return a criterion's scores of one group, shape (units,); `score` makes those of groups comparable.

    Raises:
        PlanError: there is no such criterion (OP308), or it failed (OP309).
        ModelError: a weight isn't finite (OP126).
        UsageError: the criterion's package can't be loaded (OP607).
    """
    entry = find(name)
    where = f'group {view.group.index}, "{view.group.name}"'
    try:
        with np.errstate(all="ignore"):
            scores = np.asarray(entry.function(view), dtype=np.float64)
    except OnnxPruneError:
        raise
    except Exception as error:  # a package's criterion can raise anything
        cause = f"criterion {name!r} failed: {type(error).__name__}: {error}"
        raise PlanError("OP309", cause, where=where) from error
    if scores.shape != view.group.units.shape or np.isinf(scores).any():
        units = len(view.group.units)
        cause = f"criterion {name!r} didn't return a finite score for each of {units} units"
        raise PlanError("OP309", cause, where=where)
    return scores


def _relative(scores: Scores) -> Scores:
    known = np.abs(scores[~np.isnan(scores)])
    mean = known.mean() if known.size else 0.0
    return scores / mean if mean > 0 else scores

"""What can be tried on a model: the axes of the space that recipes are points of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from onnxprune.cost.cost import cost
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.planning.budget import candidate_steps
from onnxprune.planning.plan import apply_plan
from onnxprune.sensitivity import Curve, predicted_error
from onnxprune.settings import PlanSettings
from onnxprune.settings.planning import Constraints, Target
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.planning import plan

Choice = Mapping[str, Any]
"""A point: a value for each axis, by its name."""

CHANNELS, RESOLUTION, FORM, ERROR = "channels", "resolution", "form", "error"
WHOLE, NONE = "whole", "none"

_ERRORS = (0.01, 0.03, 0.1, 0.3, 1.0)  # predicted error of the outputs at the planner's own points
_LEAST = 5  # percent of the MACs


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a space.

    Attributes:
        name: its name.
        choices: its values, the first of which leaves the model as it is; empty for a range of whole numbers.
        low: the least number.
        high: the largest number, which leaves the model as it is.
    """

    name: str
    choices: tuple[str | float, ...] = ()
    low: int = 0
    high: int = 0

    @property
    def rest(self) -> Any:
        """The value that leaves the model as it is, or that matters to no other axis."""
        return self.choices[0] if self.choices else self.high


Space = tuple[Axis, ...]


def space_of(analysis: TracedModel, resolutions: Sequence[str], forms: Sequence[str]) -> Space:
    """Return the space of a model; axes with a single value are left out.

    Args:
        analysis: the traced model.
        resolutions: smaller sizes of its images.
        forms: kinds of numbers that can be made of it.
    """
    axes = [
        Axis(CHANNELS, low=_least(analysis.graph), high=100),
        Axis(RESOLUTION, (WHOLE, *resolutions)),
        Axis(FORM, (NONE, *forms)),
        Axis(ERROR, (1.0, 0.03, 0.003) if forms else ()),
    ]
    return tuple(axis for axis in axes if len(axis.choices) > 1 or axis.low < axis.high)


def _least(graph: ChannelGraph) -> int:
    """Return the least share of the MACs that the default constraints allow, in percent."""
    removed, steps = candidate_steps(graph, [np.ones(len(group.units)) for group in graph.groups], Constraints())
    for step in (step for own in steps.values() for step in own):
        removed[step.units] = True
    whole = cost(PrunedGraph(graph)).macs
    return max(_LEAST, 1 + 100 * cost(PrunedGraph(graph, removed)).macs // whole) if whole and removed.any() else 100


def first_points(space: Space, analysis: TracedModel, curves: Sequence[Curve]) -> list[Choice]:
    """Return the points that the planner would try: the whole model, smaller images, its own curves at rising errors.

    Those of images of the file's size come without and with each form of numbers.
    """
    rest = {axis.name: axis.rest for axis in space}
    forms = next((axis.choices for axis in space if axis.name == FORM), ())
    shares = [100, *_shares(space, analysis, curves)]
    points = [{**rest, **({CHANNELS: share} if CHANNELS in rest else {})} for share in shares]
    sizes = next((axis.choices for axis in space if axis.name == RESOLUTION), ())
    smaller = [{**rest, RESOLUTION: size} for size in sizes[1:]]
    return [points[0], *smaller, *points[1:], *({**point, FORM: form} for form in forms[1:] for point in points)]


def _shares(space: Space, analysis: TracedModel, curves: Sequence[Curve]) -> list[int]:
    """Return the shares of the MACs, in percent, at which curves predict some errors of the outputs."""
    axis = next((axis for axis in space if axis.name == CHANNELS), None)
    if axis is None or not curves:
        return []
    by_group, errors = {curve.group: curve for curve in curves}, dict[int, float]()
    for share in range(axis.high - 5, axis.low - 1, -5):
        settings = PlanSettings(target=Target("macs", share / 100), axes=("channels",))
        try:
            made = plan(analysis, settings, sensitivity=curves)
        except PlanError:
            break
        errors[share] = max(predicted_error(analysis.graph, by_group, apply_plan(analysis.graph, made).removed), 1e-9)
    nearest = (min(errors, key=lambda share: abs(log(errors[share] / wanted))) for wanted in _ERRORS if errors)
    return list(dict.fromkeys(nearest))


def possible(kinds: Sequence[str], make: Callable[[str], object]) -> list[str]:
    """Return the kinds of numbers that can be made of a model, by making each once."""
    found = []
    for kind in kinds:
        try:
            make(kind)
        except OnnxPruneError:
            continue
        found.append(kind)
    return found


def plainest(choice: Choice) -> dict[str, Any]:
    """Return a point without what has no effect: two points that are equal then give the same model."""
    found = dict(choice)
    if found.get(FORM, NONE) == NONE:
        found.pop(ERROR, None)
    return found

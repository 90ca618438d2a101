"""Gradients: by how much the loss would change without a unit, seen from where it is."""

from __future__ import annotations

from onnxprune.importance.base import Scores, View
from onnxprune.importance.registry import criterion

_READER = "a layer with weights that reads it"


@criterion("taylor", reads=_READER, data=True)
def taylor(view: View) -> Scores:
    """Score a unit by the mean over samples of the first-order change of the loss when it is removed.

    Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019.
    """
    return view.unscored if view.gates is None else view.gates.mean_absolute(view.group.units)


@criterion("fisher", reads=_READER, data=True)
def fisher(view: View) -> Scores:
    """Score a unit by the Fisher information about its gate, half of which is the expected rise of the loss.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018); Liu et al., "Group Fisher
    pruning", ICML 2021, for units of several layers.
    """
    return view.unscored if view.gates is None else view.gates.mean_square(view.group.units)

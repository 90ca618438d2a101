"""Sensitivity curves of single layers: the output error when one layer gets other weights, all others kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from onnx import ModelProto

from onnxprune.model.stream import Batches
from onnxprune.model.tensors import Weights
from onnxprune.progress import Progress, silent
from onnxprune.recover.layers import LinearLayer
from onnxprune.recover.lstsq import Evidence, Rows
from onnxprune.recover.regression import LayerIndex, intercept_place, set_parameters
from onnxprune.recover.repair import solve_layers
from onnxprune.sensitivity.curves import Curve, Point, few, share_out
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

Changes = Callable[[LinearLayer, Evidence, Evidence, Rows], Iterable[tuple[int, Rows]]]
"""Returns the weights to try for a layer, given it, the moments to fit, those held back, and the weights that it has;
each with the number of units that they lack."""

_POSITIONS = 1024  # of 32 samples; fewer than for a solution, as errors are compared only


def measure_layers(
    graph: ChannelGraph,
    units: Mapping[str, tuple[int, int]],
    changes: Changes,
    batches: Batches,
    *,
    makes_up: bool = True,
    seed: int = 0,
    phase: str = "measure layers",
    progress: Progress = silent,
) -> list[Curve]:
    """Return the sensitivity of the outputs to each layer alone, on samples that nothing is fitted to.

    Args:
        graph: the traced network.
        units: of each layer, by its node's name, its number, which is the curve's group, and how many units it has.
        changes: returns the weights to try.
        batches: returns inputs.
        makes_up: whether the last layer in front of a sum makes up for the error of the other branch.
        seed: of the choice of positions.
        phase: what this work is called.
        progress: called with the layers that are done.
    """
    fitted_on, judged_on = share_out(batches)
    judge, found = OutputError(graph.proto, few(judged_on), graph.front), list[Curve]()
    index = LayerIndex(graph.proto, {name: number for name, (number, _) in units.items()}, graph.shapes.shapes)

    def fit(layer: LinearLayer, fitted: Evidence, held: Evidence, start: Rows) -> Rows:
        points, place = [], intercept_place(layer, index)
        for removed, weights in changes(layer, fitted, held, start):
            changed = ModelProto()
            changed.CopyFrom(graph.proto)
            set_parameters(layer, Weights(changed), place, weights)
            points.append(Point(removed, judge(changed, index.positions[layer.node.name])))
        number, count = units[layer.node.name]
        found.append(Curve(number, tuple(range(count)), tuple(points)))
        return start

    dense = ModelProto()
    dense.CopyFrom(graph.proto)
    known = PrunedGraph(graph), dense, fitted_on, fit, lambda layer: layer.node.name in units
    solve_layers(*known, makes_up=makes_up, seed=seed, positions=_POSITIONS, phase=phase, progress=progress)
    return found

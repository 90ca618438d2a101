"""A budget on the packed file, spent on channels and on zeros.

Channels cost nothing to tell apart, and zeros the bits that say where they are; but zeros can be anywhere. How much of
the budget channels should take is found by trials, as resolutions are: the network is pruned to several shares, zeros
make up for what is missing, all weights are solved for in one pass over the layers, and the error of the outputs is
measured on inputs held back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import escape
from io import BytesIO
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.data import Dataset, is_noise
from onnxprune.errors import ModelError, PlanError
from onnxprune.model.stream import Batches
from onnxprune.model.tensors import Weights
from onnxprune.model.wire import PROTOBUF_LIMIT, pieces
from onnxprune.packing import container
from onnxprune.packing.spans import Span, spans_of_model
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.progress import Progress, within
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, judge_of, share_out
from onnxprune.settings import PlanSettings, Target
from onnxprune.settings.planning import Constraints
from onnxprune.sparsity.budget import measure
from onnxprune.sparsity.network import Sparse, candidates, share_out_zeros, sparsify
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.planning import plan, sensitivities, settled

log = logging.getLogger(__name__)

_CHANNELS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.88)  # shares of the weights' bytes that are tried
_MOST = 0.99  # zeros in what is left, at most
_ROUNDS, _CLOSE = 6, 0.985  # rounds of solving until the packed file has this share of the bytes allowed
_SPARE = 0.003  # of the bytes allowed, to be left over; more in every round
_LARGER = "allow more, or prune channels with the command `prune` before"

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Tried:
    """A way to spend the budget that was tried.

    Attributes:
        channels: the share of the weights' bytes that leaves with channels.
        zeros: the share of zeros in the layers that are left.
        error: how far the outputs on inputs held back are from the original's, see `onnxprune.sensitivity.judge_of`.
    """

    channels: float
    zeros: float
    error: float

    def __str__(self) -> str:
        """Return the shares and the error."""
        return f"{self.channels:.0%} of the bytes by channels with {self.zeros:.1%} zeros {self.error:.3g}"


@dataclass(frozen=True)
class Budget:
    """Makes sparse networks whose packed files have a number of bytes at most.

    Attributes:
        analysis: the traced model.
        way: how layers are made sparse.
        limit: the bytes.
        batches: returns inputs; None for magnitude.
        keep: nodes whose weights stay as they are.
        uniform: whether all layers have the same share of zeros.
        seed: of random choices.
        progress: called with phases and their parts.
    """

    analysis: TracedModel
    way: Way
    limit: float
    batches: Batches | None
    keep: Collection[str]
    uniform: bool
    seed: int
    progress: Progress

    def choose(self, data: Dataset) -> tuple[PrunePlan | None, tuple[Tried, ...]]:
        """Return which channels to remove, None for none, and what was tried.

        Shares are tried from none on, as long as the error falls.

        Args:
            data: the samples as they were given; they may say what outputs mean.

        Raises:
            PlanError: nothing meets the limit (OP301).
            ModelError: the model can't be run on the inputs.
        """
        assert self.batches is not None
        if is_noise(data) or len(list(islice(self.batches(), 2))) < 2:
            log.info("channels stay: there are too few real inputs to hold some back, which tell whether removing pays")
            return None, ()
        fitted, held_back = share_out(self.batches)
        graph, tried, plans = self.analysis.graph, list[Tried](), list[PrunePlan | None]()
        judge = judge_of(self.analysis.original, held_back, graph.front, data)
        problem: PlanError | None = None
        constraints = Constraints(exclude=tuple(map(escape, sorted(self.keep))))
        settings = PlanSettings(target=Target("size", 1.0), axes=("channels",), constraints=constraints, seed=self.seed)
        known: Sequence[Curve] | None = None
        for number, share in enumerate((0.0, *_CHANNELS)):
            part = within(self.progress, f"try channels, {number + 1} of {len(_CHANNELS) + 1}")
            try:
                made = None
                if share:
                    own = replace(settings, target=Target("size", 1 - share))
                    known = known or sensitivities(self.analysis, settled(own, data=True), fitted, progress=part)
                    made = plan(self.analysis, own, data=fitted, sensitivity=known, progress=part)
                zeros = self._forecast(kept := self._without(made)).zeros(self.limit)
            except PlanError as failure:
                if failure.code != "OP301":
                    raise
                problem = problem or failure
                continue
            error = judge(self._sparse(kept, zeros, fitted, part).proto)
            tried.append(Tried(share, zeros, error))
            plans.append(made)
            if error > min(each.error for each in tried) or not zeros:
                break
        if not tried:
            assert problem is not None
            raise problem
        best = min(range(len(tried)), key=lambda i: tried[i].error)
        log.debug("%s on inputs held back: %s", judge.measures, ", ".join(map(str, tried)))
        return plans[best], tuple(tried)

    def meet(self, plan: PrunePlan | None, finish: Callable[[Sparse], M], size: Callable[[M], int]) -> M:
        """Return the network with the fewest zeros that meets the limit.

        The forecast is set right by the bytes that a network really has, a few times.

        Args:
            plan: the channels that leave.
            finish: makes the file's model.
            size: returns its packed bytes.

        Raises:
            PlanError: none meets the limit (OP301).
        """
        kept = self._without(plan)
        forecast, aim, best = self._forecast(kept), self.limit, list[tuple[int, M]]()
        for number in range(1, _ROUNDS + 1):
            try:
                zeros = forecast.zeros(aim)
            except PlanError:
                if not best and number == 1:
                    raise
                break
            made = finish(self._sparse(kept, zeros, self.batches, self.progress))
            if (now := size(made)) <= self.limit:
                best.append((now, made))
                if now >= _CLOSE * self.limit or not zeros:
                    break
            aim += self.limit * (1 - _SPARE * number) - now
        if not best:
            cause = f"the packed file would have {now:,} bytes, and {self.limit:,.0f} are allowed"
            raise PlanError("OP301", cause, where="packed_size", hint=_LARGER)
        return max(best, key=lambda each: each[0])[1]

    def _without(self, plan: PrunePlan | None) -> PrunedGraph:
        graph = self.analysis.graph
        return PrunedGraph(graph) if plan is None else apply_plan(graph, plan)

    def _sparse(self, kept: PrunedGraph, zeros: float, batches: Batches | None, progress: Progress) -> Sparse:
        curves = self._curves_of(kept)
        how = {"keep": self.keep, "uniform": self.uniform, "seed": self.seed}
        return sparsify(kept, self.way, zeros, batches, curves=curves, progress=progress, **how)  # type: ignore[arg-type]

    def _forecast(self, kept: PrunedGraph) -> Forecast:
        proto = rewrite(kept)
        weights, curves = Weights(proto), self._curves_of(kept)
        layers, _ = candidates(kept.graph, proto, self.way, self.keep, runs=self.batches is not None)
        if not layers:
            raise PlanError("OP310", f"the pattern {self.way.pattern} fits no layer")
        pattern = self.way.pattern

        def shares(share: float) -> NDArray[np.float64]:
            return share_out_zeros(layers, weights, pattern, share, curves, uniform=self.uniform)

        arrays = [weights[layer.weight] for layer in layers]
        content = b"".join(array.tobytes() for array in arrays)
        numbers = _packed(content, [Span(0, len(content), arrays[0].itemsize)])
        sizes = np.array([array.size for array in arrays], dtype=float)
        return Forecast(packed_bytes(proto), numbers / sizes.sum(), sizes, pattern.rows * pattern.columns, shares)

    def _curves_of(self, kept: PrunedGraph) -> list[Curve] | None:
        """Return the sensitivities of a network's layers to zeros: those of the layers before channels left."""
        if self.batches is None or self.uniform:
            return None
        layers, _ = candidates(kept.graph, rewrite(kept), self.way, self.keep)
        return [
            replace(self._curves[layer.node.name], group=i)
            for i, layer in enumerate(layers)
            if layer.node.name in self._curves
        ]

    @cached_property
    def _curves(self) -> dict[str, Curve]:
        assert self.batches is not None
        graph = self.analysis.graph
        layers, _ = candidates(graph, graph.proto, self.way, self.keep)
        found = measure(graph, layers, self.batches, self.way, seed=self.seed, progress=self.progress)
        return {layers[curve.group].node.name: curve for curve in found}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicts the packed bytes of a network with zeros before its weights are solved for.

    A weight that stays costs what one of the dense network does; where the zeros are costs their entropy.

    Attributes:
        dense: the packed bytes without zeros.
        each: the packed bytes of a weight.
        sizes: the numbers of weights of the layers.
        block: the number of weights that become zero together.
        shares: returns the share of zeros of each layer, for that of all.
    """

    dense: int
    each: float
    sizes: NDArray[np.float64]
    block: int
    shares: Callable[[float], NDArray[np.float64]]

    def __call__(self, share: float) -> float:
        """Return the packed bytes with a share of zeros."""
        zeros = np.clip(self.shares(share), 1e-9, 1 - 1e-9)
        bits = -(zeros * np.log2(zeros) + (1 - zeros) * np.log2(1 - zeros)) / self.block
        return float(self.dense + (self.sizes * (bits / 8 - zeros * self.each)).sum())

    def zeros(self, limit: float) -> float:
        """Return the least share of zeros that meets a limit.

        Raises:
            PlanError: none does (OP301).
        """
        if self.dense <= limit:
            return 0.0
        low, high = 0.0, _MOST
        if (least := self(high)) > limit:
            cause = f"with {high:.0%} zeros the packed file would have {least:,.0f} bytes, and {limit:,.0f} are allowed"
            raise PlanError("OP301", cause, where="packed_size", hint=_LARGER)
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if self(middle) > limit else (low, middle)
        return high


def packed_bytes(proto: ModelProto) -> int:
    """Return the bytes of the packed file of a model, as `pack` writes it.

    Raises:
        ModelError: the model needs more than one file (OP118).
    """
    size, parts = pieces(proto)
    if size > PROTOBUF_LIMIT:
        raise ModelError("OP118", f"{size:,} bytes are more than one file can hold", where="packed_size")
    content = b"".join(parts)
    return _packed(content, spans_of_model(content))


def _packed(content: bytes, spans: Sequence[Span]) -> int:
    stream = BytesIO()
    container.write(stream, [("", content, spans)])
    return len(stream.getbuffer())

"""Sparsity as the command `sparsify` runs it: choose and solve on some samples, check, judge on others."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

from onnx import ModelProto

from onnxprune.data import Dataset, open_data
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.file import Model, Source, load
from onnxprune.model.graph import extract
from onnxprune.model.session import with_threads
from onnxprune.model.wire import pieces
from onnxprune.planning.budget import check_patterns
from onnxprune.planning.plan import plan_of
from onnxprune.planning.signature import fingerprints, note_changes, plan_digest, sign
from onnxprune.progress import Progress, silent
from onnxprune.recover import LeftOut
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.steps import proof_inputs
from onnxprune.runtime.library import custom_ops
from onnxprune.settings.pruning import LIMIT
from onnxprune.settings.reading import either
from onnxprune.settings.sparsity import SHARE, SparseMethod, SparsifySettings
from onnxprune.shapes.batch import fix_batch
from onnxprune.sparsity.check import check, check_outputs
from onnxprune.sparsity.network import Sparse, SparseLayer, sparsify as sparse_network
from onnxprune.sparsity.runtimes import Eligible, eligibility
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.inputs import calibration_batches, divided, open_all
from onnxprune.workflow.packed_size import Budget, Tried, packed_bytes
from onnxprune.workflow.pruning import Pruned, prune

log = logging.getLogger(__name__)

_GENERATED = 64  # inputs to judge on without data
_LEVEL = 9  # of zlib and zstd


@dataclass(frozen=True, slots=True)
class Sparsified:
    """The result of `sparsify`.

    Attributes:
        model: the sparse model.
        layers: its sparse layers.
        dense: the layers with weights that stay dense, with the reasons.
        method: how weights were chosen.
        eligible: by layer and runtime, whether its zeros are used.
        evaluation: the model against the original; None if they couldn't be compared.
        judged: what samples that was on: the user's that nothing was fitted to, or generated inputs.
        samples: the number of samples that weights were solved on.
        sizes: bytes of the original and of the result, as files and compressed; packed if that was limited.
        limit: the packed bytes that were allowed, None if any number.
        pruned: the model without zeros and without the channels that were removed first, with the proof of that; None
            if none were.
        tried: how the packed bytes could be shared between channels and zeros, as far as it was tried.
    """

    model: Model
    layers: tuple[SparseLayer, ...]
    dense: tuple[LeftOut, ...]
    method: SparseMethod
    eligible: tuple[Eligible, ...]
    evaluation: Evaluation | None
    judged: Literal["held out", "generated"]
    samples: int
    sizes: dict[str, tuple[int, int]]
    limit: float | None = None
    pruned: Pruned | None = None
    tried: tuple[Tried, ...] = ()

    @property
    def zeros(self) -> float:
        """The share of zeros in the sparse layers."""
        return sum(layer.zeros for layer in self.layers) / sum(layer.size for layer in self.layers)


def sparsify(
    model: Source,
    settings: SparsifySettings | None = None,
    *,
    examples: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> Sparsified:
    """Set weights to zero, one by one or in a pattern, and solve for those that stay.

    ONNX Runtime runs the result no faster. It compresses to fewer bytes, and some other runtimes use the zeros.
    A model that was pruned before keeps its plan, so that `verify` still proves that.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        settings: the settings; `options` are an alternative.
        examples: number of samples on which the two models disagree most to keep in the evaluation.
        progress: called with phases and their parts.
        **options: fields of `SparsifySettings` and `DataSettings`: pattern, sparsity, data, method, ...

    Raises:
        PlanError: settings contradict each other (OP302), are out of range (OP303) or match nothing (OP304), the
            pattern fits no layer (OP310), or nothing meets `packed_size` (OP301).
        ModelError: the model can't be read or run.
        DataError: the data can't be read or don't fit, or are too few (OP712).
        VerificationError: the result isn't what was solved for (OP511, OP501).

    Examples:
        >>> import onnxprune as op
        >>> small = op.sparsify("models/digits_resnet.onnx", pattern="2:4")
        >>> round(small.zeros, 3), small.method
        (0.5, 'magnitude')
    """
    settings = either(SparsifySettings, settings, options)
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        return _sparsify(load(model), settings, examples, progress)


def _sparsify(loaded: Model, settings: SparsifySettings, examples: int, progress: Progress) -> Sparsified:
    seed, given = settings.seed, settings.samples
    progress("trace", 0, None)
    analysis = analyze(loaded, data=given, in_batches=True)
    graph = analysis.graph
    fitted, judged = None, None
    if given.data is not None:
        samples = open_all(given, graph, near=loaded.path, seed=seed, progress=progress)
        fitted, judged = divided(samples, seed, (3 / 4, given.limit or LIMIT))
    names = [node.name for node in graph.proto.graph.node]
    check_patterns("keep", settings.keep, names)
    method: SparseMethod = settings.method or ("magnitude" if fitted is None else "alternating")
    batches = None if fitted is None else calibration_batches(fitted, graph.proto)
    way = Way(method, settings.pattern, fitted is not None and settings.recover != "none")
    keep = {name for name in names if any(fnmatchcase(name, pattern) for pattern in settings.keep)}
    uniform = settings.allocation == "uniform"
    pruned: Pruned | None = None

    def finished(found: Sparse) -> Sparse:
        progress("check", 0, None)
        dense = rewrite(PrunedGraph(graph)) if pruned is None else pruned.proto
        _check(analysis, dense, found, seed)
        if pruned is not None:
            sign(found.proto, pruned.plan)
        elif plan_digest(dense) is None:
            sign(found.proto, plan_of(PrunedGraph(graph), loaded.sha256, {}))
        note_changes(found.proto, fingerprints(dense), "sparsify")
        fix_batch(found.proto)
        return found

    limit: float | None = None
    tried: tuple[Tried, ...] = ()
    if settings.packed_size is None:
        how: dict[str, Any] = {"keep": keep, "uniform": uniform, "seed": seed, "progress": progress}
        found = finished(sparse_network(PrunedGraph(graph), way, settings.sparsity or SHARE, batches, **how))
    else:
        limit = settings.packed_size.limit(pieces(loaded.proto)[0])
        budget = Budget(analysis, way, limit, batches, keep, uniform, seed, progress)
        plan, tried = budget.choose(fitted) if fitted is not None and settings.channels else (None, ())
        if plan is not None:
            progress("rewrite and verify", 0, None)
            pruned = prune(analysis, plan, seed=seed)
        found = budget.meet(plan, finished, lambda made: packed_bytes(made.proto))
    evaluation = _evaluated(analysis, found.proto, judged, seed, examples, progress)
    sizes = _sizes(loaded.proto, found.proto)
    if limit is not None:
        sizes["packed"] = packed_bytes(loaded.proto), packed_bytes(found.proto)
    return Sparsified(
        model=replace(loaded, proto=found.proto),
        layers=found.layers,
        dense=found.dense,
        method=method,
        eligible=eligibility(found.proto),
        evaluation=evaluation,
        judged="generated" if judged is None or given.data == "random" else "held out",
        samples=0 if fitted is None else len(fitted),
        sizes=sizes,
        limit=limit,
        pruned=pruned,
        tried=tried,
    )


def _check(analysis: TracedModel, dense: ModelProto, found: Sparse, seed: int) -> None:
    """Check the result before more is noted in it; outputs as far as ONNX Runtime runs the model."""
    check(dense, found.proto, found.solved, found.least)
    graph, ends = analysis.graph, (dense, found.proto)
    if (cut := graph.front) is not None:
        if not cut.outputs:
            log.warning("outputs aren't compared: ONNX Runtime can't run the model")
            return
        ends = extract(dense, cut.outputs), extract(found.proto, cut.outputs)
    try:
        feeds = proof_inputs(graph, seed)
        check_outputs(*ends, found.solved, feeds)
    except ModelError:
        if graph.shapes.feeds is None:
            raise
        check_outputs(*ends, found.solved, graph.shapes.feeds)


def _evaluated(
    analysis: TracedModel, proto: ModelProto, judged: Dataset | None, seed: int, examples: int, progress: Progress
) -> Evaluation | None:
    original = analysis.original
    try:
        if judged is None:
            judged = open_data("random", original, limit=_GENERATED, seed=seed, sizes=analysis.graph.shapes.inputs)
        return evaluate(proto, judged, against=original, seed=seed, examples=examples, progress=progress)
    except OnnxPruneError as error:
        log.warning("not compared with the original: %s", error.cause)
        return None


def _sizes(before: ModelProto, after: ModelProto) -> dict[str, tuple[int, int]]:
    """Return bytes of both models, as files and compressed; by zstd if its package is installed."""
    found = {"file": (pieces(before)[0], pieces(after)[0])}
    found["zlib"] = _zlib(pieces(before)[1]), _zlib(pieces(after)[1])
    if find_spec("zstandard") is not None:
        found["zstd"] = _zstd(pieces(before)[1]), _zstd(pieces(after)[1])
    return found


def _zlib(parts: Iterable[bytes]) -> int:
    packer = zlib.compressobj(_LEVEL)
    return sum(len(packer.compress(part)) for part in parts) + len(packer.flush())


def _zstd(parts: Iterable[bytes]) -> int:
    import zstandard

    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    return sum(len(packer.compress(part)) for part in parts) + len(packer.flush())

"""Packing as the command `pack` does it: perhaps fewer different weights, judged; then fewer bytes, exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import Model, Source, file_size, load, save, saved
from onnxprune.model.metadata import CLUSTERED, VERSION, write_notes
from onnxprune.model.session import with_threads
from onnxprune.model.wire import PROTOBUF_LIMIT, pieces
from onnxprune.normalize import normalize
from onnxprune.packing import container
from onnxprune.packing.clusters import Codebook, cluster
from onnxprune.packing.direct import with_codebooks
from onnxprune.packing.spans import Span, spans_of_data, spans_of_model
from onnxprune.progress import Progress, silent
from onnxprune.runtime.library import custom_ops
from onnxprune.sensitivity import drop
from onnxprune.settings import PackSettings, UnpackSettings
from onnxprune.settings.pruning import LIMIT
from onnxprune.settings.reading import either
from onnxprune.version import __version__
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.inputs import calibration_batches, divided, open_all


@dataclass(frozen=True, slots=True)
class Packed:
    """The result of `pack`.

    Attributes:
        output: the file that was written.
        size: bytes of the model's files, and of the file that was written.
        streams: the packed bytes by what they hold; empty for an ONNX file.
        clusters: the codebooks; empty if the weights are as they were.
        evaluation: the model with shared weights against the given one; None without data or clusters.
        samples: the number of samples that codebooks were trained on, and that judged.
    """

    output: Path
    size: tuple[int, int]
    streams: dict[str, int] = field(default_factory=dict)
    clusters: tuple[Codebook, ...] = ()
    evaluation: Evaluation | None = None
    samples: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The result of `unpack`.

    Attributes:
        files: the files that were written, the model first.
        size: bytes of the packed file, and of these.
    """

    files: tuple[Path, ...]
    size: tuple[int, int]


def pack(
    model: Source,
    output: str | Path,
    settings: PackSettings | None = None,
    *,
    force: bool = False,
    examples: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> Packed:
    """Write a model in fewer bytes. Without `clusters`, `unpack` gives the same files again, byte for byte.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        output: the file to write.
        settings: the settings; `options` are an alternative.
        force: whether an existing file may be overwritten.
        examples: number of samples on which the two models disagree most to keep in the evaluation.
        progress: called with phases and their parts.
        **options: fields of `PackSettings` and `DataSettings`: clusters, data, direct, ...

    Raises:
        ModelError: the model can't be read or run (OP122), or the file can't be written (OP116 to OP118).
        DataError: the data can't be read or don't fit, or are too few (OP712).
        PlanError: settings contradict each other (OP302).
        UsageError: a setting is unknown (OP602).
        VerificationError: clusters lose more than `max_drop` (OP510).

    Examples:
        >>> import onnxprune as op, tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> found = op.pack("models/digits_resnet.onnx", os.path.join(folder, "m.onnxpack"))
        >>> found.size[1] < 0.9 * found.size[0]
        True
    """
    settings, path = either(PackSettings, settings, options), Path(output)
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        loaded = load(model)
        before = file_size(loaded) or pieces(loaded.proto)[0]
        found = Packed(path, (before, 0))
        if settings.clusters is not None:
            loaded, found = _clustered(loaded, found, settings, examples, progress)
        if settings.direct:
            save(replace(loaded, proto=with_codebooks(loaded.proto)), path, force=force)
            return replace(found, size=(before, path.stat().st_size))
        files = _files(loaded)
        with saved(path, force=force) as (draft,), draft.open("xb") as stream:
            streams = container.write(stream, files, progress)
        return replace(found, size=(before, path.stat().st_size), streams=streams)


def unpack(
    packed: str | Path,
    output: str | Path,
    settings: UnpackSettings | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Unpacked:
    """Write the model that a packed file holds, and its external data beside it.

    Args:
        packed: the packed file; it isn't trusted.
        output: the file for the model.
        settings: the settings; `options` are an alternative.
        force: whether existing files may be overwritten.
        progress: called with the bytes that are done.
        **options: fields of `UnpackSettings`: max_size.

    Raises:
        ModelError: see `onnxprune.packing.container.unpack`.
        UsageError: a setting is unknown (OP602).

    Examples:
        >>> import onnxprune as op, tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> packed, again = os.path.join(folder, "m.onnxpack"), os.path.join(folder, "m.onnx")
        >>> _ = op.pack("models/digits_resnet.onnx", packed)
        >>> _ = op.unpack(packed, again)
        >>> open(again, "rb").read() == open("models/digits_resnet.onnx", "rb").read()
        True
    """
    settings, source = either(UnpackSettings, settings, options), Path(packed)
    files, size = container.unpack(source, Path(output), max_size=settings.max_size, force=force, progress=progress)
    return Unpacked(tuple(files), (source.stat().st_size, size))


def _clustered(
    loaded: Model, found: Packed, settings: PackSettings, examples: int, progress: Progress
) -> tuple[Model, Packed]:
    """Return a model whose weights share values, and what that lost."""
    assert settings.clusters is not None
    batches, judged, proto, count = None, None, normalize(loaded.proto), 0
    if settings.samples.data is not None:
        progress("trace", 0, None)
        analysis = analyze(loaded, data=settings.samples)
        samples = open_all(settings.samples, analysis.graph, near=loaded.path, seed=settings.seed, progress=progress)
        fitted, judged = divided(samples, settings.seed, (1 / 2, settings.samples.limit or LIMIT))
        batches, proto, count = calibration_batches(fitted, proto), deepcopy(analysis.graph.proto), len(fitted)
    books = cluster(
        *(proto, settings.clusters, batches),
        price=settings.bit_price,
        keep=settings.keep,
        seed=settings.seed,
        progress=progress,
    )
    if not books:
        raise ModelError("OP135", "no weight of the model can share values", hint="pack it without `clusters`")
    made = close_bodies(proto)
    write_notes(made, {VERSION: __version__, CLUSTERED: json.dumps({"values": settings.clusters})})
    evaluation = None
    if judged is not None:
        evaluation = evaluate(
            made, judged, against=loaded.proto, seed=settings.seed, examples=examples, progress=progress
        )
        _check(evaluation, settings.max_drop)
    counts = count, 0 if judged is None else len(judged)
    model = replace(loaded, proto=made, path=None, data_files=())
    return model, replace(found, clusters=books, evaluation=evaluation, samples=counts)


def _check(evaluation: Evaluation, max_drop: float | None) -> None:
    metric = evaluation.judging
    if max_drop is None:
        return
    if metric is None:
        cause = f"no drop in accuracy can be measured: {evaluation.recognized}"
        raise DataError("OP711", cause, hint="drop `max_drop`")
    found = drop(evaluation, metric)
    if evaluation.not_finite or not found.value <= max_drop:
        cause = (
            f"the drop would be {found.value:.2%} ({found.low:.2%} to {found.high:.2%}), and {max_drop:.2%} is allowed"
        )
        raise VerificationError("OP510", cause, hint="allow more values (`clusters`), or a larger drop (`max_drop`)")


def _files(model: Model) -> Sequence[tuple[str, Path | bytes, Sequence[Span]]]:
    """Return the files of a model as they are; of one that has none, those that `save` would write."""
    if model.path is not None:
        content = model.path.read_bytes()
        data = spans_of_data(content) if model.external else {}
        others = [(name, model.path.parent / name, spans) for name, spans in data.items()]
        return [("", content, spans_of_model(content)), *others]
    size, parts = pieces(model.proto)
    if size > PROTOBUF_LIMIT:
        hint = "save it with external data, and pack that file"
        raise ModelError("OP118", f"{size:,} bytes are more than one file can hold", hint=hint)
    content = b"".join(parts)
    return [("", content, spans_of_model(content))]

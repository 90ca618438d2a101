"""Labels in files of their own, beside the samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.archive import Archive
from onnxprune.data.arrays import archive_arrays
from onnxprune.data.batch import IGNORED, Array, Batch, Source
from onnxprune.data.images import FolderFiles, ImageSource, image_names
from onnxprune.data.inputs import LABELS
from onnxprune.data.npy import map_npy
from onnxprune.data.pixels import decode_mask, placed
from onnxprune.data.recipe import Recipe
from onnxprune.errors import DataError
from onnxprune.settings.evaluation import TaskName

_BYTES = 1 << 30  # largest text file
_FORMS = "give .npy, .npz, .txt, .jsonl, COCO .json, or a folder of mask images"
_NAMES = ("file", "file_name", "image", "name")
_VALUES = ("label", "labels", "text", "target", "value")

Take = Callable[[NDArray[np.int64]], Array]


class LabeledSource(Source):
    """Samples of another source, with labels of their own."""

    def __init__(self, source: Source, take: Take) -> None:
        """Set the samples, and the function that returns the labels of some."""
        self.source, self.take = source, take

    @property
    def labeled(self) -> bool:
        """Whether there are labels."""
        return True

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.source)

    def name(self, index: int) -> str:
        """Return a sample's name for messages."""
        return self.source.name(index)

    def evened(self, indices: NDArray[np.int64] | None) -> Source:
        """Return the samples in one shape, with their labels."""
        return LabeledSource(self.source.evened(indices), self.take)

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield samples (None for all) in batches of a size.

        Raises:
            DataError: samples or labels can't be read.
        """
        chosen = np.arange(len(self)) if indices is None else indices
        start = 0
        for batch in self.source.batches(chosen, size):
            rows = chosen[start : start + batch.count]
            yield Batch(batch.inputs, self.take(rows), batch.whole)
            start += batch.count


def with_labels(source: Source, given: Any, recipe: Recipe) -> tuple[Source, TaskName | None]:
    """Return a source with labels from a file, or from an array.

    Labels go with samples by the names of image files where they have names, else by order. Boxes of COCO files become
    [n, most boxes, 6]: class (by the order of category ids, from 0), x1, y1, x2, y2 in pixels of the model's input, and
    1 for crowds; rows of class `IGNORED` fill up.

    Args:
        source: the samples.
        given: the file or folder, or an array.
        recipe: the geometry of images, which boxes and masks follow.

    Returns:
        The source, and the task that the labels are for, if they tell.

    Raises:
        DataError: the labels can't be read (OP701 to OP705), or don't go with the samples (OP708).
    """
    if source.sequential:
        cause = "labels from a file don't go with the batches of a function"
        raise DataError("OP708", cause, where=source.name(0), hint="let the function return pairs of inputs and labels")
    if not isinstance(given, str | Path):
        return LabeledSource(source, _by_order(np.asarray(given), source, "the labels given")), None
    path, where = Path(given), str(given)
    names = [PurePosixPath(name) for name in source.names] if isinstance(source, ImageSource) else None
    if path.is_dir():
        return LabeledSource(source, _masks(path, names, source, recipe)), "segmentation"
    if path.suffix == ".npy":
        return LabeledSource(source, _by_order(map_npy(path), source, where)), None
    if path.suffix == ".npz":
        arrays = archive_arrays(Archive(path))
        found = next((arrays[name] for name in (*LABELS, *arrays) if name in arrays), None)
        if found is None or (len(arrays) > 1 and not set(LABELS) & set(arrays)):
            raise DataError("OP708", f"no array is named labels: {', '.join(arrays)}", where=where)
        return LabeledSource(source, _by_order(found, source, where)), None
    if path.suffix not in (".txt", ".json", ".jsonl"):
        what = "no such file or folder" if not path.exists() else f"{path.suffix!r} files can't be read as labels"
        raise DataError("OP701", what, where=where, hint=_FORMS)
    text = _text(path)
    if path.suffix == ".txt":
        lines = text.removesuffix("\n").split("\n")
        return LabeledSource(source, _by_order(_array([_words(line) for line in lines], where), source, where)), None
    if path.suffix == ".jsonl":
        entries = [_parsed(line, where) for line in text.splitlines() if line.strip()]
        return LabeledSource(source, _by_order(_listed(entries, names, source, where), source, where)), None
    boxes = _boxes(_parsed(text, where), names, source, recipe, where)
    return LabeledSource(source, _by_order(boxes, source, where)), "detection"


def _by_order(labels: Array, source: Source, where: str) -> Take:
    count = len(labels) if labels.ndim else 0
    if count != len(source):
        raise DataError("OP708", f"there are {count} labels for {len(source)} samples", where=where)
    return lambda rows: np.array(labels[rows], dtype=labels.dtype.newbyteorder("="))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
        if len(content) > _BYTES:
            raise ValueError(f"the file is larger than {_BYTES >> 20} MiB")
        return content.decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        cause = f"can't read the labels: {getattr(error, 'strerror', None) or error}"
        raise DataError("OP701", cause, where=str(path)) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("OP701", f"not JSON: {error}", where=where) from error


def _words(line: str) -> Any:
    """Return the number or numbers in a line, or the line if there are none."""
    try:
        numbers = [float(word) if any(c in word for c in ".eEn") else int(word) for word in line.split()]
    except ValueError:
        return line
    return line if not numbers else numbers[0] if len(numbers) == 1 else numbers


def _array(values: Sequence[Any], where: str) -> Array:
    """Return labels as an array: numbers, text, or ids of different number with `IGNORED` after them."""
    if any(isinstance(value, str) for value in values):
        return np.array([value if isinstance(value, str) else str(value) for value in values])
    if any(isinstance(value, list) for value in values) and len({np.size(value) for value in values}) > 1:
        rows = [value if isinstance(value, list) else [value] for value in values]
        if not all(isinstance(i, int) and i >= 0 for row in rows for i in row):
            raise DataError("OP708", "lists of labels differ in length, and aren't ids", where=where)
        filled = np.full((len(rows), max(map(len, rows))), IGNORED, np.int64)
        for to, row in zip(filled, rows, strict=True):
            to[: len(row)] = row
        return filled
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as error:
        raise DataError("OP708", "labels differ in shape", where=where) from error
    if array.dtype.kind not in "biuf":
        raise DataError("OP708", "labels are neither numbers nor text", where=where)
    return array


def _listed(entries: Sequence[Any], names: Sequence[PurePosixPath] | None, source: Source, where: str) -> Array:
    """Return the labels in lines of JSON, by name where they have names."""
    found = [_first(entry, _VALUES, where) if isinstance(entry, dict) else entry for entry in entries]
    named = [next((entry[key] for key in _NAMES if key in entry), None) for entry in entries if isinstance(entry, dict)]
    if names is None or len(named) != len(entries) or None in named:
        return _array(found, where)
    return _array(_in_order(dict(zip(map(str, named), found, strict=True)), names, source, where), where)


def _first(entry: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    for key in keys:
        if key in entry:
            return entry[key]
    raise DataError("OP708", f"a line has none of {', '.join(keys)}", where=where)


def _in_order(by_name: Mapping[str, Any], names: Sequence[PurePosixPath], source: Source, where: str) -> list[Any]:
    """Return the entries of samples, found by path, file name, or name without suffix."""
    plain = {PurePosixPath(name).name: entry for name, entry in by_name.items()}
    stems = {PurePosixPath(name).stem: entry for name, entry in by_name.items()}
    found = []
    for index, name in enumerate(names):
        for key, entries in ((str(name), by_name), (name.name, plain), (name.stem, stems)):
            if key in entries:
                found.append(entries[key])
                break
        else:
            raise DataError("OP708", f"no label is named {name.name!r}", where=source.name(index), hint=f"see {where}")
    return found


def _masks(path: Path, names: Sequence[PurePosixPath] | None, source: Source, recipe: Recipe) -> Take:
    """Return the masks of samples, decoded when they are needed, resized and cropped as the images are."""
    files = FolderFiles(path)
    found = image_names(files.members, str(path))
    if names is not None:
        found = _in_order({name: name for name in found}, names, source, str(path))
    elif len(found) != len(source):
        raise DataError("OP708", f"there are {len(found)} masks for {len(source)} samples", where=str(path))

    def take(rows: NDArray[np.int64]) -> Array:
        masks = [decode_mask(recipe, files.read(found[i]), files.where(found[i])) for i in rows]
        if len({mask.shape for mask in masks}) > 1:
            raise DataError("OP708", "masks differ in size", where=files.where(found[rows[0]]))
        return np.stack(masks)

    return take


def _boxes(
    document: Any, names: Sequence[PurePosixPath] | None, source: Source, recipe: Recipe, where: str
) -> NDArray[np.float64]:
    """Return the boxes of a COCO file, https://cocodataset.org/#format-data."""
    try:
        images = {image["id"]: image for image in document["images"]}
        order = {category: i for i, category in enumerate(sorted(c["id"] for c in document["categories"]))}
        rows: dict[Any, list[list[float]]] = {key: [] for key in images}
        for entry in document["annotations"]:
            image = images[entry["image_id"]]
            x, y, width, height = map(float, entry["bbox"])
            corners = np.array([[x, y], [x + width, y + height]])
            (x1, y1), (x2, y2) = placed(corners, (image["height"], image["width"]), recipe)
            if x2 > x1 and y2 > y1:
                crowd = float(bool(entry.get("iscrowd", 0)))
                rows[entry["image_id"]].append([order[entry["category_id"]], x1, y1, x2, y2, crowd])
        by_name = {str(image["file_name"]): rows[key] for key, image in images.items()} if names is not None else {}
    except (KeyError, TypeError, ValueError) as error:
        cause = f"not a COCO file of boxes ({type(error).__name__}: {error})"
        raise DataError("OP708", cause, where=where, hint=_FORMS) from error
    found = list(rows.values()) if names is None else _in_order(by_name, names, source, where)
    filled = np.zeros((len(found), max(1, *map(len, found), 1), 6))
    filled[..., 0] = IGNORED
    for to, boxes in zip(filled, found, strict=True):
        if boxes:
            to[: len(boxes)] = boxes
    return filled

"""Data in image files, in a folder or a zip archive, decoded on demand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.archive import FILE_LIMIT
from onnxprune.data.batch import Batch, Source, chunks
from onnxprune.data.pixels import SUFFIXES, Pixels
from onnxprune.data.recipe import LABEL_ORIGINS, WHERE, Recipe
from onnxprune.errors import DataError

_PREFIX = re.compile(r"(\d+)_")  # 0017_n01443537_goldfish.jpg
_DIGITS = 18  # of a label, to fit int64
_SHOWN = 12


class Files(Protocol):
    """Files by name."""

    @property
    def members(self) -> Iterable[str]:
        """Their names, with / between folders."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""

    def where(self, name: str) -> str:
        """Return a file's name for messages."""


class FolderFiles:
    """The files under a folder; links to folders aren't followed."""

    def __init__(self, path: Path) -> None:
        """List the files under a folder.

        Raises:
            DataError: a folder can't be read (OP701).
        """
        self.path = path
        found = (Path(folder, file) for folder, _, files in os.walk(path, onerror=_unreadable) for file in files)
        self.members = [file.relative_to(path).as_posix() for file in found]

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            DataError: it can't be read, or is too large (OP701).
        """
        file = self.path / name
        try:
            if not file.is_file():
                raise DataError("OP701", "not a file", where=str(file))
            with file.open("rb") as stream:
                content = stream.read(FILE_LIMIT + 1)
        except OSError as error:
            cause = f"can't read the file: {error.strerror or error}"
            raise DataError("OP701", cause, where=self.where(name)) from error
        if len(content) > FILE_LIMIT:
            raise DataError("OP701", f"the file is larger than {FILE_LIMIT >> 20} MiB", where=self.where(name))
        return content

    def where(self, name: str) -> str:
        """Return a file's name for messages."""
        return str(self.path / name)


class ImageSource(Source):
    """Images, decoded batch by batch."""

    def __init__(
        self,
        files: Files,
        names: Sequence[str],
        labels: NDArray[np.int64] | None,
        input_name: str,
        prepare: Callable[[bytes, str], Pixels],
        recipe: Recipe | None = None,
    ) -> None:
        """Set the files and their decoder.

        Args:
            files: where the images are.
            names: their names.
            labels: the class of each.
            input_name: the model input that they are for.
            prepare: decodes a file's bytes, given its name for messages.
            recipe: the geometry of the decoded images.
        """
        self.recipe = recipe
        self.files, self.names, self.labels, self.input, self.prepare = files, names, labels, input_name, prepare

    @property
    def labeled(self) -> bool:
        """Whether the classes are known."""
        return self.labels is not None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return an image's name for messages."""
        return self.files.where(self.names[index])

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Yield decoded images (None for all) in batches of a size.

        Raises:
            DataError: an image can't be read or decoded (OP701, OP704, OP705), or images of a batch differ in size
                (OP706).
        """
        chosen = np.arange(len(self)) if indices is None else indices
        for rows in chunks(chosen, size):
            images = []
            for name in (self.names[i] for i in rows):
                images.append(self.prepare(self.files.read(name), self.files.where(name)))
                if images[-1].shape != images[0].shape:
                    sizes = " and ".join(f"{h}x{w}" for h, w, _ in (images[0].shape, images[-1].shape))
                    cause, hint = f"images of different sizes, {sizes}", "add resize=HEIGHTxWIDTH"
                    raise DataError("OP706", cause, where=self.files.where(name), hint=hint)
            yield Batch({self.input: np.stack(images)}, None if self.labels is None else self.labels[rows])


def image_names(members: Iterable[str], where: str) -> list[str]:
    """Return the names of image files among others, sorted, without hidden ones.

    Raises:
        DataError: there are none (OP702).
    """
    names = []
    for name in sorted(members):
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts):
            names.append(name)
    if not names:
        raise DataError("OP702", f"there are no images ({', '.join(sorted(SUFFIXES))})", where=where)
    return names


def class_labels(
    files: Files, images: Sequence[str], recipe: Recipe, *, classifies: bool = True
) -> tuple[NDArray[np.int64] | None, str]:
    """Return the classes of images, from their folders or from the number that each file name begins with.

    Numeric folder names are the labels themselves; other folders are numbered in the order of `recipe.classes`, or
    alphabetically.

    Args:
        files: where the images are.
        images: their names.
        recipe: where labels come from.
        classifies: whether the model may tell classes; else names aren't taken as labels.

    Returns:
        The labels, None if there are none, and a note on where they come from.

    Raises:
        DataError: an image has no label (OP708).
    """
    origin = recipe.labels
    if origin not in LABEL_ORIGINS:
        raise DataError("OP709", f"images have no labels named {origin!r}", where=WHERE, hint="labels=folder or prefix")
    folders = _folders(images)
    prefixes = [_PREFIX.match(PurePosixPath(name).name) for name in images]
    if origin == "auto":
        origin = "folder" if any(folders) else "prefix" if all(prefixes) else "none"
    if not classifies and origin != "none":
        what = "folders" if origin == "folder" else "numbers that file names begin with"
        return None, f"the {what} aren't taken as labels, as no output has one score for each class"
    if origin == "none":
        return None, "the images have no labels"
    if origin == "prefix":
        numbers = [int(match[1][:_DIGITS]) if match else None for match in prefixes]
        labels = _complete(numbers, files, images, "a name that begins with a number")
        return labels, "labels are the numbers that file names begin with"
    classes = sorted(set(folders) - {""})
    numeric = recipe.classes is None and bool(classes) and all(name.isdecimal() for name in classes)
    order = {n: int(n[:_DIGITS]) if numeric else i for i, n in enumerate(recipe.classes or classes)}
    lacks = "a folder among the classes given" if recipe.classes else "a class folder"
    labels = _complete([order.get(f) for f in folders], files, images, lacks)
    shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
    way = "their names" if numeric else "in the order given" if recipe.classes else "in alphabetical order"
    return labels, f"labels are those of {len(classes)} folders, {way}: {shown}"


def _folders(names: Sequence[str]) -> list[str]:
    """Return each file's class folder: the outermost folder that isn't common to all files."""
    parts = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(p) > depth for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    return [p[depth] if len(p) > depth else "" for p in parts]


def _complete(labels: Sequence[int | None], files: Files, images: Sequence[str], what: str) -> NDArray[np.int64]:
    if None in labels:
        where = files.where(images[labels.index(None)])
        raise DataError("OP708", f"the image lacks {what}", where=where, hint="add labels=none to ignore labels")
    return np.array(labels, np.int64)


def _unreadable(error: OSError) -> None:
    where = str(error.filename)
    raise DataError("OP701", f"can't read the folder: {error.strerror or error}", where=where) from error

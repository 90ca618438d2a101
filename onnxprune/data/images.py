"""Data in image files: a folder or a zip archive of them, decoded when they are needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.archive import FILE_LIMIT, Archive
from onnxprune.data.batch import Batch, chunks
from onnxprune.data.pixels import SUFFIXES, Pixels
from onnxprune.data.recipe import Recipe
from onnxprune.errors import DataError

_PREFIX = re.compile(r"(\d+)_")  # 0017_n01443537_goldfish.jpg
_SHOWN = 12


class Files(Protocol):
    """Files by name."""

    @property
    def members(self) -> Sequence[str]:
        """Their names, in order, with / between folders."""

    def read(self, name: str) -> bytes:
        """Read one."""

    def where(self, name: str) -> str:
        """Name one in messages."""


class FolderFiles:
    """The image files below a folder; links to folders aren't followed."""

    def __init__(self, path: Path) -> None:
        """List the files below a folder.

        Raises:
            DataError: it can't be read (OP701).
        """
        self.path = path
        found = (Path(folder, file) for folder, _, files in os.walk(path, onerror=_unreadable) for file in files)
        self.members = sorted(name for file in found if _is_image(name := file.relative_to(path).as_posix()))

    def read(self, name: str) -> bytes:
        """Read a file.

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
        """Name a file in messages."""
        return str(self.path / name)


class ZipFiles:
    """The image files of a zip archive."""

    def __init__(self, archive: Archive) -> None:
        """List the images among an archive's members."""
        self.archive = archive
        self.members = sorted(n for n in archive.members if _is_image(n))
        self.read, self.where = archive.read, archive.where


class ImageSource:
    """Images decoded batch by batch."""

    sequential: ClassVar[bool] = False

    def __init__(
        self, files: Files, labels: NDArray[np.int64] | None, name: str, prepare: Callable[[bytes, str], Pixels]
    ) -> None:
        """Take files and what makes arrays of them.

        Args:
            files: the files.
            labels: the class of each.
            name: the input that they are for.
            prepare: decodes a file of a name.
        """
        self.files, self.labels, self.input, self.prepare = files, labels, name, prepare

    @property
    def known_length(self) -> int | None:
        """How many images there are."""
        return len(self)

    @property
    def labeled(self) -> bool:
        """Whether the classes are known."""
        return self.labels is not None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.files.members)

    def name(self, index: int) -> str:
        """Name an image in a message."""
        return self.files.where(self.files.members[index])

    def batches(self, indices: NDArray[np.int64] | None, size: int) -> Iterator[Batch]:
        """Decode images (None for all), so many at a time.

        Raises:
            DataError: one can't be read or decoded (OP701, OP704, OP705), or differs in size from its batch (OP706).
        """
        chosen = np.arange(len(self)) if indices is None else indices
        for rows in chunks(chosen, size):
            images = []
            for name in (self.files.members[i] for i in rows):
                images.append(self.prepare(self.files.read(name), self.files.where(name)))
                if images[-1].shape != images[0].shape:
                    sizes = " and ".join(f"{h}x{w}" for h, w, _ in (images[0].shape, images[-1].shape))
                    hint = "say resize=HEIGHTxWIDTH"
                    cause = f"images of different sizes, {sizes}"
                    raise DataError("OP706", cause, where=self.files.where(name), hint=hint)
            yield Batch({self.input: np.stack(images)}, None if self.labels is None else self.labels[rows])


def class_labels(files: Files, recipe: Recipe, where: str) -> tuple[NDArray[np.int64] | None, str]:
    """Find the classes of images by their folders or the numbers that their names begin with.

    Folders' names that are numbers are the labels; other folders are counted in the order of `recipe.classes`, or
    alphabetically.

    Returns:
        The labels if there are any, and a sentence on where they come from.

    Raises:
        DataError: there are no images (OP702), or not all of them have a label (OP708).
    """
    if not files.members:
        raise DataError("OP702", f"there are no images ({', '.join(sorted(SUFFIXES))})", where=where)
    origin = recipe.labels
    folders = _folders(files.members)
    prefixes = [_PREFIX.match(PurePosixPath(name).name) for name in files.members]
    if origin == "auto":
        origin = "folder" if any(folders) else "prefix" if all(prefixes) else "none"
    if origin == "none":
        return None, "the images have no labels"
    if origin == "prefix":
        numbers = [_number(match[1]) if match else None for match in prefixes]
        return _complete(numbers, files, "a name that begins with a number"), "labels are what file names begin with"
    names = sorted(set(folders) - {""})
    numeric = recipe.classes is None and bool(names) and all(name.isdecimal() for name in names)
    order = {n: _number(n) for n in names} if numeric else {n: i for i, n in enumerate(recipe.classes or names)}
    lacks = "a folder among the classes given" if recipe.classes else "a class folder"
    labels = _complete([order.get(f) for f in folders], files, lacks)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    way = "their names" if numeric else "in the order given" if recipe.classes else "in alphabetical order"
    return labels, f"labels are those of {len(names)} folders, {way}: {shown}"


def _folders(names: Sequence[str]) -> list[str]:
    """Give the folder of each file that stands for its class: the outermost that isn't common to all."""
    parts = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(p) > depth for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    return [p[depth] if len(p) > depth else "" for p in parts]


def _complete(labels: Sequence[int | None], files: Files, what: str) -> NDArray[np.int64]:
    if None in labels:
        where = files.where(files.members[labels.index(None)])
        raise DataError("OP708", f"the image lacks {what}", where=where, hint="say labels=none to do without")
    return np.array(labels, np.int64)


def _unreadable(error: OSError) -> None:
    where = str(error.filename)
    raise DataError("OP701", f"can't read the folder: {error.strerror or error}", where=where) from error


def _number(digits: str) -> int:
    return int(digits[:18])


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden

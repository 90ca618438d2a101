"""Text files as records: lines (.txt), JSON objects (.jsonl) or rows (.csv, .tsv), read when they are needed."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError

Kind = Literal["text", "whole", "real", "list", "other"]
Record = Mapping[str, Any]

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")
TEXT = "text"
"""The only field of a .txt file."""

_LINE = 1 << 24  # bytes; files with longer ones aren't text
_RECORDS = 1 << 27
_DELIMITERS = ",;\t"


class Records:
    """The records of a file. Only their places in it are held in memory.

    Attributes:
        path: the file.
        fields: what kinds of values each field has, by name.
    """

    def __init__(self, path: Path) -> None:
        """Read the file once, to find and to check its records. Blank lines are none.

        Raises:
            DataError: it can't be read, or a record isn't what the file's suffix says (OP701); it has none (OP702).
        """
        self.path, self.where = path, str(path)
        self.fields: dict[str, set[Kind]] = {}
        self._header: list[str] = []
        self._delimiter = ","
        places = array("q")
        with self._reading() as file:
            for start, end, line, record in self._scan(file):
                places.extend((start, end, line))
                if len(places) > 3 * _RECORDS:
                    raise DataError("OP701", f"the file has more than {_RECORDS} records", where=self.where)
                for name, value in record.items():
                    self.fields.setdefault(name, set()).add(_kind(value, self._rows))
        if not places:
            raise DataError("OP702", "the file has no samples", where=self.where)
        self._places: NDArray[np.int64] = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        """Count the records."""
        return len(self._places)

    def name(self, index: int) -> str:
        """Return a record's place for messages."""
        return f"{self.where}, line {self._places[index, 2]}"

    def read(self, rows: Iterable[int]) -> Iterator[Record]:
        """Yield records by their positions.

        Raises:
            DataError: the file can't be read any more (OP701).
        """
        with self._reading() as file:
            for row in rows:
                start, end, line = map(int, self._places[row])
                file.seek(start)
                text = self._decoded(file.read(end - start), line)
                if self._rows:
                    yield self._row(next(self._reader([text]), []), line)
                else:
                    yield self._line(text, line)

    def column(self, name: str) -> Kind:
        """Return the kind that all values of a field can be read as."""
        kinds = self.fields[name]
        if kinds <= {"whole"}:
            return "whole"
        if kinds <= {"whole", "real"}:
            return "real"
        return "text" if kinds <= {"text", "whole", "real"} else "list" if kinds == {"list"} else "other"

    @property
    def _rows(self) -> bool:
        return self.path.suffix in (".csv", ".tsv")

    def _scan(self, file: IO[bytes]) -> Iterator[tuple[int, int, int, Record]]:
        """Yield the records with their first and last bytes and their lines."""
        if not self._rows:
            for number, raw in self._lines(file):
                text = self._decoded(raw, number)
                if text.strip():
                    yield file.tell() - len(raw), file.tell(), number, self._line(text, number)
            return
        number = 0

        def texts() -> Iterator[str]:
            nonlocal number
            for number, raw in self._lines(file):
                yield self._decoded(raw, number)

        lines = texts()
        first = next(lines, "")
        self._delimiter = "\t" if self.path.suffix == ".tsv" else max(_DELIMITERS, key=first.count)
        self._header = next(self._reader([first]), [])
        if len(set(self._header)) < len(self._header):
            raise DataError("OP701", "two columns have the same name", where=f"{self.where}, line 1")
        reader, start, line = self._reader(lines), file.tell(), number + 1
        while (row := self._next(reader, line)) is not None:
            if any(row):
                yield start, file.tell(), line, self._row(row, line)
            start, line = file.tell(), number + 1

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        number = 1
        while raw := file.readline(_LINE + 1):
            if len(raw) > _LINE:
                cause = f"a line is longer than {_LINE >> 20} MiB"
                raise DataError("OP701", cause, where=f"{self.where}, line {number}")
            yield number, raw
            number += 1

    def _line(self, text: str, line: int) -> Record:
        if self.path.suffix == ".txt":
            return {TEXT: text.rstrip("\r\n")}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError("OP701", f"not JSON: {error}", where=f"{self.where}, line {line}") from error
        if isinstance(found, str):
            return {TEXT: found}
        if not isinstance(found, dict):
            cause = f"a line holds a {type(found).__name__}, not an object with fields by name"
            raise DataError("OP701", cause, where=f"{self.where}, line {line}")
        return found

    def _row(self, row: list[str], line: int) -> Record:
        if len(row) != len(self._header):
            cause = f"the row has {len(row)} values, and the header names {len(self._header)}"
            raise DataError("OP701", cause, where=f"{self.where}, line {line}")
        return dict(zip(self._header, row, strict=True))

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _next(self, reader: Iterator[list[str]], line: int) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            raise DataError("OP701", f"not a table: {error}", where=f"{self.where}, line {line}") from error

    def _decoded(self, raw: bytes, line: int) -> str:
        try:
            return raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError("OP701", "the text isn't UTF-8", where=f"{self.where}, line {line}") from error

    def _reading(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError("OP701", f"can't read the file: {error.strerror or error}", where=self.where) from error


def number(value: Any) -> int | float | None:
    """Return a number, also one written as text; None for anything else."""
    if isinstance(value, bool | int | float):
        return value
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) and len(value) < 64 else None
        except ValueError:
            continue
    return None


def _kind(value: Any, written: bool) -> Kind:
    """Return the kind of a value. In tables everything is written as text."""
    if isinstance(value, list):
        return "list"
    if isinstance(value, str) and not written:
        return "text"
    found = number(value)
    if isinstance(found, int):
        return "whole"
    return "real" if isinstance(found, float) else "text" if isinstance(value, str) else "other"

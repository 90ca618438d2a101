"""Data larger than what may be in memory: peaks are measured against the size of what is read."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Data, Recipe, open_data
from tests.data.support import encode, model, picture, zipped

MB = 1 << 20


def peak(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read(data: Data) -> float:
    return sum(float(batch.inputs["x"].sum()) for batch in data.batches(4))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_of_images(tmp_path: Path, compression: int) -> None:
    image = encode(picture(0, 512, 512), "BMP")
    path = zipped(tmp_path / "d.zip", {f"{i:03}.bmp": image for i in range(40)}, compression)
    proto = model("float[N,32,32,3] x")
    used = peak(lambda: read(open_data(path, proto, recipe=Recipe.parse("resize=32 scale=1"))))
    assert 40 * len(image) > 30 * MB and used < 6 * MB
    everything = peak(lambda: [zipfile.ZipFile(path).read(f"{i:03}.bmp") for i in range(40)])
    assert everything > 30 * MB  # the control: reading it all is noticed


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path: Path, save: Any) -> None:
    array = np.zeros((2000, 64, 64), np.float32)
    save(tmp_path / "d.npz", x=array)
    assert array.nbytes > 30 * MB
    assert peak(lambda: read(open_data(tmp_path / "d.npz", model("float[N,64,64] x")))) < 4 * MB


def test_a_function() -> None:
    def batches() -> Iterator[Any]:
        for i in range(300):
            yield np.full((5, 64, 64), i, np.float32)

    data = open_data(batches, model("float[N,64,64] x"))
    assert peak(lambda: read(data)) < 4 * MB and len(data) * 64 * 64 * 4 > 20 * MB


def test_lists_of_numbers_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("w") as file:
        for i in range(700):
            file.write(f'{{"x": [{", ".join(["0.25"] * (1000 + i % 7))}], "label": {i % 3}}}\n')
    size = path.stat().st_size
    assert size > 4 * MB
    proto = model("float[N,T] x; bool[N,T] mask")
    assert peak(lambda: read(open_data(path, proto))) < 2 * MB
    assert peak(path.read_bytes) >= size  # the control

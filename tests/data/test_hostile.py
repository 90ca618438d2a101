"""Damaged files by the hundred: whatever is wrong with them, the answer is an error of ours, or the data."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data import Recipe, open_data
from onnxprune.errors import DataError
from tests.data.support import encode, model, npy, picture, zipped

RGB = model("float[N,8,8,3] x")
IMAGES = np.stack([picture(i) for i in range(3)])


def make(kind: str, root: Path) -> tuple[Path, Path]:
    """Write good data; gives what to open, and which file to damage."""
    if kind in ("npz", "packed npz"):
        members = {"images.npy": npy(IMAGES), "labels.npy": npy(np.arange(3))}
        path = zipped(root / "d.npz", members, zipfile.ZIP_DEFLATED if "packed" in kind else zipfile.ZIP_STORED)
        return path, path
    if kind == "npy":
        (root / "d.npy").write_bytes(npy(IMAGES))
        return root / "d.npy", root / "d.npy"
    files = {f"{i}_a.{kind}": encode(IMAGES[i], kind) for i in range(3)}
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root, root / f"1_a.{kind}"


def outcome(path: Path) -> str:
    try:
        data = open_data(path, RGB, recipe=Recipe(scale=1.0))
        return f"{sum(batch.count for batch in data.batches(2))} samples"
    except DataError as error:
        return error.code


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.2:
        return content[: rng.integers(len(content))]
    mutable = bytearray(content)
    reach = (
        min(len(content), 150) if rng.random() < 0.5 else len(content)
    )  # headers and lists of members are at the ends
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(reach))
        mutable[place if rng.random() < 0.5 else -place - 1] = int(rng.choice([0, 255, int(rng.integers(256))]))
    return bytes(mutable)


@pytest.mark.filterwarnings("ignore")  # Pillow and zipfile warn of some damage before it is refused
@pytest.mark.parametrize("kind", ["npz", "packed npz", "npy", "PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_damage_never_gets_past_our_errors(tmp_path: Path, kind: str) -> None:
    source, victim = make(kind, tmp_path)
    assert outcome(source) == "3 samples"
    content, rng = victim.read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        victim.write_bytes(damaged(content, rng))
        outcomes.add(outcome(source))
    assert outcomes - {"3 samples"}, "no damage was noticed"

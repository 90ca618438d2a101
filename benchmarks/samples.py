"""Inputs that the benchmarks make themselves, for models whose data aren't at hand: words as images, and sentences."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np

_HEIGHT, _WIDTH = 48, 320  # pixels of a line of text, as PP-OCR's recognizers take it
_LENGTHS = 30, 300  # characters of a sentence


def sentences(path: Path, count: int, seed: int = 0) -> Path:
    """Write English sentences, one a line: those of the help topics that come with Python, in random order."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    parts = (part.strip() for text in topics.values() for part in re.split(r"(?<=[.])\s+", re.sub(r"\s+", " ", text)))
    low, high = _LENGTHS
    found = sorted({part for part in parts if low < len(part) < high and part.isascii()})
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    path.write_text("".join(f"{found[i]}\n" for i in order), encoding="utf-8")
    return path


def words(folder: Path, count: int, seed: int = 0) -> Path:
    """Write images of words in dark letters of random size on a light ground, with some noise, as Pillow draws them."""
    from PIL import Image, ImageDraw, ImageFont

    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    known = sorted({word for text in topics.values() for word in re.findall(r"\b[A-Za-z]{4,12}\b", text)})
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(rng.permutation(len(known))[:count]):
        image = Image.new("RGB", (_WIDTH, _HEIGHT), tuple(int(v) for v in rng.integers(180, 256, 3)))
        font = ImageFont.load_default(float(rng.integers(24, 38)))
        ink = tuple(int(v) for v in rng.integers(0, 90, 3))
        ImageDraw.Draw(image).text((int(rng.integers(2, 24)), 2), known[index], fill=ink, font=font)
        noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 12), (_HEIGHT, _WIDTH, 1))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"word{number}.png")
    return folder

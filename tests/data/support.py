"""Small models, images and archives that the tests of data and evaluation share."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxprune.errors import DataError


def model(inputs: str, *, outputs: str | None = None, body: str | None = None) -> onnx.ModelProto:
    """A model of the inputs given in ONNX's text form, such as "float[N,3,8,8] x"; by default it copies them."""
    parts = [part.strip() for part in inputs.split(";")]
    names = [part.split()[-1] for part in parts]
    outputs = outputs or ", ".join(f"{part}_out" for part in parts)
    body = body or "\n".join(f"{name}_out = Identity({name})" for name in names)
    text = f'<ir_version: 8, opset_import: ["": 17]> net ({", ".join(parts)}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(pixels: NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def zipped(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: NDArray[Any], **options: Any) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def huge_png(height: int, width: int) -> bytes:
    """A valid PNG header that promises many pixels, and few bytes behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def refused(code: str, match: str = "") -> pytest.RaisesExc[DataError]:
    """Expect an error of a code, whose text matches."""
    return pytest.RaisesExc(DataError, match=rf"(?s)\[{code}\].*{match}")

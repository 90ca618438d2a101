from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.archive import Archive
from tests.data.support import npy, refused, zipped


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "C:\\evil.png", "a\\..\\..\\evil.png"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with refused("OP704", "leads out of the archive.*evil.png"):
        Archive(zipped(tmp_path / "d.zip", {name: b"x"}))


@pytest.mark.parametrize("name", ["a..b.png", "x:0.npy", "serving:0.npy", "a/..b/c.png"])
def test_names_that_only_look_so_are_not(tmp_path: Path, name: str) -> None:
    assert Archive(zipped(tmp_path / "d.zip", {name: b"x"})).read(name) == b"x"


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with refused("OP704", "is a link.*link.png"):
        Archive(tmp_path / "d.zip")


def patched(path: Path, mark: bytes, offset: int, field: bytes) -> Path:
    """Overwrite a field at an offset behind each occurrence of a mark."""
    content = bytearray(path.read_bytes())
    start = content.find(mark)
    while start >= 0:
        content[start + offset : start + offset + len(field)] = field
        start = content.find(mark, start + 1)
    path.write_bytes(content)
    return path


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "d.zip", {"a.png": b"x"}), CENTRAL, 8, b"\x01\x00")
    with refused("OP704", "encrypted"):
        Archive(path)


def test_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "d.zip", {"a.png": b"x"}), CENTRAL, 10, b"\x63\x00")
    with refused("OP704", "damaged"):
        Archive(path).read("a.png")


def test_members_that_would_unpack_to_absurd_sizes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", {"a.npy": b"x"}, zipfile.ZIP_DEFLATED)
    with refused("OP704", "would unpack from 3 to 3000000000 bytes"):
        Archive(patched(path, CENTRAL, 24, struct.pack("<I", 3_000_000_000)))


def test_a_single_image_is_bounded(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", {"a.png": b"x"}, zipfile.ZIP_DEFLATED)
    with refused("OP704", "larger than 256 MiB.*a.png"):
        Archive(patched(path, CENTRAL, 24, struct.pack("<I", 1 << 29))).read("a.png")


def test_a_member_that_lies_about_its_size_is_not_believed(tmp_path: Path) -> None:
    content = npy(np.zeros(1000))
    path = zipped(tmp_path / "d.npz", {"x.npy": content}, zipfile.ZIP_DEFLATED)
    with refused("OP703", "Bad CRC-32"):
        Archive(patched(path, CENTRAL, 24, struct.pack("<I", 1000))).array("x.npy")


def test_an_array_may_not_promise_more_than_its_member_has(tmp_path: Path) -> None:
    content = npy(np.zeros(9)).replace(b"(9,), }     ", b"(99999,), } ")
    with refused("OP703", "the array takes 799992 bytes"):
        Archive(zipped(tmp_path / "d.npz", {"x.npy": content})).array("x.npy")


def test_damage_is_found(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", {"a.png": b"content of a"})
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    with refused("OP704", "member is damaged.*a.png"):
        Archive(path).read("a.png")
    path.write_bytes(path.read_bytes()[:-30])
    with refused("OP704", "archive is damaged"):
        Archive(path)
    with refused("OP701", "No such file"):
        Archive(tmp_path / "none.zip")


def test_offsets_survive_what_lies_before_the_archive(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.npz", {"pad.npy": npy(np.arange(3)), "x.npy": npy(np.arange(7))})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    np.testing.assert_array_equal(Archive(path).array("x.npy"), np.arange(7))

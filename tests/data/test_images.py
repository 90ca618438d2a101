from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data import IGNORED, Data, Recipe, open_data
from tests.data.support import encode, model, picture, refused, zipped

RGB = model("float[N,8,8,3] x", outputs="float[N,3] y", body="y = ReduceMean<axes=[1,2], keepdims=0>(x)")
RAW = "scale=1"


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def images(*names: str) -> dict[str, bytes]:
    return {name: encode(picture(i)) for i, name in enumerate(names)}


def opened(root: Path, files: Mapping[str, bytes], how: str, recipe: str = "") -> Data:
    source = folder(root / "data", files) if how == "folder" else zipped(root / "data.zip", files)
    return open_data(source, RGB, recipe=Recipe.parse(f"{RAW} {recipe}"))


def labels_of(data: Data) -> list[int] | None:
    given = [batch.labels for batch in data.batches(2)]
    known = [int(label) for labels in given if labels is not None for label in labels]
    return known or None


both = pytest.mark.parametrize("how", ["folder", "zip"])


@both
def test_pixels_arrive_in_the_order_of_names(tmp_path: Path, how: str) -> None:
    data = opened(tmp_path, images("b.png", "a.png", "c.PNG"), how)
    (batch,) = data.batches(9)
    expected = np.stack([picture(i) for i in (1, 0, 2)]).astype(np.float32)
    np.testing.assert_array_equal(batch.inputs["x"], expected)
    assert batch.labels is None and not data.labeled and "the images have no labels" in data.notes


@both
@pytest.mark.parametrize(
    ("names", "recipe", "labels"),
    [
        (("cat/1.png", "ant/1.png", "cat/0.png"), "", [0, 1, 1]),
        (("val/cat/1.png", "val/ant/1.png"), "", [0, 1]),
        (("cat/deep/1.png", "ant/1.png"), "", [0, 1]),
        (("10/a.png", "9/a.png", "2/a.png"), "", [10, 2, 9]),
        (("cat/1.png", "ant/1.png"), "classes=dog,cat,ant", [2, 1]),
        (("cat/1.png", "ant/1.png"), "label_offset=1", [1, 2]),
        (("3_x.png", "0012_y.png"), "", [12, 3]),
        (("3_x.png", "0012_y.png"), "labels=none", None),
        (("cat/3_x.png", "cat/12_y.png"), "labels=prefix ignore=3", [12, IGNORED]),
        (("3_x.png", "plain.png"), "", None),
        (("0001.png", "0002.png"), "", None),
        (("only/1.png", "only/2.png"), "", None),
    ],
)
def test_labels_come_from_folders_or_numbers(
    tmp_path: Path, how: str, names: tuple[str, ...], recipe: str, labels: list[int] | None
) -> None:
    assert labels_of(opened(tmp_path, images(*names), how, recipe)) == labels


def test_the_order_of_classes_is_said(tmp_path: Path) -> None:
    data = opened(tmp_path, images("cat/1.png", "ant/1.png"), "zip")
    assert "labels are those of 2 folders, in alphabetical order: ant, cat" in data.notes


@both
def test_images_without_a_class_are_not_guessed(tmp_path: Path, how: str) -> None:
    with refused("OP708", "lacks a class folder.*stray.png.*labels=none"):
        opened(tmp_path, images("cat/1.png", "ant/1.png", "stray.png"), how)
    with refused("OP708", "lacks a folder among the classes given.*1.png"):
        opened(tmp_path, images("cat/1.png", "ant/1.png"), how, "classes=cat,dog")
    with refused("OP708", "lacks a name that begins with a number"):
        opened(tmp_path, images("3_x.png", "plain.png"), how, "labels=prefix")


@both
def test_other_files_and_hidden_ones_are_passed_over(tmp_path: Path, how: str) -> None:
    extra = {"notes.txt": b"x", ".hidden/a.png": b"x", "__MACOSX/._a.png": b"x", "._a.png": b"x"}
    assert len(opened(tmp_path, {**images("a.png"), **extra}, how)) == 1
    (tmp_path / "none").mkdir()
    with refused("OP702", "there are no images"):
        opened(tmp_path / "none", extra, how)


@both
def test_a_damaged_image_is_named(tmp_path: Path, how: str) -> None:
    files = {**images("a.png", "b.png"), "c.png": encode(picture(0))[:-40]}
    data = opened(tmp_path, files, how)
    with refused("OP705", r"c\.png"):
        list(data.batches(2))
    assert [b.count for b in data.subset([0, 1]).batches(2)] == [2]  # the control


def test_images_of_one_batch_have_one_size(tmp_path: Path) -> None:
    files = {"a.png": encode(picture(0, 9, 9)), "b.png": encode(picture(0, 10, 12))}
    proto = model("float[N,H,W,3] x")
    data = open_data(zipped(tmp_path / "d.zip", files), proto, recipe=Recipe(scale=1.0))
    assert [b.inputs["x"].shape for b in data.batches(1)] == [(1, 9, 9, 3), (1, 10, 12, 3)]
    with refused("OP706", "different sizes, 9x9 and 10x12.*resize="):
        list(data.batches(2))


def test_a_crop_that_the_model_does_not_take_is_not_mended(tmp_path: Path) -> None:
    files = {"a.png": encode(picture(0, 12, 12))}
    data = open_data(zipped(tmp_path / "d.zip", files), RGB, recipe=Recipe(resize=10, crop=(9, 9), scale=1.0))
    with refused("OP706", r"doesn't take an array \[1, 9, 9, 3\]"):
        list(data.batches(1))


def test_resizing_happens_once(tmp_path: Path) -> None:
    files = {"a.png": encode(picture(0, 40, 40))}
    recipe = Recipe.parse("resize=20 crop=8 resample=nearest scale=1")
    (batch,) = open_data(zipped(tmp_path / "d.zip", files), RGB, recipe=recipe).batches(1)
    expected = picture(0, 40, 40)[1::2, 1::2][6:14, 6:14]  # the nearest of two pixels is the second
    np.testing.assert_array_equal(batch.inputs["x"][0], expected)


def test_models_that_images_do_not_fit(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", images("a.png"))
    with refused("OP706", "2 inputs"):
        open_data(path, model("float[N,8,8,3] a; float[N,8,8,3] b"))
    with refused("OP706", "doesn't take images"):
        open_data(path, model("float[N,4] x"))
    with refused("OP709", "where does input .* have its channels.*layout="):
        open_data(path, model("float[N,A,B,C] x"))
    with refused("OP709", "dtype is float16"):
        open_data(path, RGB, recipe=Recipe(dtype="float16"))


def test_a_folder_that_vanishes_or_cannot_be_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", images("a.png", "b.png"))
    data = open_data(root, RGB)
    (root / "b.png").unlink()
    with refused("OP701", r"b\.png"):
        list(data.batches(4))


@pytest.mark.parametrize(
    ("outputs", "taken"),
    [
        (["float[N,10] y"], True),
        (["float[N,10,1,1] y"], True),
        (["float[N,1] y"], True),
        (["float[N,10] y", "float[N,4,7] z"], True),
        (["float[N,100,85] y"], False),
        (["float[N,100,1] y", "float[N,100,4] z"], False),
        (["float[N,21,8,8] y"], False),
    ],
)
def test_file_names_are_labels_only_for_models_that_tell_classes(
    tmp_path: Path, outputs: list[str], taken: bool
) -> None:
    body = "\n".join(f"{output.split()[-1]} = com.example.Net(x)" for output in outputs)
    net = model("float[N,8,8,3] x", outputs=", ".join(outputs), body=body)
    for names in (("0_x.png", "1_y.png"), ("cat/a.png", "dog/b.png")):
        source = folder(tmp_path / names[0].split("/")[0].split(".")[0], images(*names))
        data = open_data(source, net, recipe=Recipe(scale=1.0))
        assert data.labeled is taken
        assert any("aren't taken as labels" in note for note in data.notes) is not taken
    asked = open_data(source, net, recipe=Recipe(scale=1.0, labels="folder"))  # as the user says
    assert asked.labeled

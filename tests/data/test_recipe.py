from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnxprune.data import Recipe, guess_recipe, read_recipe
from tests.data.support import refused

FULL = (
    "resize=256 crop=224x200 resample=bicubic channels=BGR scale=1/255 mean=0.485,0.456,0.406 "
    "std=0.229,0.224,0.225 layout=NCHW dtype=float32 labels=prefix label_offset=1 classes=cat,dog ignore=255"
)


def test_text_states_every_key() -> None:
    recipe = Recipe.parse(FULL)
    assert recipe == Recipe(
        resize=256,
        crop=(224, 200),
        resample="bicubic",
        channels="BGR",
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layout="NCHW",
        dtype="float32",
        labels="prefix",
        label_offset=1,
        classes=("cat", "dog"),
        ignore=255,
    )
    assert str(recipe) == FULL
    assert str(Recipe()) == ""


def test_a_table_may_hold_numbers_lists_or_texts() -> None:
    table = {"resize": [256, 320], "scale": "1/255", "mean": [0.5, 0.25], "std": 2, "channels": "gray", "crop": 8}
    assert Recipe.from_table(table) == Recipe(
        resize=(256, 320), scale=1 / 255, mean=(0.5, 0.25), std=(2.0,), channels="GRAY", crop=(8, 8)
    )


@given(
    st.builds(
        Recipe,
        resize=st.none() | st.integers(1, 999) | st.tuples(st.integers(1, 99), st.integers(1, 99)),
        channels=st.sampled_from([None, "RGB", "BGR", "GRAY", "RGBA"]),
        scale=st.none() | st.floats(-1e6, 1e6).filter(bool),
        mean=st.none() | st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3).map(tuple),
        label_offset=st.integers(-9, 9),
        ignore=st.none() | st.integers(-1, 255),
    )
)
def test_what_is_written_is_read_back_exactly(recipe: Recipe) -> None:
    assert Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("resise=8", "did you mean resize?"),
        ("wholly=8", "keys: resize, crop"),
        ("resize", "key=value"),
        ("crop=8 crop=9", "given twice"),
        ("resize=0", "size in pixels"),
        ("resize=99999999", "size in pixels"),
        ("crop=1x2x3", "can't read crop"),
        ("resize=big", "can't read resize"),
        ("scale=1/0", "can't read scale"),
        ("scale=0", "scale must be a number"),
        ("scale=nan", "scale must be a number"),
        ("std=0.1,0,0.2", "std must be one or more"),
        ("mean=inf", "mean must be one or more"),
        ("mean=", "can't read mean"),
        ("channels=YUV", "one of RGB, BGR"),
        ("layout=CHW", "one of NCHW, NHWC"),
        ("dtype=complex64", "type of numbers"),
        ("dtype=object", "type of numbers"),
        ("dtype=words", "type of numbers"),
        ("labels=", "auto, folder, prefix, none, or a name"),
        ("text=a,b,c", "name of a field, or two"),
        ("length=0", "number of tokens"),
        ("classes=cat,cat", "different names"),
        ("classes=", "different names"),
        ("label_offset=0.5", "can't read label_offset"),
        ("resample=cubic", "one of nearest"),
    ],
)
def test_what_cannot_be_followed_is_refused(text: str, reason: str) -> None:
    with refused("OP709", reason):
        Recipe.parse(text)


@pytest.mark.parametrize("value", [{"crop": 8}, {"mean": 0.5}, {"scale": "1/255"}, {"resample": None}, {"ignore": "x"}])
def test_wrong_kinds_are_refused_in_code_too(value: dict[str, object]) -> None:
    with refused("OP709"):
        Recipe(**value)  # type: ignore[arg-type]


def test_toml_files_hold_a_recipe_or_a_table_of_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('scale = "1/255"\ncrop = [8, 9]\n')
    assert read_recipe(str(path)) == Recipe(scale=1 / 255, crop=(8, 9))
    path.write_text("[preprocess]\nmean = [1, 2, 3]\n")
    assert read_recipe(str(path)) == Recipe(mean=(1.0, 2.0, 3.0))
    path.write_text("[preprocess]\nmeans = 1\n")
    with refused("OP709", "did you mean mean?"):
        read_recipe(str(path))
    for content in ("scale = ", "\ud800", "preprocess = 3", "scale = true", "[scale]\nx = 1"):
        path.write_text(content, errors="surrogatepass")
        with refused("OP709"):
            read_recipe(str(path))
    with refused("OP709", "No such file"):
        read_recipe(str(tmp_path / "none.toml"))


def test_guess_follows_the_layout_and_says_so() -> None:
    recipe, said = guess_recipe("image", (None, 3, 224, 224), np.dtype(np.float32))
    assert recipe == Recipe.parse(
        "resize=224 crop=224 channels=RGB scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 "
        "layout=NCHW dtype=float32"
    )
    assert said is not None and "'image'" in said and str(recipe) in said and "guess" in said
    recipe, _ = guess_recipe("x", (1, 240, 320, 3), np.dtype(np.float16))
    assert recipe == Recipe.parse("resize=240x320 channels=RGB scale=1/127.5 mean=1 layout=NHWC dtype=float16")
    recipe, _ = guess_recipe("x", (1, 1, 28, 28), np.dtype(np.float32))
    assert (recipe.channels, recipe.scale, recipe.mean) == ("GRAY", 1 / 255, None)


def test_guess_leaves_integers_raw_and_open_sizes_alone() -> None:
    recipe, _ = guess_recipe("x", (None, None, None, 3), np.dtype(np.uint8))
    assert recipe == Recipe(channels="RGB", layout="NHWC", dtype="uint8")


def test_guess_completes_but_never_overrides() -> None:
    given = Recipe.parse("resize=300 scale=1")
    recipe, said = guess_recipe("x", (1, 3, 224, 224), np.dtype(np.float32), given)
    assert recipe == Recipe.parse("resize=300 scale=1 channels=RGB layout=NCHW dtype=float32")
    assert said is not None and "guess" not in said
    bgr, _ = guess_recipe("x", (1, 3, 8, 8), np.dtype(np.float32), Recipe(channels="BGR"))
    assert bgr.mean == (0.406, 0.456, 0.485)  # the statistics go with their channels
    assert guess_recipe("x", (1, 3, 224, 224), np.dtype(np.float32), recipe) == (recipe, None)

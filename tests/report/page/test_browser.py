"""The page in a real browser: light, dark, narrow and printed. Skips where there is no Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onnxprune.report.page import story, to_html
from tests.report.page.test_page import hostile

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
_LIGHT, _DARK = (250, 250, 248), (20, 24, 26)
_PROBE = """
<script>
addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; };
  const found = {width: innerWidth, whole: document.documentElement.scrollWidth};
  for (const name of ["h1", "section", "table", "svg", "img", "li", "pre"])
    found[name] = [...document.querySelectorAll(name)].map(box);
  found.loaded = [...document.images].every(image => image.complete && image.naturalWidth > 0);
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")


def browse(page: Path, *options: str) -> str:
    """Open a page without a window, and return what the browser prints."""
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    command = [CHROMIUM, *fixed, *options, page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return found.stdout


def run() -> dict[str, Any]:
    """A document with every part, and pictures."""
    from base64 import b64encode

    import numpy as np

    from onnxprune.data.showing import png

    found = hostile("node_17")
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    picture = f"data:image/png;base64,{b64encode(png(pixels)).decode()}"
    found["examples"] = [{**found["examples"][0], "picture": picture}] * 5
    found["cost"] = {"before": {"params": 9, "macs": 9}, "after": {"params": 3, "macs": 4}}
    found["history"] = [{"number": n, "loss": 1 / n} for n in range(1, 6)]
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "page.html"
    path.write_text(to_html(story([run()])))
    return path


def probed(page: Path, *options: str) -> dict[str, Any]:
    """Return where the parts of a page lie. Its copy may run a script, which the page itself may not."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("</head>", f"{_PROBE}</head>"))
    (found,) = re.findall(r'data-found="([^"]*)"', browse(copy, "--dump-dom", *options))
    read: dict[str, Any] = json.loads(found.replace("&quot;", '"'))
    return read


@pytest.mark.parametrize("width", [1200, 500])
def test_every_part_has_its_place(page: Path, width: int) -> None:
    found = probed(page, f"--window-size={width},1000")
    assert found["width"] == width and found["whole"] <= width  # nothing makes the page scroll sideways
    assert found["loaded"]
    sections = re.findall(r'<section id="(\w+)"', page.read_text())
    assert len(sections) == len(found["section"]) == 12
    ends = [top + height for _, top, _, height in found["section"]]
    tops = [top for _, top, _, _ in found["section"]]
    assert all(end <= top for end, top in zip(ends, tops[1:], strict=False))  # one below the other
    for name in ("h1", "section", "table", "svg", "img", "pre"):
        assert found[name], name
        for left, _, wide, high in found[name]:
            assert wide > 4 and high > 4 and left >= 0, name


@pytest.mark.parametrize(("scheme", "paper"), [("1", _LIGHT), ("0", _DARK)])
def test_it_is_drawn_in_light_and_dark(page: Path, scheme: str, paper: tuple[int, int, int]) -> None:
    shot, look = page.with_name(f"{scheme}.png"), f"--blink-settings=preferredColorScheme={scheme}"
    browse(page, "--window-size=1200,5000", f"--screenshot={shot}", look)
    assert probed(page, look)["dark"] is (scheme == "0")
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        assert pixels.getpixel((2, 2)) == paper
        counts = pixels.getcolors(1 << 24)
        assert counts is not None and len(counts) > 200  # text, bars and pictures are drawn
        most = max(counts)[1]
        assert most == paper
        found = probed(page, "--window-size=1200,5000", look)
        for left, top, wide, high in found["svg"] + found["img"] + found["h1"]:
            if top + high < 5000:
                part = pixels.crop((int(left), int(top), int(left + wide), int(top + high)))
                assert len(part.getcolors(1 << 24) or []) > 1, "a part is empty"


def test_it_prints_on_pages(page: Path) -> None:
    target = page.with_suffix(".pdf")
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={target}")
    assert target.read_bytes()[:5] == b"%PDF-"


def test_its_own_policy_forbids_scripts(page: Path) -> None:
    """The control of the probe: with the page's policy, the same script doesn't run."""
    copy = page.with_name("kept.html")
    copy.write_text(page.read_text().replace("</head>", f"{_PROBE}</head>"))
    assert "data-found" not in browse(copy, "--dump-dom").replace("dataset.found", "")

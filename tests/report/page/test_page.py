"""The page: a run's figures are those of its JSON document and of its files; it is valid, safe and accessible."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import jinja2
import onnx
import pytest

from onnxprune.benchmarking import speed
from onnxprune.errors import UsageError
from onnxprune.report.page import story, to_html, to_receipt
from onnxprune.report.page.drawing import plot, ruler
from onnxprune.version import REPORTS
from tests.cli.support import DIGITS, invoke
from tests.report.page.accessible import contrast, faults, loads, palettes, parsed, words

DATA = DIGITS.with_name("digits_train.npz")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "' onmouseover='alert(1)",
    "\u202egnp.exe\x1b[2J",
    "]]>--><!--",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its result, its JSON document and its page."""
    folder = tmp_path_factory.mktemp("run")
    args = ["prune", DIGITS, "-o", folder / "small.onnx", "--target", "macs=30%", "--data", DATA, "--limit", 128]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.01)
        patch.setattr(speed, "_REPEATS", 1)
        found = invoke(*args, "--format", "json", "--report", folder / "page.html", "--examples", 4)
    (folder / "run.json").write_text(found.stdout)
    return folder


@pytest.fixture(scope="module")
def document(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parsed((run / "page.html").read_text())


def table(page: Element, caption: str) -> dict[str, list[str]]:
    """Return the rows of a table by their first cell."""
    for found in page.iter("table"):
        if words(found.find("caption") or Element("caption")).startswith(caption) or caption in words(found[0]):
            rows = [[words(cell) for cell in row] for row in found.iter("tr")]
            return {row[0]: row[1:] for row in rows}
    raise AssertionError(f"no table {caption!r}")


def number(text: str) -> float:
    """Read a number as people do: 86.7 k, 65.4 kB, 0.03 ms, 99.4 %."""
    match = re.fullmatch(r"[<>]?(-?[\d.]+(?:e[-+]\d+)?) ?([kMG]?)(B|ms|x|%|pt)?", text)
    assert match, text
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] * {"ms": 1e-3, "%": 0.01, "pt": 0.01}.get(match[3], 1)
    return float(match[1]) * scale


def test_every_part_is_there(page: Element, document: Mapping[str, Any]) -> None:
    sections = {e.get("id") for e in page.iter("section")}
    wanted = {"asked", "costs", "latency", "accuracy", "proofs", "layers", "stayed", "sensitivity", "environment"}
    wanted |= {"reproduce"}
    assert sections == wanted | ({"examples"} if document["outcome"]["examples"] else set())
    assert words(next(page.iter("h1"))) == "digits_resnet.onnx → small.onnx"
    assert next(words(e) for e in page.iter("time")).startswith(document["environment"]["date"][:10])


def test_costs_are_those_of_the_document_and_the_files(page: Element, document: Mapping[str, Any], run: Path) -> None:
    rows = table(page, "Costs")
    for title, key in {"parameters": "params", "MACs": "macs", "weights": "size", "activations": "memory"}.items():
        before, after = document["cost"]["before"][key], document["cost"]["after"][key]
        assert number(rows[title][0]) == pytest.approx(before, rel=5e-3)
        assert number(rows[title][1]) == pytest.approx(after, rel=5e-3)
        assert number(rows[title][2]) == pytest.approx(after / before - 1, abs=6e-4)
    sizes = [path.stat().st_size for path in (DIGITS, run / "small.onnx")]
    assert [number(cell) for cell in rows["file"][:2]] == pytest.approx(sizes, rel=5e-3)


def test_layers_are_those_of_the_files(page: Element, run: Path) -> None:
    """Shapes of weights are read from both files; times and errors from the document."""
    rows = table(page, "Layers before and after")
    shapes = []
    for path in (DIGITS, run / "small.onnx"):
        graph = onnx.load(path).graph
        dims = {tensor.name: "x".join(map(str, tensor.dims)) for tensor in graph.initializer}
        shapes.append({node.name: dims[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm")})
    assert len(rows) - 1 == len(shapes[0]) == 14
    changed = 0
    for number_, (name, shape) in enumerate(shapes[0].items(), 1):
        cells = rows[f"{name} L{number_}"]
        assert cells[1:3] == [shape, shapes[1][name]]
        changed += cells[1] != cells[2]
    assert changed > 5


def test_errors_of_repairs_are_those_of_the_document(page: Element, document: Mapping[str, Any]) -> None:
    rows = table(page, "Layers before and after")
    by_name = {name.partition(" ")[0]: cells for name, cells in rows.items()}
    assert document["repairs"]
    for repair in document["repairs"]:
        found = [float(cell) for cell in by_name[repair["node"]][4:6]]
        assert found == pytest.approx([repair["before"], repair["after"]], rel=6e-2)


def test_accuracies_and_times_are_those_of_the_document(page: Element, document: Mapping[str, Any]) -> None:
    found = document["outcome"]["fidelity"]
    row = table(page, "held-out samples")["top-1"]
    for at, key in ((0, "model"), (2, "original")):
        estimate = found["accuracy"][key]
        assert number(row[at]) == pytest.approx(estimate["value"], abs=6e-4)
        low, high = (float(end.lstrip(">")) / 100 for end in row[at + 1].split(" to "))
        assert (low, high) == pytest.approx((estimate["low"], estimate["high"]), abs=1e-3)
    fast, times = document["outcome"]["speed"], table(page, "Latency on cpu")
    assert number(times["original"][0]) == pytest.approx(fast["before"], abs=6e-7)
    assert f"{fast['speedup']['value']:.2f}x" in times["result"][1]


def test_times_of_layers_are_those_of_the_document(page: Element, document: Mapping[str, Any]) -> None:
    rows = {name.partition(" ")[0]: cells for name, cells in table(page, "Layers before and after").items()}
    timed = [layer for layer in document["outcome"]["layers"] if layer["number"]]  # 0 is what comes before them
    assert len(timed) == 14 and all(min(layer["seconds"]) > 0 for layer in timed)
    for layer in timed:
        assert [number(cell) for cell in rows[layer["name"]][6:8]] == pytest.approx(layer["seconds"], abs=6e-7)


def test_sensitivities_are_those_of_the_document(page: Element, document: Mapping[str, Any]) -> None:
    rows, removed = table(page, "Groups, the most sensitive first"), {g["name"]: g for g in document["groups"]}
    curves = document["sensitivity"]
    assert len(curves) == len(rows) - 1 == 8
    for curve in curves:
        group, (at, worst) = removed[curve["name"]], max(curve["points"], key=lambda point: point[1])
        units, most, share, gone = rows[curve["name"]]
        assert (int(units), int(gone)) == (group["units"], group["removed"])
        assert (float(most), number(share)) == pytest.approx((worst, at / group["units"]), rel=0.06)
    assert sum(group["removed"] for group in removed.values()) > 0


def test_what_stayed_has_its_reason(page: Element, document: Mapping[str, Any]) -> None:
    (pin,) = document["pins"]
    (row,) = [cells for name, cells in table(page, "Channels that can't be removed").items() if pin["code"] in cells]
    assert 'graph output "logits"' in row[-1]
    assert number(row[2]) == pytest.approx(pin["locked"] / document["cost"]["before"]["params"], abs=1e-3)


def test_the_command_is_there_to_copy(page: Element, document: Mapping[str, Any]) -> None:
    (code,) = page.iter("code")
    assert "".join(code.itertext()).replace(" \\\n ", "") == " ".join(document["command"])
    assert document["command"][:3] == ["onnxprune", "prune", str(DIGITS)]
    assert document["options"]["target"] == "macs=30%"
    assert table(page, "Machine and versions")["processor"][0].startswith(document["environment"]["cpu"])


def test_it_is_accessible_and_loads_nothing(page: Element) -> None:
    assert list(faults(page)) == []
    assert list(loads(page)) == []


def test_colors_have_contrast(page: Element) -> None:
    found = palettes(page)
    assert set(found) == {"light", "dark", "print"}
    for colors in found.values():
        for ink in ("ink", "faint", "accent", "good", "warn", "bad"):
            for paper in ("paper", "panel", "soft"):
                assert contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper)
        for number_ in range(6):
            assert contrast(colors[f"s{number_}"], colors["paper"]) >= 3  # graphics, criterion 1.4.11
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) < 4.5  # the control: the gray that is just too light


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("<h1>a</h1><h3>b</h3>", "left out"),
        ("<h1>a</h1><table><tr><th scope=row>a</th></tr></table>", "no caption"),
        ("<h1>a</h1><table><caption>c</caption><tr><th>a</th></tr></table>", "no scope"),
        ("<h1>a</h1><img src='data:,'>", "no text"),
        ("<h1>a</h1><svg></svg>", "neither hidden"),
        ("<h1>a</h1><a href='#x'>b</a>", "nowhere"),
        ("<p>a</p>", "one h1"),
    ],
)
def test_faults_are_noticed(broken: str, said: str) -> None:
    page = parsed(f"<!DOCTYPE html><html lang=en><head><title>t</title></head><body>{broken}</body></html>")
    assert any(said in fault for fault in faults(page))


def hostile(text: str) -> dict[str, Any]:
    """A document that is hostile wherever a model, data or a user can put a text."""
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    score = {"metric": text, "output": text, "share": True, "model": estimate, "original": estimate, "difference": None}
    example = {"name": text, "original": text, "model": text, "label": text, "text": text, "distance": 1.0}
    latency = {"median": 1.0, "p90": 1.0, "p99": 1.0, "runs": 3}
    result = {"model": text, "latency": latency, "speedup": estimate, "peak_memory": None, "load": 1.0, "file_size": 9}
    layer = {"name": text, "op": text, "shapes": [[1], [1]], "macs": [1, 1], "seconds": [1.0, 1.0], "number": 1}
    case = {"provider": text, "batch": text, "shapes": {text: [1]}, "layers": [layer], "notes": [text]}
    gate = {"name": text, "bound": "most", "limit": 1, "found": estimate, "unit": "share"}
    environment = dict.fromkeys(("date", "system", "cpu", "governor", "python", "onnxruntime"), text)
    return {
        **{"version": REPORTS, "report": text, "model": f"a/{text}", "output": text, "data": text},
        "command": [text, text],
        "options": {text: text},
        "environment": {**environment, "cores": 1, "load": 1.0, "gpus": [text], "packages": {text: text}},
        "cases": [{**case, "results": [result] * 2}],
        **{"scores": {text: score}, "samples": 3, "task": text, "confidence": 0.95, "doubts": [text]},
        "examples": [{**example, "picture": text}, {**example, "picture": f"https://x.test/{text}"}],
        "pins": [{"code": text, "layers": [text], "by": [text], "locked": 1, "held": 1}],
        "unrepaired": [{"node": text, "operator": text, "reason": text}],
        "groups": [{"name": text, "order": [1, 2], "points": [[1, 0.5], [2, 1.0]]}],
        "stages": [{"stage": text, "kept": True, "why": text, "size": [2, 1]}],
        "gates": [{**gate, "held": True, "decided": True}],
        "interface_changes": [text],
        "verification": None,
    }  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text: str) -> None:
    html = to_html(story([hostile(text)]))
    page = parsed(html)
    assert list(loads(page)) == [] and list(faults(page)) == []
    assert not list(page.iter("img"))  # neither a text nor an address is a picture
    assert "\u202e" not in html and "\x1b" not in html
    calm = {e.tag for e in parsed(to_html(story([hostile("calm")]))).iter()}
    assert {e.tag for e in page.iter()} == calm
    shown = text.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace("\n", " ")
    body = " ".join("".join(page.itertext()).split())
    assert body.count(" ".join(shown.split())) > 20


def test_without_escaping_they_would_be_markup() -> None:
    """The control: the same template and texts, autoescape off."""
    told = story([hostile(HOSTILE[0])])
    text = resources.files("onnxprune.report.page").joinpath("page.html").read_text()
    made = jinja2.Environment(autoescape=False, trim_blocks=True)
    from onnxprune.report.page.html import _cell

    made.globals |= {"plot": plot, "ruler": ruler, "cell": _cell}
    assert "<script>alert(1)</script>" in made.from_string(text).render(told=told)
    assert "<script>" not in to_html(told)


def test_stages_of_a_run_are_told_apart() -> None:
    """A run of several stages: one document with the field "stages", or several documents."""
    sizes = [{"before": 400, "after": 300}, {"before": 300, "after": 100}]
    inside = {"layers": [{"name": "a", "number": 1, "op": "Conv", "shapes": [[8, 3], [4, 3]], "macs": [24, 12]}]}
    speedup = {"value": 2.0, "low": 1.9, "high": 2.1}
    speed = {"speedup": speedup, "before": 0.02, "after": 0.01, "provider": "cpu"}
    stages = [
        {"stage": "clean", "kept": True, "size": [400, 300], "why": "12 nodes fewer", "speed": None, "drop": None},
        {"stage": "prune", "kept": True, "size": [300, 100], "document": inside, "speed": speed, "drop": None},
        {"stage": "quantize", "kept": False, "why": "slower on this machine", "size": None},
    ]
    whole = {
        "version": REPORTS,
        "report": "shrink",
        "model": "a.onnx",
        "kept": ["clean", "prune"],
        "missed": ["size=1"],
    }
    whole |= {"file_size": {"before": 400, "after": 100}, "speed": {**speed, "before": 0.03}, "samples": None}
    told = story([{**whole, "stages": stages}])
    page = parsed(to_html(told))
    rows = table(page, "What each stage brought")
    assert rows["clean"] == ["kept", "400 B → 300 B", "", "12 nodes fewer"]  # drop and time are nowhere known
    assert rows["prune"][2] == "2.00x (1.90 to 2.10)"
    assert rows["quantize"] == ["left out", "", "", "slower on this machine"]
    assert table(page, "Layers before and after")["a L1"][1:3] == ["8x3", "4x3"]
    assert told.figures[0].change == "-75.0 %"
    assert told.figures[1].before == "30.0 ms"  # of the whole run, not of its last stage
    assert next(said.text for said in told.verdicts) == "Missed: size=1."
    assert "| quantize | left out |" in to_receipt(told)
    chained = [{"version": REPORTS, "report": name, "file_size": size} for name, size in zip("ab", sizes, strict=True)]
    assert story(chained).figures[0].after == "100 B"
    assert story(chained[::-1]).figures[0].after == "100 B"  # these don't follow each other: the first one counts


def test_a_search_within_a_drop_shows_its_trials_and_samples(tmp_path: Path) -> None:
    """Points of the chart against the trials of the document; samples of the evaluation, which are told once."""
    args = ["prune", DIGITS, "-o", tmp_path / "small.onnx", "--max-drop", "9%", "--data", DATA, "--limit", 64]
    found = json.loads(invoke(*args, "--format", "json", "--report", tmp_path / "page.html", "--examples", 3).stdout)
    page = parsed((tmp_path / "page.html").read_text())
    assert "search" not in found and found["allowed"] == {"drop": 0.09, "metric": "top1", "cost": "macs"}
    (chart,) = [e for e in page.iter() if "drop in top-1" in e.get("aria-label", "")]
    circles = [e for e in chart.iter() if e.tag.endswith("circle")]
    dots = {float(e.get("cx", "")): "off" not in e.get("class", "").split() for e in circles}
    trials = sorted((t["share"], t["kept"]) for t in found["trials"] if t["drop"] is not None)  # else out of reach
    assert len(trials) > 2 and [good for _, good in sorted(dots.items())] == [kept for _, kept in trials]
    assert all(t["kept"] is (t["drop"]["value"] <= 0.09) for t in found["trials"] if t["drop"] is not None)
    examples = found["evaluation"]["examples"]
    assert len(examples) == 3 and found["outcome"]["examples"] == []
    assert [e.get("src") for e in page.iter("img")] == [e["picture"] for e in examples]


def test_long_names_are_short_everywhere_and_the_page_says_how() -> None:
    """Names as TensorFlow Lite joins them: of layers, of groups, of what pins, and of what wasn't repaired."""
    ends = ("stem/Relu6", "down/depthwise", "head/BiasAdd")
    names = [f"MobilenetV2/Backbone/{end};MobilenetV2/Backbone/{end}/Fold" for end in ends]
    layer = {"op": "Conv", "shapes": [[8, 3], [4, 3]], "macs": [24, 12]}
    document = {
        "layers": [{**layer, "name": name, "number": n} for n, name in enumerate(names, 1)],
        "sensitivity": [{"name": name, "order": [0, 1], "points": [[1, 0.5]]} for name in names],
        "pins": [{"code": "OP202", "layers": names, "by": [f'Conv "{name}"' for name in names], "locked": 1}],
        "unrepaired": [{"node": names[0], "operator": "Conv", "reason": "why"}],
    }
    page = parsed(to_html(story([{"version": REPORTS, "report": "prune", **document}])))
    text = words(page)
    assert not any(name in text for name in names) and text.count("MobilenetV2/Backbone/") == 2  # in notes
    assert 'without "MobilenetV2/Backbone/" in front and what follows the first ";"' in text
    for caption in ("Layers before and after", "Groups, the most sensitive first", "Layers that a repair can't change"):
        assert "stem/Relu6" in {name.partition(" ")[0] for name in table(page, caption)}
    assert 'Conv "stem/Relu6"' in text


@pytest.mark.parametrize(
    ("drop", "mark"),
    [
        ((0.0, 0.01, 0.02), "good"),
        ((0.0, 0.01, 0.03), "warn"),
        ((0.021, 0.03, 0.04), "bad"),
        ((0.01, 0.03, 0.04), "warn"),
    ],
)
def test_a_drop_is_marked_by_what_is_allowed(drop: tuple[float, float, float], mark: str) -> None:
    found = dict(zip(("low", "value", "high"), drop, strict=True))
    allowed = {"drop": 0.02, "metric": "top1", "why": "asked for"}
    told = story([{"version": REPORTS, "report": "shrink", "drop": found, "allowed": allowed}])
    (said,) = told.verdicts
    assert said.tone == mark and said.text.startswith("Drop in top-1 ")
    assert ("may decide otherwise" in said.text) is (drop[0] <= 0.02 < drop[2])


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [{}],
        [{"report": "x"}],
        [{"report": "x", "version": 1}],
        [{"report": "x", "version": REPORTS, "cases": [{}]}],
        [{"report": "x", "version": REPORTS, "cost": {"before": {"macs": "y"}}}],
        [{"report": "x", "version": REPORTS, "scores": [1]}],
        [{"report": "x", "version": REPORTS, "environment": {"cpu": 1}}],
        [{"report": "x", "version": REPORTS, "stages": [{}]}],
    ],
)
def test_other_documents_are_refused(wrong: list[Any]) -> None:
    with pytest.raises(UsageError) as caught:
        story(wrong)
    assert caught.value.code == "OP611"


def test_charts_cover_their_values() -> None:
    from onnxprune.report.page.parts import Chart, Interval, Intervals, Line

    found = plot(Chart("", "", "", [Line("a", [(0.0, 0.0), (0.3, -2.0), (7.0, 3.7)])], limit=5.0))
    for point in found.lines[0].points:
        assert found.left <= point.x <= found.right and found.top <= point.y <= found.bottom
    assert found.limit is not None and found.top <= found.limit < min(p.y for p in found.lines[0].points)
    flat = plot(Chart("", "", "", [Line("a", [(1.0, 0.0)])]))
    assert flat.left <= flat.lines[0].points[0].x <= flat.right
    row = Interval("a", 0.5, 0.4, 0.7, "")
    bars = ruler(Intervals("", [row, replace(row, value=float("nan"), low=float("nan"))])).bars
    assert bars[0].low < bars[0].value < bars[0].high
    # Twice as far on the axis is twice as much.
    assert (bars[0].high - bars[0].value) / (bars[0].value - bars[0].low) == pytest.approx(2)

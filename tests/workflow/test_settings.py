"""Settings: out-of-range, misspelled and contradictory values are errors that name the field; others are allowed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import click
import pytest

from onnxprune import OnnxPruneError, PlanError
from onnxprune.cli import options
from onnxprune.settings import (
    Augmentation,
    BenchmarkSettings,
    CleanSettings,
    Constraints,
    DataSettings,
    LatencySettings,
    LossSettings,
    PlanSettings,
    Policies,
    PruneSettings,
    QuantizeSettings,
    RepairSettings,
    Settings,
    Target,
    TrainSettings,
    build,
    given,
)
from onnxprune.settings.declare import declarations, flat, setting
from onnxprune.settings.pruning import VerifySettings
from onnxprune.settings.reading import read

CLASSES: list[type[Settings]] = [
    *(Augmentation, BenchmarkSettings, Constraints, DataSettings, LatencySettings, LossSettings, PlanSettings),
    *(Policies, RepairSettings, PruneSettings, TrainSettings, VerifySettings),
]


def pruning(**values: Any) -> Callable[[], Settings]:
    return lambda: build(PruneSettings, values)


HALF = Target("macs", 0.5)
TIME = Target("latency", 0.5)
anything: Any = "anything"


@pytest.mark.parametrize(
    ("make", "place", "hint"),
    [
        (lambda: PlanSettings(allocation=anything), "allocation", None),
        (lambda: PlanSettings(allocation="unifrom"), "allocation", "did you mean uniform?"),  # type: ignore[arg-type]
        (lambda: Policies(attention="head"), "attention", "did you mean heads?"),  # type: ignore[arg-type]
        (lambda: Policies(grouped="group"), "grouped", "did you mean groups?"),  # type: ignore[arg-type]
        (lambda: Target("mac", 0.5), "target", "did you mean macs?"),  # type: ignore[arg-type]
        (lambda: Target("macs", "half"), "target", None),  # type: ignore[arg-type]
        (lambda: Target("macs", 1.5), "target", None),
        (lambda: PlanSettings(target=("macs", 0.5)), "target", None),  # type: ignore[arg-type]
        (lambda: PlanSettings(remove_blocks="all"), "remove_blocks", None),  # type: ignore[arg-type]
        (lambda: PlanSettings(remove_blocks=-1), "remove_blocks", None),
        (lambda: PlanSettings(remove_blocks=True), "remove_blocks", None),
        (lambda: PlanSettings(ratio="0.5"), "ratio", None),  # type: ignore[arg-type]
        (lambda: PlanSettings(ratio=float("nan")), "ratio", None),
        (lambda: PlanSettings(seed=1.5), "seed", None),  # type: ignore[arg-type]
        (lambda: Constraints(include="stem"), "include", None),  # type: ignore[arg-type]
        (lambda: Constraints(ratio_for=(("stem", 2.0),)), "ratio_for stem", None),
        (lambda: Constraints(exact_only=1), "exact_only", None),  # type: ignore[arg-type]
        (lambda: TrainSettings(losses={"kll": 1.0}), "losses", None),  # type: ignore[dict-item]
        (lambda: TrainSettings(losses={"kl": 0.0}), "losses kl", None),
        (lambda: TrainSettings(optimizer="adam"), "optimizer", "did you mean adamw?"),  # type: ignore[arg-type]
        (lambda: LossSettings(temperature=0), "temperature", None),
        (lambda: Augmentation(crop=-1), "crop", None),
        (lambda: BenchmarkSettings(batches=(0,)), "batches", None),
        (lambda: RepairSettings("reconstrct"), "method", "did you mean reconstruct?"),  # type: ignore[arg-type]
        (pruning(max_drop=1.0, data="digits"), "max_drop", None),
        (pruning(datta="digits"), None, "did you mean data?"),
        (pruning(min_chanels=3), None, "did you mean min_channels?"),
    ],
)
def test_mistakes_name_the_field(make: Callable[[], Settings], place: str | None, hint: str | None) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        make()
    assert caught.value.code in ("OP303", "OP801", "OP602")
    assert caught.value.where == place
    assert hint is None or caught.value.hint == hint
    assert "--" not in str(caught.value).replace("  -->", "")


@pytest.mark.parametrize(
    ("first", "other", "values"),
    [
        ("ratio", "target", {"ratio": 0.5, "target": HALF}),
        ("plan", "ratio", {"plan": "p.json", "ratio": 0.5}),
        ("plan", "exact_only", {"plan": "p.json", "exact_only": True}),
        ("plan", "sensitivity", {"plan": "p.json", "sensitivity": "s.json"}),
        ("plan", "max_drop", {"plan": "p.json", "max_drop": 0.1, "data": "digits"}),
        ("max_drop", "ratio", {"max_drop": 0.1, "ratio": 0.5, "data": "digits"}),
        ("max_drop", "limit of the loss", {"minimize": "size", "data": "digits"}),
        ("target", "minimize", {"max_drop": 0.1, "minimize": "size", "target": HALF, "data": "digits"}),
        ("max_drop", "verify", {"max_drop": 0.1, "verify": False, "data": "digits"}),
        ("max_drop", "recover", {"max_drop": 0.1, "recover": "none", "data": "digits"}),
        ("max_drop", "steps", {"max_drop": 0.1, "finetune": 3, "steps": 2, "data": "digits"}),
        ("checkpoint", "resume", {"resume": True, "ratio": 0.5}),
        ("data", "checkpoint", {"checkpoint": "c.npz", "ratio": 0.5}),
        ("steps", "checkpoint", {"steps": 2, "finetune": 1, "data": "digits", "checkpoint": "c.npz"}),
        ("verify", "tolerance", {"verify": False, "tolerance": 0.1}),
        ("verify", "inputs", {"verify": False, "inputs": {}}),
        ("limit", "inputs", {"limit": 3}),
        ("recover", "inputs", {"recover": "bn"}),
        ("finetune", "inputs", {"finetune": 3}),
        ("steps", "training", {"steps": 2, "data": "digits"}),
        ("rewind", "training", {"rewind": "early.onnx", "data": "digits"}),
        ("steps", "plan", {"steps": 2, "finetune": 1, "data": "digits", "sensitivity": "s.json"}),
        ("cache", "latency", {"cache": False, "target": HALF}),
        ("allocation", "time", {"allocation": "uniform", "target": TIME}),
    ],
)
def test_contradictions(first: str, other: str, values: dict[str, Any]) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        build(PruneSettings, values)
    assert caught.value.code == "OP302"
    assert other in str(caught.value) and (f"`{first}`" in str(caught.value) or first == "steps")


@pytest.mark.parametrize(
    "values",
    [
        {"recover": "none", "data": "digits"},
        {"threads": 1, "ratio": 0.5, "data": "digits"},
        {"plan": "p.json", "threads": 1},
        {"allocation": "reconstruction", "target": TIME, "threads": 2, "provider": "cpu"},
        {"allocation": "uniform", "target": HALF},
        {"plan": "p.json", "data": "digits", "recover": "bn", "seed": 3},
        {"steps": 2, "finetune": 1, "data": "digits", "target": HALF},
        {"max_drop": 0.1, "data": "digits", "recover": "bias"},
        {"max_drop": 0.1, "data": "digits", "target": HALF, "finetune": 3, "checkpoint": "c.npz", "resume": True},
        {"max_drop": 0.1, "data": "digits", "minimize": "latency", "provider": "cpu"},
    ],
)
def test_allowed_combinations(values: dict[str, Any]) -> None:
    assert given(build(PruneSettings, values)) == values


@pytest.mark.parametrize("settings", [*CLASSES, Target])
def test_docstrings_list_every_field(settings: type[Settings]) -> None:
    documented = (settings.__doc__ or "").partition("\n\nAttributes:")[2]
    for found in fields(settings):  # type: ignore[arg-type]
        text = found.metadata["help"]
        assert re.search(rf"\n    {found.name}: \S", documented), found.name
        assert text.endswith(".") and " ".join(text.split()) in " ".join(documented.split())


def test_the_docstring_is_made_of_the_declarations() -> None:
    @dataclass(frozen=True, slots=True)
    class Some(Settings):
        """Some settings."""

        size: int = setting(3, "Size in pixels.", shown="3, as always")
        keep: bool = setting(True, "Keep it.")
        plain: ClassVar[int] = 2

    assert Some.__doc__ == (
        "Some settings.\n\nAttributes:\n"
        "    size: Size in pixels. [default: 3, as always]\n    keep: Keep it. [default: yes]"
    )


def test_of_several_words_the_wrong_one_is_told() -> None:
    with pytest.raises(PlanError, match=r"'statix' is not one of static, .*float16") as caught:
        build(QuantizeSettings, {"kind": ("float16", "statix")})
    assert caught.value.hint == "did you mean static?" and caught.value.where == "kind"


def test_a_word_where_several_may_be() -> None:
    assert read(QuantizeSettings, {"kind": "static"}) == {"kind": ("static",)}
    assert read(CleanSettings, {"optimizers": "onnxsim"}) == {"optimizers": ("onnxsim",)}
    assert read(QuantizeSettings, {"objective": "size"}) == {"objective": "size"}


@pytest.mark.parametrize("settings", CLASSES)
def test_every_default_is_allowed(settings: type[Settings]) -> None:
    made = settings()
    assert given(made) == {}
    assert json.dumps(asdict(made))  # type: ignore[call-overload]


@pytest.mark.parametrize("settings", [BenchmarkSettings, DataSettings, PruneSettings, TrainSettings, VerifySettings])
def test_options_are_those_of_the_settings(settings: type[Settings]) -> None:
    names = [d.name for d in flat(settings) if "by_hand" not in d.about]
    assert len(set(names)) == len(names), "groups share no name"

    @click.command()
    @options.of(settings, "given")
    def command(given: dict[str, Any]) -> None:
        assert given == {}

    found = [p for p in command.params if isinstance(p, options.SettingOption)]
    assert [p.field for p in found] == names
    assert all(p.help and not p.help.startswith("[") for p in found)
    assert not any(re.search(r"`\w+`", str(p.help)) for p in found), "help names flags, not fields"
    command.main([], standalone_mode=False)


def test_rules_name_existing_settings() -> None:
    """Rules refer to existing settings; a misspelled one would never apply."""
    for settings in CLASSES:
        known = {declared.name for declared in (*flat(settings), *declarations(settings))}
        for rule in settings._rules:
            assert {name.partition("=")[0] for name in (rule.first, *rule.others)} <= known


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, onnxprune.settings; print([m for m in ('numpy', 'onnx', 'rich', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"

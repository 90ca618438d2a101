"""The table of hardware: every entry can be used as it is, and says where it comes from."""

from __future__ import annotations

from typing import get_args

import pytest

from onnxprune.quantization.search import KINDS
from onnxprune.runtime.provider import parse_provider
from onnxprune.settings import PruneSettings, QuantizeSettings, build
from onnxprune.settings.hardware import HARDWARE, HardwareName
from onnxprune.workflow.hardware import place


def test_every_word_has_an_entry() -> None:
    assert tuple(HARDWARE) == get_args(HardwareName)


@pytest.mark.parametrize("name", HARDWARE)
def test_an_entry_is_made_of_settings_that_exist(name: HardwareName) -> None:
    found = HARDWARE[name]
    assert parse_provider(found.provider).short == found.provider
    assert set(found.kinds) <= set(KINDS) and found.source.startswith("https://") and found.why
    build(QuantizeSettings, {"kind": found.kinds, "weight_bits": found.weight_bits})
    build(PruneSettings, {"round_to": found.channels})


@pytest.mark.parametrize("name", HARDWARE)
def test_what_is_told_of_it_names_it(name: HardwareName) -> None:
    _, _, notes = place(HARDWARE[name])
    assert notes[0].startswith(f"{name}: ") and HARDWARE[name].source in notes[0]

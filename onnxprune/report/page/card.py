"""A model card: Markdown with the metadata of a Hugging Face model index, of measured values only.

The metadata are those that Hugging Face's documentation of model cards describes ("model-index"). JSON strings are
valid YAML (YAML 1.2, section 1.2), so no writer of YAML is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePath

from onnxprune.report.page.parts import Measured, Story
from onnxprune.report.page.receipt import to_receipt
from onnxprune.report.text import printable

_TASKS = {
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "ctc": "automatic-speech-recognition",
    "embedding": "feature-extraction",
}
_TYPES = {"top1": "accuracy", "top5": "top_5_accuracy", "miou": "mean_iou", "map": "mAP"}


def to_card(told: Story) -> str:
    """Return a model card. What wasn't measured, such as a licence, isn't in it."""
    name = told.title.rpartition(" → ")[2]
    head = ["---", "library_name: onnx", "tags:", "- onnx", "- onnxprune"]
    if told.measured:
        head += ["model-index:", f"- name: {_text(name)}", "  results:", *_results(told.measured)]
    return "\n".join([*head, "---", "", to_receipt(told).replace("### ", "# ", 1)])


def _results(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield an entry for each task and data, with its metrics."""
    for (task, data, samples), own in groupby(measured, key=lambda m: (m.task, PurePath(m.data).name, m.samples)):
        yield "  - task:"
        yield f"      type: {_text(_TASKS.get(task, 'other'))}"
        yield f"      name: {_text(task or 'unknown')}"
        yield "    dataset:"
        yield f"      name: {_text(f'{data} ({samples} samples)' if data else f'{samples} samples')}"
        yield f"      type: {_text(data or 'unknown')}"
        yield "    metrics:"
        for one in own:
            yield f"    - type: {_text(_TYPES.get(one.metric, one.metric))}"
            yield f"      name: {_text(f'{one.title} (95 % interval {one.low:.4g} to {one.high:.4g})')}"
            yield f"      value: {one.value!r}"


def _text(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)

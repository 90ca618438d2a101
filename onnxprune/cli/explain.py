"""`onnxprune explain`: explain why channels are coupled or pinned, and what a code means."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import open_model, sample_settings
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import CATALOG, UsageError

_EXAMPLES = """\b
Examples:
  onnxprune explain model.onnx            all reasons, by share of the parameters
  onnxprune explain model.onnx conv_14    groups and pins of a node, with the path of nodes
  onnxprune explain model.onnx L17        the same of the 17th layer, as `inspect` numbers them
  onnxprune explain model.onnx OP204      everything pinned for this reason
  onnxprune explain OP204                 what the code means
"""


@click.command("explain", cls=Command, epilog=_EXAMPLES)
@click.argument("what", metavar="MODEL|CODE")
@click.argument("about", metavar="[NODE|CODE]", required=False)
@options.input_shapes
@options.inputs
@options.sample_data
@options.policies
@reporting
@options.custom_ops
def command(
    what: str,
    about: str | None,
    input_shapes: list[Any],
    inputs: list[Any],
    data: dict[str, Any],
    policies: dict[str, Any],
    out: Output,
) -> None:
    """Explain why channels are removed together or can't be removed, or what a code means.

    NODE is a name, a pattern that matches one node, such as '*layer4*conv2*', or the number of a layer, such as L17.
    """
    from onnxprune.rank.factors import rank_of
    from onnxprune.report.console import pin_tables
    from onnxprune.report.coupling import explain_node, find_node, held_by
    from onnxprune.report.documents import document, fields
    from onnxprune.report.explanation import code_tables, held_tables, node_tables
    from onnxprune.report.index import Index
    from onnxprune.report.labels import Labels
    from onnxprune.report.summary import summarize

    if about is None and _is_code(what):
        _check_code(what)
        out.data(document("explain", code=what, **fields(CATALOG[what])), code_tables(what))
        return
    if about is not None and _is_code(about):
        _check_code(about)
    samples = sample_settings(data)
    analysis, _ = open_model(out, Path(what), input_shapes, inputs, policies=policies, data=samples)
    if about is None:
        summary = summarize(analysis.graph)
        content = fields(summary)
        report = document("explain", model=what, prunable=content["prunable"], pins=content["pins"])
        out.data(report, pin_tables(summary, f"see `onnxprune explain {what} CODE`, or NODE"))
        return
    index, labels = Index(analysis.graph), Labels.of(analysis.graph.proto)
    if _is_code(about):
        axes = list(held_by(index, about))
        out.data(document("explain", model=what, code=about, axes=axes), held_tables(about, axes, labels))
        return
    node = find_node(index, about)
    channels = explain_node(index, node)
    rank = rank_of(analysis.graph.proto, analysis.graph.shapes, node.name)
    report = document("explain", model=what, node=node.name, op=node.op_type, channels=channels, rank=rank)
    out.data(report, node_tables(node.name, node.op_type, channels, labels, rank))


def _is_code(text: str) -> bool:
    return re.fullmatch(r"OP\d{3}", text) is not None


def _check_code(code: str) -> None:
    if code not in CATALOG:
        families = dict.fromkeys(f"{known[:3]}.." for known in CATALOG)
        near = get_close_matches(code, CATALOG, n=3, cutoff=0.7)
        hint = f"codes begin with {', '.join(families)}" + (f"; near are {', '.join(near)}" if near else "")
        raise UsageError("OP606", f"there is no code {code}", hint=hint)

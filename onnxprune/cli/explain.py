"""`onnxprune explain`: why channels are coupled or pinned, and what a code means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import CATALOG, UsageError

_EXAMPLES = """\b
Examples:
  onnxprune explain model.onnx            all reasons, by share of the parameters
  onnxprune explain model.onnx conv_14    a node: its groups, its pins, and over which nodes
  onnxprune explain model.onnx OP204      everything that this reason pins
  onnxprune explain OP204                 what the code means
"""


@click.command("explain", short_help="Tell why channels can't leave, or what a code means.", epilog=_EXAMPLES)
@click.argument("what", metavar="MODEL|CODE")
@click.argument("about", metavar="[NODE|CODE]", required=False)
@options.input_shapes
@options.policies
@reporting
def command(what: str, about: str | None, input_shapes: list[Any], policies: dict[str, Any], out: Output) -> None:
    """Explain why channels leave together or not at all, or what a code means.

    NODE may be a pattern that fits one node, such as '*layer4*conv2*'.
    """
    if about is None and _is_code(what):
        _explain_code(what, out)
        return
    from onnxprune.report import console, documents, explanations
    from onnxprune.report.coupling import explain_node, find_node, held_by
    from onnxprune.report.index import Index
    from onnxprune.report.summary import summarize

    if about is not None and _is_code(about):
        _check_code(about)
    analysis, _ = open_model(out, Path(what), input_shapes, policies=policies)
    graph = analysis.graph
    if about is None:
        summary = summarize(graph)
        fields = documents.model_fields(summary)
        out.data(
            lambda: documents.document("explain", model=what, prunable=fields["prunable"], pins=fields["pins"]),
            lambda: console.what_stays(summary, f"see `onnxprune explain {what} CODE`, or NODE"),
        )
    elif _is_code(about):
        axes = list(held_by(Index(graph), about))
        out.data(
            lambda: documents.document("explain", model=what, code=about, axes=documents.held_fields(axes)),
            lambda: explanations.held_axes(about, axes),
        )
    else:
        node = find_node(graph, about)
        channels = explain_node(Index(graph), node)
        out.data(
            lambda: documents.document(
                "explain",
                model=what,
                node=node.name,
                op=node.op_type,
                channels=documents.axis_fields(channels),
            ),
            lambda: explanations.node_channels(node.name, node.op_type, channels),
        )


def _explain_code(code: str, out: Output) -> None:
    _check_code(code)
    from onnxprune.report import documents, explanations

    info = CATALOG[code]
    out.data(
        lambda: documents.document("explain", **documents.code_fields(code, info)),
        lambda: explanations.catalog_entry(code, info),
    )


def _is_code(text: str) -> bool:
    return re.fullmatch(r"OP\d{3}", text) is not None


def _check_code(code: str) -> None:
    if code not in CATALOG:
        family = [known for known in CATALOG if known[:3] == code[:3]]
        hint = f"known are {family[0]} to {family[-1]}" if family else f"known are {', '.join(CATALOG)}"
        raise UsageError("OP606", f"there is no code {code}", hint=hint)

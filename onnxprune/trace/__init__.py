"""Trace channel dependencies: ids flow through the graph, and each operator's rule says which meet."""

from __future__ import annotations

from onnxprune.channels.ledger import Approximation, Pin
from onnxprune.trace.graph import ChannelGraph, Slice, Unit
from onnxprune.trace.groups import Group
from onnxprune.trace.tracer import retrace, trace

__all__ = ["Approximation", "ChannelGraph", "Group", "Pin", "Slice", "Unit", "retrace", "trace"]

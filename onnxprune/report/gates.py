"""Gates as tables."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.report.layout import BAD, CODE, GOOD, Name, Tables, flexible, heading, left, line, right, table
from onnxprune.workflow.gates import Gate


def gate_tables(gates: Sequence[Gate]) -> Tables:
    """Show limits on measured values, and whether they are held; nothing if there are none."""
    if not gates:
        return
    rows = (
        (
            Name(gate.name),
            gate.write(gate.found.value),
            gate.interval,
            gate.allowed,
            line(("held", GOOD) if gate.held else ("MISSED", BAD), ("" if gate.decided else ", not certain", CODE)),
        )
        for gate in gates
    )
    yield heading("gates")
    yield table(flexible("") + right("value") + left("interval", "must be", ""), rows)

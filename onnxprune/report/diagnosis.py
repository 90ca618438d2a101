"""A diagnosis of the installation as tables for people, and as a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from onnxprune.report.layout import BAD, CODE, FAINT, GOOD, heading, line, paragraph, stack, table
from onnxprune.runtime.doctor import Diagnosis

_STYLES = {"error": BAD, "warning": CODE, "note": FAINT}


def diagnosis_fields(found: Diagnosis) -> Mapping[str, Any]:
    """Describe a diagnosis."""
    return {"healthy": found.healthy, **asdict(found)}


def diagnosis_tables(found: Diagnosis) -> RenderableType:
    """Tabulate a diagnosis."""
    return stack(*_parts(found))


def _parts(found: Diagnosis) -> Iterator[RenderableType]:
    runtimes = ", ".join(f"{name} {version}" for name, version in found.runtimes.items())
    yield heading("installed")
    rows = [("Python", found.python), ("processor", f"{found.cpu}, {found.cores} cores")]
    rows += [("GPU", gpu) for gpu in found.gpus]
    rows += [("ONNX Runtime", runtimes or "not installed")]
    rows += [(name, version or "not installed") for name, version in found.packages.items()]
    yield table("|~", rows)
    if found.providers:
        yield heading("execution providers", "each was started once")
        states = (
            (p.name, line(("works", GOOD) if p.works else ("doesn't start", BAD)), p.why) for p in found.providers
        )
        yield table("||~", states)
    yield heading("findings")
    for finding in found.findings:
        yield paragraph(line((finding.level, _STYLES[finding.level]), f": {finding.what}"))
        if finding.hint:
            yield paragraph(line(("help", "cyan"), f": {finding.hint}"), indent=4)
    if not found.findings:
        yield paragraph("nothing is wrong", GOOD)

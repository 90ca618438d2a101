"""Tables of a diagnosis of the installation."""

from __future__ import annotations

from onnxprune.report.layout import BAD, CODE, FAINT, GOOD, Tables, flexible, heading, left, line, paragraph, table
from onnxprune.runtime.doctor import EXTRAS, Diagnosis

_STYLES = {"error": BAD, "warning": CODE, "note": FAINT}


def diagnosis_tables(found: Diagnosis) -> Tables:
    """Show what is installed, which execution providers start, and what was found."""
    runtimes = ", ".join(f"{name} {version}" for name, version in found.runtimes.items())
    yield heading("installed")
    rows = [("Python", found.python), ("processor", f"{found.cpu}, {found.cores} cores")]
    rows += [("GPU", gpu) for gpu in found.gpus]
    rows += [("ONNX Runtime", runtimes or "not installed")]
    rows += [(name, version or _missing(name)) for name, version in found.packages.items()]
    yield table(left("") + flexible(""), rows)
    if found.providers:
        yield heading("execution providers", "each was started once")
        states = (
            (p.name, line(("works", GOOD) if p.works else ("doesn't start", BAD)), p.why) for p in found.providers
        )
        yield table(left("", "") + flexible(""), states)
    yield heading("findings")
    for finding in found.findings:
        yield paragraph(line((finding.level, _STYLES[finding.level]), f": {finding.what}"))
        if finding.hint:
            yield paragraph(line(("help", "cyan"), f": {finding.hint}"), indent=4)
    if not found.findings:
        yield paragraph("no problems found", GOOD)


def _missing(package: str) -> str:
    extra = EXTRAS.get(package)
    return "not installed" + (f"; extra {extra}" if extra else "")

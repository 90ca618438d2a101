"""Checks that a command made, as JUnit XML for CI systems.

The format has no standard; this is the common part that Jenkins, GitLab and GitHub's actions read: a suite for the
command, and a case for each check (https://github.com/testmoapp/junitxml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from onnxprune.report.text import printable

if TYPE_CHECKING:
    from onnxprune.workflow.gates import Gate

# Everything but what XML 1.0 allows.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was checked.

    Attributes:
        name: what was checked.
        passed: whether it is as it should be.
        text: what was found, in a line.
    """

    name: str
    passed: bool
    text: str


def checks_of(gates: Sequence[Gate]) -> tuple[Check, ...]:
    """Return gates as checks."""
    return tuple(Check(gate.name, gate.held, str(gate)) for gate in gates)


def to_junit(
    command: str,
    checks: Sequence[Check],
    *,
    failure: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    text: str = "",
) -> str:
    """Return the checks of a command as JUnit XML.

    Args:
        command: the command's name.
        checks: what it checked.
        failure: code, cause, where, hint and exit_status if the command failed. Unless a check did, the command itself
            is what failed: status 1 is a failure, others are errors.
        seconds: how long the command took.
        text: what it would print on a terminal.
    """
    suite = Element("testsuite", name=f"onnxprune {command}", time=f"{seconds:.3f}")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for name, kind, message, details in _cases(command, checks, failure):
        case = SubElement(suite, "testcase", name=_clean(name), classname=f"onnxprune.{command}", time="0")
        counts["tests"] += 1
        if kind:
            counts[f"{kind}s"] += 1
            SubElement(case, kind, message=_clean(message), type=details).text = _clean(message)
        elif message:
            SubElement(case, "system-out").text = _clean(message)
    for key, count in counts.items():
        suite.set(key, str(count))
    if text:
        SubElement(suite, "system-out").text = _clean(text)
    suites = Element("testsuites")
    suites.append(suite)
    indent(suites)
    written: bytes = tostring(suites, encoding="us-ascii", xml_declaration=True)  # whatever stdout's encoding is
    return written.decode() + "\n"


def _cases(
    command: str, checks: Sequence[Check], failure: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, str, str]]:
    """Yield for each case its name, "failure" or "error" or nothing, what was found, and the code of an error."""
    missed = False
    for check in checks:
        missed = missed or not check.passed
        yield check.name, "" if check.passed else "failure", check.text, str((failure or {}).get("code") or "check")
    if failure is None or missed:
        yield command, "", "", ""
        return
    kind = "failure" if failure["exit_status"] == 1 else "error"
    where, hint = failure["where"], failure["hint"]
    parts = (failure["cause"], where and f"at {where}", hint and f"help: {hint}")
    yield command, kind, "; ".join(filter(None, parts)), str(failure["code"] or "internal")


def _clean(text: str) -> str:
    """Return a text without characters that XML can't hold."""
    return _FORBIDDEN.sub("?", printable(text))

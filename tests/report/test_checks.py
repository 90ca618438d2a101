"""JUnit XML, read back by the standard library's parser."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest

from onnxprune.report.checks import Check, to_junit

ERROR = {"code": "OP101", "cause": "no such file", "where": "m.onnx", "hint": "look", "exit_status": 2}
MISSED = {"code": "OP508", "cause": "too low", "where": None, "hint": None, "exit_status": 1}


def suite(*args: Any, **rest: Any) -> Element:
    root = fromstring(to_junit(*args, **rest))
    assert root.tag == "testsuites" and len(root) == 1 and root[0].tag == "testsuite"
    cases = root[0].findall("testcase")
    counts = {"tests": len(cases), "skipped": 0}
    counts |= {f"{kind}s": sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error")}
    assert {key: int(root[0].get(key, "-1")) for key in counts} == counts
    return root[0]


def test_a_command_without_checks() -> None:
    found = suite("prune", (), seconds=1.5, text="tables\n")
    assert (found.get("name"), found.get("time"), found.get("failures")) == ("onnxprune prune", "1.500", "0")
    assert [case.get("name") for case in found.findall("testcase")] == ["prune"]
    assert found.findtext("system-out") == "tables\n"


def test_checks() -> None:
    checks = (Check("top1", True, "top1 is 99 %"), Check("kl", False, "kl is 2"))
    found = suite("evaluate", checks, failure=MISSED)
    cases = {case.get("name"): case for case in found.findall("testcase")}
    assert list(cases) == ["top1", "kl", "evaluate"]
    assert cases["top1"].findtext("system-out") == "top1 is 99 %" and not len(cases["evaluate"])
    failure = cases["kl"].find("failure")
    assert failure is not None and failure.get("type") == "OP508" and failure.text == "kl is 2"


@pytest.mark.parametrize(("failure", "kind"), [(ERROR, "error"), (MISSED, "failure")])
def test_a_failed_command(failure: dict[str, Any], kind: str) -> None:
    """A check that held doesn't hide that the command failed; the exit status tells a failure from an error."""
    found = suite("prune", (Check("a", True, ""),), failure=failure)
    (mark,) = found.iter(kind)
    assert mark.get("type") == failure["code"] and failure["cause"] in str(mark.get("message"))


def test_any_text_is_well_formed() -> None:
    text = '<a & "b"> ]]> \x00\x1b[2J \ud800 \ufffe é 日'
    found = suite("verify", (Check(text, False, text),), failure=MISSED | {"cause": text}, text=text)
    name = str(found.find("testcase").get("name"))  # type: ignore[union-attr]
    assert name.startswith('<a & "b"> ]]> ') and name.endswith("é 日") and "\x1b" not in name

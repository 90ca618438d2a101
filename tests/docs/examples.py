"""Commands and outputs shown in the README and in docs/: found, run as a reader would, compared."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
INSTALL = re.compile(r"(pip|pipx|uvx|uv|docker|python3 -m venv|pre-commit)\b|\.venv/bin/|\.ci/")
"""Commands that set something up; they aren't run here. `tests/test_wheel.py` installs the wheel."""

POINTS, SHARE, FACTOR = 2.0, 0.05, 100.0
"""How far a percentage may be off in points, another number as a share, and a tiny error as a factor."""

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_TIMED = re.compile(
    r"\d (?:ms|µs|s)\b|\dx\b(?!\d)|\d/s\b|as fast|slower|busy|disturbed|^ *on cpu; file|\d % smaller"
    r"|^ *(smaller: )?[\d.]+ [kM]?B → [\d.]+ [kM]?B$"
)
"""Lines with measured times, which differ from run to run: they are left out, but there must be some."""

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (slow|needs: .+|not run: .+) -->")


@dataclass
class Step:
    """A command with what it must print, or Python code; `expected` is None if the page shows no output.

    Attributes:
        line: where it starts in the page.
        kind: "sh" or "python".
        code: what is run.
        expected: lines; "..." stands for any.
        rows: numbers of the page's lines that show them.
        measured: whether the figures differ between machines, so that only words are compared.
    """

    line: int
    kind: str
    code: str
    expected: list[str] | None = None
    rows: list[int] = field(default_factory=list)
    measured: bool = False


@dataclass
class Page:
    """A page and what it shows.

    Attributes:
        path: the file.
        needs: modules or files beside the project that it needs.
        slow: whether it takes more than a few seconds.
        steps: what is run, in order, in one folder.
        others: kind and text of the other blocks.
    """

    path: Path
    needs: list[str]
    slow: bool
    steps: list[Step]
    others: list[tuple[int, str, str]]


def read(path: Path) -> Page:
    """Find the blocks of a page.

    Blocks of kind `console` have commands behind "$ ", each with its output. A block without a kind, or of kind `sh`,
    has commands only; a block of kind `text` that follows is their output. `python` blocks that follow each other
    share their names. The comment "measured" before a block says that its figures follow from measured times, or
    differ between processors as those of a training do.
    """
    text = path.read_text(encoding="utf-8")
    page = Page(path, [], False, [], [])
    for mark in _MARK.findall(text):
        page.slow |= mark == "slow"
        if mark.startswith("needs: "):
            page.needs.append(mark.removeprefix("needs: "))
    last: Step | None = None
    for block in _FENCE.finditer(text):
        line, kind, body = text.count("\n", 0, block.start()) + 2, block[2], block[3]
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        if before.startswith("<!-- not run: "):
            last = None
            continue
        lines = body.splitlines()
        if kind == "console":
            page.steps += _session(lines, line, before == "<!-- measured -->")
            last = None
        elif kind in ("", "sh"):
            last = Step(line, "sh", body.strip())
            page.steps.append(last)
        elif kind == "python":
            last = Step(line, "python", body)
            page.steps.append(last)
        elif kind == "text" and last is not None:
            last.expected, last.rows, last = lines, list(range(line, line + len(lines))), None
        else:
            page.others.append((line, kind, body))
    return page


def _session(lines: Sequence[str], first: int, measured: bool) -> Iterator[Step]:
    step: Step | None = None
    for number, line in enumerate(lines, first):
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(number, "sh", line[2:], [], measured=measured)
        elif step is not None and not step.expected and step.code.endswith("\\"):
            step.code = step.code[:-1] + line.strip()
        elif step is not None and step.expected is not None:
            step.expected.append(line)
            step.rows.append(number)
    if step is not None:
        yield step


def folder_for(page: Page, folder: Path) -> dict[str, str]:
    """Put what a page's commands need into a folder; return the environment to run them in."""
    shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for need in page.needs:
        if need.startswith("shared/"):
            shutil.copy(SHARED / need.removeprefix("shared/"), folder)
    tools = folder / ".tools"
    tools.mkdir()
    for name, module in (("onnxprune", "-m onnxprune"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (tools / name).chmod(0o755)
    rest = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return rest | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def runnable(code: str) -> str:
    """Return the part of a command line that isn't an installation, which goes first."""
    parts = code.split(" && ")
    while parts and INSTALL.match(parts[0].removeprefix(". ")):
        parts.pop(0)
    return " && ".join(parts)


def run(page: Page, folder: Path) -> Iterator[tuple[Step, int, list[str]]]:
    """Run the steps of a page in order, in one folder; what only installs is left out.

    Python blocks that follow each other run in one process.

    Yields:
        Each step with its exit status and all lines that were printed.
    """
    variables = folder_for(page, folder)
    steps = [step for step in page.steps if step.kind == "python" or runnable(step.code)]
    for kind, group in groupby(steps, key=lambda step: step.kind):
        if kind == "python":
            yield from _python(list(group), folder, variables)
            continue
        for step in group:
            status, text = _shell(["bash", "-c", runnable(step.code)], folder, variables)
            yield step, status, text.splitlines()


def _python(steps: list[Step], folder: Path, variables: dict[str, str]) -> Iterator[tuple[Step, int, list[str]]]:
    mark = "\x1e\n"
    code = "".join(f"{step.code}\nprint({mark!r}, end='', flush=True)\n" for step in steps)
    status, text = _shell([sys.executable, "-c", code], folder, variables)
    parts = text.split(mark)
    for number, step in enumerate(steps):
        done = number < len(parts) - 1
        yield step, 0 if done else status or 1, parts[number].splitlines() if number < len(parts) else []


def _shell(command: Sequence[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    out = subprocess.PIPE
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
    )
    return done.returncode, done.stdout


def differences(expected: Sequence[str], found: Sequence[str], *, measured: bool = False) -> list[str]:
    """Compare lines; those of `expected` that are "..." stand for any number of lines.

    Words must be equal, and numbers within the tolerances unless they are measured; lines with times only have to be
    there.

    Returns:
        What differs; nothing if they agree.
    """
    if any(map(_TIMED.search, expected)) and not any(map(_TIMED.search, found)):
        return ["- times", *(f"+ {line}" for line in found)]
    expected, found = ([line for line in lines if not _fleeting(line)] for lines in (expected, found))
    parts: list[list[str]] = [[]]
    for line in expected:
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    at, rest = 0, found
    for number, part in enumerate(parts):
        first, last = number == 0, number == len(parts) - 1
        if not part:
            continue
        if last and len(parts) > 1:
            starts: Sequence[int] = [len(rest) - len(part)]
        else:
            starts = [0] if first else range(at, len(rest) - len(part) + 1)
        place = next((s for s in starts if s >= at and _same(part, rest[s : s + len(part)], measured)), None)
        if place is None:
            near = rest[starts[0] : starts[0] + len(part)] if len(starts) == 1 and starts[0] >= 0 else rest[at:]
            pairs = [f"- {line}" for line in part] + [f"+ {line}" for line in near]
            return pairs or [f"- {line}" for line in part]
        at = place + len(part)
    if len(parts) == 1 and at != len(rest):
        return [f"+ {line}" for line in rest[at:]]
    return []


def _fleeting(line: str) -> bool:
    """Whether a line shows times, or is one of those that come once a minute."""
    return bool(_TIMED.search(line) or re.match(r"\.\.\. \S", line))


def _same(expected: Sequence[str], found: Sequence[str], measured: bool) -> bool:
    same = same_words if measured else same_line
    return len(expected) == len(found) and all(map(same, expected, found))


def same_words(expected: str, found: str) -> bool:
    """Whether two lines have the same words."""
    return _words(expected) == _words(found)


def same_line(expected: str, found: str) -> bool:
    """Whether two lines have the same words, and numbers within the tolerances."""
    if not same_words(expected, found):
        return False
    numbers = zip(_NUMBER.finditer(expected), _NUMBER.finditer(found), strict=True)
    return all(_close(a[0], b[0], expected[a.end() :]) for a, b in numbers)


def _words(line: str) -> str:
    return re.sub(r"[\s─━]+", " ", _NUMBER.sub("#", line)).strip()


def _close(one: str, other: str, behind: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (one, other))
    if "e-" in one or "e-" in other:
        return max(abs(a), abs(b)) <= FACTOR * max(min(abs(a), abs(b)), 1e-8)
    if re.match(r"( ?%| ?pt| to [\d.+-]+)", behind) or "%" in behind:
        return abs(a - b) <= POINTS
    return abs(a - b) <= SHARE * max(abs(a), abs(b)) + (0.02 if "." in one else 0)


def renewed(page: Page, results: Sequence[tuple[Step, list[str]]]) -> str:
    """Return a page's text with outputs as they are now.

    A command without any output gets all of it, and so does one whose output has other words and is shown as a whole.
    Other lines are replaced by the line with the same words.
    """
    lines = page.path.read_text(encoding="utf-8").splitlines()
    added: dict[int, list[str]] = {}
    removed: set[int] = set()
    for step, found in results:
        found = [line for line in found if not re.match(r"warning: the machine was busy|\.\.\. \S", line)]
        if step.expected == []:
            added[step.line + page.path.read_text().splitlines()[step.line - 1].endswith("\\")] = found
        whole = step.rows and not any(lines[row - 1].strip() == "..." for row in step.rows)
        if whole and differences(step.expected or (), found, measured=True):
            added[step.rows[0] - 1] = found
            removed.update(step.rows)
            continue
        at = 0
        for row in step.rows:
            shape = _words(lines[row - 1])
            alike = [n for n in range(at, len(found)) if _words(found[n]) == shape]
            place = next((n for n in alike if same_line(lines[row - 1], found[n])), next(iter(alike), None))
            if place is not None:
                lines[row - 1], at = found[place], place + 1
    text = []
    for number, line in enumerate(lines, 1):
        text += [*([] if number in removed else [line]), *added.get(number, [])]
    return "\n".join(text) + "\n"

"""Settings of the whole test suite."""

from __future__ import annotations

import os
from importlib.util import find_spec

# Before numpy is imported: with a process of tests on each core, threads of its own only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine; `-m slow` draws ten times as many.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def wide_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give captured output room for long temporary paths; tests of narrow output set their own width."""
    monkeypatch.setenv("COLUMNS", "200")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write the snapshots anew instead of comparing with them")


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Whether snapshots are to be written anew."""
    return bool(request.config.getoption("--update"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("torch", "torch_pruning") if find_spec(name) is None]
    if missing:
        reason = f"needs the `dev` extra: {', '.join(missing)} not installed"
        for item in items:
            if item.get_closest_marker("dev"):
                item.add_marker(pytest.mark.skip(reason=reason))

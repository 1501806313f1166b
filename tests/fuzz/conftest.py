"""Counts what became of the cases, and finds the helpers of other tests."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "data"))  # clip_files
import guard  # noqa: E402

COLUMNS = ("cases", "refused in one line", "read with right values", "read as other")


@pytest.fixture(scope="session")
def counts(request):
    """By group, how often each thing happened."""
    return request.config.stash.setdefault(KEY, {})


@pytest.fixture(scope="module", autouse=True)
def listening():
    """Hears who asks the network; the tests of other folders ask servers of theirs."""
    with guard.listening():
        yield


KEY = pytest.StashKey[dict]()


def pytest_terminal_summary(terminalreporter, config):
    """A table; processes of pytest-xdist have none."""
    found = config.stash.get(KEY, {})
    if not found:
        return
    terminalreporter.section("hostile cases")
    width = max(map(len, found)) + 2
    terminalreporter.write_line("group".ljust(width) + "  ".join(COLUMNS))
    total = [sum(row[name] for row in found.values()) for name in COLUMNS]
    for group, row in [*found.items(), ("all", dict(zip(COLUMNS, total, strict=True)))]:
        cells = [str(row[name]).rjust(len(name)) for name in COLUMNS]
        terminalreporter.write_line(group.ljust(width) + "  ".join(cells))

"""What every test starts from: an importable checkout, one torch thread, and the same examples on every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.checkout import install_finder
from tests.crew import Crew
from tests.programs import told_of
from tests.terminal import Terminal

install_finder()

# More threads change the order of floating-point sums, and slow down arrays of this size.
torch.set_num_threads(1)

# HYPOTHESIS_PROFILE=explore looks for examples that nobody has seen yet.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which programs were missed, and so which tests say nothing."""
    if (told := told_of(terminalreporter.stats.get("skipped", []))) is not None:
        terminalreporter.write_line(told, yellow=True)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Let torch.compile have traced nothing before the test, and leave nothing of it behind."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell in the test's folder, in a terminal of 80 columns; the test is marked with `needs_tmux`."""
    it = Terminal(tmp_path)
    yield it
    it.close()


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Processes that stay for all tests of several ranks: to start one takes longer than most tests."""
    crew = Crew()
    yield crew
    crew.dismiss()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Let every test start from the same random stream, whichever tests ran before it."""
    torch.manual_seed(0)

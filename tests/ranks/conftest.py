from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crew import Crew


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Processes that stay for all tests of ranks: to start one takes longer than most tests."""
    crew = Crew()
    yield crew
    crew.dismiss()

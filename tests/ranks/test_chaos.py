"""A few of the runs of `make chaos-ranks`, and all hundred of them as a slow test."""

from __future__ import annotations

import pytest

from tests.crew import Crew
from tests.ranks.chaos import run


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_whatever_goes_wrong_on_a_rank_none_hangs(crew: Crew, seed: int) -> None:
    run(crew, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_a_hundred_runs_of_two_to_four_ranks_come_to_their_end(crew: Crew, seed: int) -> None:
    run(crew, seed)

"""Codes that began where few latents are: idle at one reading after the other, and others would do far better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from collapse_guard.diagnosis import Facts, Mark, diagnose
from collapse_guard.policies import Cause, Reading
from tests.diagnosis.case import facts_of

K, D = 32, 4
READING = Reading(
    step=60,
    codebook="vq",
    K=K,
    D=D,
    tokens=1024,
    perplexity=6.0,
    ceiling=31.0,
    perplexity_ratio=0.2,
    usage=0.5,
    dead_fraction=0.5,
    top_share=0.3,
)


def half_idle(first: int) -> Tensor:
    dead = torch.ones(K, dtype=torch.bool)
    dead[first : first + K // 2] = False
    return dead


def case(table: Tensor, dead: Sequence[Tensor], *, versions: Sequence[int] = (0, 0, 0, 0)) -> Facts:
    latents = torch.randn(1024, D, generator=torch.Generator().manual_seed(1))
    marks = [
        Mark(step=30 + 10 * place, codes=table, dead=each, version=version)
        for place, (each, version) in enumerate(zip(dead, versions, strict=False))
    ]
    return facts_of(READING, latents, table=table, marks=marks)


def confidence(facts: Facts) -> float:
    return {each.cause: each.confidence for each in diagnose(facts)}.get(Cause.UNFITTED_CODEBOOK, 0.0)


CORNER = 1.5 + 0.1 * torch.randn(K, D, generator=torch.Generator().manual_seed(2))
AMONG = torch.randn(K, D, generator=torch.Generator().manual_seed(3))
IDLE = [half_idle(0)] * 4


def test_codes_in_a_corner_that_stay_idle_are_unfitted_and_the_numbers_are_told() -> None:
    (found,) = [each for each in diagnose(case(CORNER, IDLE)) if each.cause is Cause.UNFITTED_CODEBOOK]
    assert found.confidence == pytest.approx(0.9)
    assert found.evidence["idle_throughout"] == 0.5
    assert found.evidence["error_if_fitted"] < 0.3
    assert "50% of the codes were idle at each of 4 readings, and 32 codes fitted to older latents" in found.says


def test_codes_that_have_their_turns_lie_among_the_latents_or_were_written_since_are_not() -> None:
    in_turns = [half_idle(0), half_idle(16)] * 2
    written = case(CORNER, IDLE, versions=(0, 0, 1, 1))
    assert [confidence(each) for each in (case(CORNER, in_turns), case(AMONG, IDLE), written)] == [0.0, 0.0, 0.0]


def test_codes_that_were_in_use_before_have_their_turns_whatever_the_last_readings_show() -> None:
    """Readings may meet data that come in turns at the same place each time."""
    even = replace(case(CORNER, IDLE), uses=torch.full((K,), 100))
    never = replace(case(CORNER, IDLE), uses=torch.where(half_idle(0), 3, 100))
    assert [confidence(even), confidence(never)] == [0.0, pytest.approx(0.9)]


def test_latents_on_the_move_are_no_better_served_by_codes_fitted_to_older_ones() -> None:
    facts = case(CORNER, IDLE)
    moving = facts.latents + torch.linspace(0, 30, len(facts.latents)).unsqueeze(-1)
    assert confidence(replace(facts, latents=moving, table=CORNER + 25)) == 0.0


def test_idle_codes_that_others_would_replace_to_advantage_lack_no_tokens() -> None:
    causes = [each.cause for each in diagnose(case(CORNER, IDLE))]
    assert Cause.STARVATION not in causes

"""Codes that have run away are longer than any latents; codes as long as the latents that are no padding have not."""

from __future__ import annotations

import torch
from torch import Tensor

from collapse_guard.diagnosis import Mark
from collapse_guard.diagnosis.codebook import runaway
from tests.diagnosis.case import facts_of
from tests.policies.series import reading

K, D = 64, 4


def test_codes_as_long_as_the_latents_beside_short_padding_have_not_run_away() -> None:
    """The median latent is padding of norm 0.2 either way; codes of norm 2 are as long as the others, or ten times."""
    directions = torch.nn.functional.normalize(torch.randn(200, D, generator=torch.Generator().manual_seed(0)), dim=-1)
    lengths = torch.full((200, 1), 0.2)
    assert _confidence(directions * lengths) > 0.9
    lengths[140:] = 2.0
    assert _confidence(directions * lengths) == 0


def _confidence(latents: Tensor) -> float:
    """Return how sure it is of a runaway of codes that grew from norm 0.2 to 2 while the latents stayed."""
    table = 2 * torch.nn.functional.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(1)), dim=-1)
    power = latents.square().sum(dim=-1)
    mean = latents.mean(dim=0)
    variance = (latents - mean).square().sum(dim=-1).mean()
    sums = torch.cat([torch.stack([power.sqrt().median(), variance, power.mean()]), mean])
    marks = [Mark(step=10, codes=table / 10, latents=sums), Mark(step=120, codes=table, latents=sums)]
    fields = {"ceiling": 64.0, "perplexity_ratio": 0.1, "top_share": 0.7, "relative_error": None}
    found = runaway(facts_of(reading(120, 6.0, "0", K=K, D=D, **fields), latents, table=table, marks=marks))
    return found.confidence if found is not None else 0.0

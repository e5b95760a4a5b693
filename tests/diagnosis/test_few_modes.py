"""Data of few modes is told from a codebook that leaves most of its codes idle."""

from __future__ import annotations

from dataclasses import replace

import torch

from collapse_guard.diagnosis.tokens import few_modes
from collapse_guard.policies import Reading
from tests.diagnosis.case import facts_of

READING = Reading(
    step=10,
    codebook="0",
    K=64,
    D=4,
    tokens=256,
    perplexity=8.0,
    ceiling=64.0,
    perplexity_ratio=0.12,
    usage=0.12,
    dead_fraction=0.88,
    top_share=0.15,
    relative_error=0.016,
)


def test_few_codes_along_a_line_of_many_values_are_no_few_modes() -> None:
    """Eight codes leave 1 % of such latents' variance, and that is still many times what more codes would leave."""
    line = torch.linspace(-1, 1, 256).unsqueeze(1) * torch.ones(4)
    assert _confidence(line) == 0
    assert _confidence(line[::32].repeat(32, 1)) > 0.9  # of eight values eight codes are enough, however old they are


def test_where_codes_in_use_are_as_many_as_kmeans_is_asked_for_only_few_values_are_few_modes() -> None:
    """With 78 codes in use k-means with 64 says nothing: the same codes serve 256 values badly, and 64 well."""
    reading = replace(
        READING, K=1024, perplexity=78.0, ceiling=226.0, perplexity_ratio=0.35, usage=0.1, relative_error=0.028
    )
    values = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    assert _confidence(values, reading) == 0
    assert _confidence(values[:64].repeat(4, 1), reading) > 0.9


def test_a_forward_too_small_to_show_its_modes_shows_no_few_modes() -> None:
    """128 latents of 1024 modes are about as many values as there are codes in use; that says nothing of the others."""
    reading = replace(
        READING, K=1024, perplexity=105.0, ceiling=644.0, perplexity_ratio=0.16, usage=0.13, relative_error=0.013
    )
    values = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    assert _confidence(values[:128], reading) == 0
    assert _confidence(values[:64].repeat(4, 1), reading) > 0.9


def test_codes_that_trail_their_modes_are_few_modes_and_codes_that_mix_them_are_not() -> None:
    """A sixth of the variance is left either way: by codes that lie beside their latents, or serve two modes each."""
    modes = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    trailing, own = replace(READING, relative_error=0.17), torch.arange(8).repeat(32)
    assert _confidence(modes.repeat(32, 1), trailing, own) > 0.9
    assert _confidence(modes.repeat(32, 1), trailing, own // 2) == 0
    far = replace(trailing, relative_error=0.6)
    assert _confidence(modes.repeat(32, 1), far, own) == 0


def test_codes_of_one_latent_each_do_not_show_that_the_latents_have_few_modes() -> None:
    """Every code lies at the mean of its only latent: nothing is left, whatever the latents are."""
    values = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    reading = replace(READING, K=1024, perplexity=250.0, usage=0.25, relative_error=0.17)
    assert _confidence(values, reading, torch.arange(256)) == 0
    assert _confidence(values, reading, torch.arange(256).clamp(min=6)) == 0


def _confidence(latents: torch.Tensor, reading: Reading = READING, codes: torch.Tensor | None = None) -> float:
    """Return how sure it is of few modes, of 256 latents that one forward showed, on one code where not told otherwise.

    On one code they show nothing of how the codes part them: then `reading.relative_error` says what these leave.
    """
    found = few_modes(facts_of(reading, latents, codes=codes))
    return found.confidence if found is not None else 0.0

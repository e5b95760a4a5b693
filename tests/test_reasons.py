"""The sentence that names the cause: what the numbers show, and nothing that they do not."""

from __future__ import annotations

from typing import Any

import pytest

from collapse_guard import Reading
from collapse_guard.reasons import explain

HEALTHY: dict[str, Any] = {
    "step": 10, "codebook": "vq", "K": 256, "D": 64, "tokens": 640, "perplexity": 90.0, "ceiling": 205.0,
    "perplexity_ratio": 0.44, "usage": 0.6, "dead_fraction": 0.4, "top_share": 0.03, "norm_ratio": 1.0,
    "latent_variance": 0.8, "finite_fraction": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "no single number of this reading stands out"),
        ({"finite_fraction": 0.75, "norm_ratio": 178.0}, "25.0% of the latents are NaN or Inf"),
        ({"latent_variance": 0.0, "norm_ratio": 178.0}, "the latents themselves have collapsed"),
        ({"norm_ratio": 178.4}, "code norms are 178 times the latents' norm"),
        ({"norm_ratio": 0.01}, "codes are 100 times shorter than the latents"),
        ({"norm_ratio": 0.0}, "codes are zero: all of them lie near the origin"),
        ({"norm_ratio": 5.4, "top_share": 0.98}, "one code takes 98% of 640 tokens; code norms are 5.4 times"),
        ({"dead_fraction": 0.9}, "90% of the codes are dead in a window of 640 tokens"),
        ({"reshaped": 1, "dead_fraction": 0.9}, "each latent is a run of positions"),
        ({"reshaped": 0}, "no single number"),
        ({"moment_ratio": 2.5}, "no single number"),
        ({"moment_ratio": 110.2}, "Adam remembers gradients 110 times as large as those it is shown now"),
        ({"moment_ratio": 110.2, "dead_fraction": 0.9}, "90% of the codes are dead"),
        ({"norm_ratio": None, "finite_fraction": None, "latent_variance": None}, "no single number"),
    ],
)
def test_the_most_telling_number_is_named(numbers: dict[str, Any], expected: str) -> None:
    assert expected in explain(Reading(**(HEALTHY | numbers)))

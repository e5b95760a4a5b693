"""Data of few modes is told from a codebook that leaves most of its codes idle."""

from __future__ import annotations

import numpy as np
import torch

from collapse_guard.adapters import discover
from collapse_guard.diagnosis import Facts
from collapse_guard.diagnosis.memory import Mark
from collapse_guard.diagnosis.tokens import few_modes
from collapse_guard.policies import Reading
from tests.quantizers import Plain

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
    view = next(iter(discover(torch.nn.Sequential(Plain(K=64, D=4))).views))
    line = torch.linspace(-1, 1, 256).unsqueeze(1) * torch.ones(4)

    def confidence(latents: torch.Tensor) -> float:
        facts = Facts(
            view=view,
            reading=READING,
            counts=np.zeros(64, dtype=np.int64),
            table=view.codebook(),
            latents=latents,
            codes=torch.zeros(256, dtype=torch.int64),
            forwards=torch.zeros(256, dtype=torch.int64),
            marks=[Mark(step=0, codes=view.codebook())],
        )
        found = few_modes(facts)
        return found.confidence if found is not None else 0.0

    assert confidence(line) == 0
    assert confidence(line[::32].repeat(32, 1)) > 0.9  # of eight values eight codes are enough, however old they are

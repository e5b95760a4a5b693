"""What the tests of single examiners share: the facts of one case, from what the test is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from collapse_guard.adapters import discover
from collapse_guard.diagnosis import Facts, Mark
from collapse_guard.policies import Reading
from tests.quantizers import Plain


def facts_of(
    reading: Reading,
    latents: Tensor,
    *,
    table: Tensor | None = None,
    codes: Tensor | None = None,
    marks: Sequence[Mark] = (),
) -> Facts:
    """The facts of a plain codebook every code of which was used once in the reading's window.

    Args:
        reading: names K and D.
        latents: (n, D), of one forward.
        table: (K, D), as the quantizer made it where not given.
        codes: (n,) of the latents, the first code where not given.
        marks: one of the table, at the reading's step, where not given.
    """
    view = discover(nn.Sequential(Plain(K=reading.K, D=reading.D))).views[0]
    table = view.codebook() if table is None else table
    zeros = torch.zeros(len(latents), dtype=torch.int64)
    return Facts(
        view=view,
        reading=reading,
        counts=np.ones(reading.K, dtype=np.int64),
        table=table,
        latents=latents,
        codes=zeros if codes is None else codes,
        forwards=zeros,
        marks=marks or [Mark(step=reading.step, codes=table)],
    )

"""What every rank would keep, brought to the first rank, whose state is the one that is saved."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .group import Alone

__all__ = ["bring_together"]


def bring_together(ranks: Alone, kept: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return on the first rank what each rank keeps, by rank; elsewhere nothing.

    Args:
        ranks: all enter.
        kept: returns what this rank keeps, plain data and tensors.

    Raises:
        OtherRankError: a rank could not say what it keeps.
    """

    def pack() -> Tensor:
        buffer = io.BytesIO()
        torch.save(dict(kept()), buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    packed = ranks.collect(ranks.together(pack))
    return [torch.load(io.BytesIO(bytes(each.numpy())), weights_only=True) for each in packed]

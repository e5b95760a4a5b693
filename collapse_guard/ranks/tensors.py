"""Tensors of one codebook on several ranks: whether they are equal, and how they are made so."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .group import Alone, OtherRankError

__all__ = ["fingerprint", "share"]

_BITS = 48  # fit into a float64, as which they travel
_ODD = 0x9E3779B97F4A7C1  # any large odd number spreads the weights over all bits


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """Return 48 bits that tell tensors apart which differ in any bit, as one int64 on the device.

    A sum of the elements' bits, weighted by odd numbers that depend on their place, modulo 2**48: one element that
    differs always changes it, several do unless their weighted differences cancel.
    """
    whole = tensor.detach().contiguous().flatten()
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = whole.view(kinds[whole.element_size()]).long()
    weights = torch.arange(len(bits), device=bits.device) * (2 * _ODD) + 1
    return (bits * weights).sum() & ((1 << _BITS) - 1)


@torch.no_grad()
def share(ranks: Alone, tensors: Mapping[str, Tensor]) -> None:
    """Make tensors what they are on the first rank, in place, and look afterwards whether they are.

    Args:
        ranks: all enter.
        tensors: by name. What another rank has not, such as a moment that an optimizer keeps on one rank alone, stays
            as it is.

    Raises:
        OtherRankError: they still differ; says which.
    """
    if ranks.size == 1:
        return
    mine = {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()}
    theirs = [json.loads(each) for each in ranks.words(json.dumps(mine))]
    common = [name for name, form in mine.items() if all(each.get(name) == form for each in theirs)]
    common = [name for name in theirs[0] if name in common]
    for name in common:
        first = ranks.spread(tensors[name].detach().to("cpu", copy=True).contiguous())
        tensors[name].copy_(first)
    prints = ranks.gather(torch.stack([fingerprint(tensors[name]).cpu() for name in common])) if common else []
    for place, name in enumerate(common):
        if len({int(each[place]) for each in prints}) > 1:
            raise _differing(name, [int(each[place]) for each in prints])


def _differing(name: str, prints: list[int]) -> OtherRankError:
    rank = next(rank for rank, each in enumerate(prints) if each != prints[0])
    return OtherRankError(f"rank {rank}: its {name} differs from that of rank 0 after it was written")

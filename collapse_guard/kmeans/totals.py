"""Sums by code, the same bit for bit on every run.

A GPU adds what falls on one place in whatever order its threads arrive, and floating-point sums depend on the order.
Integers do not: there, values are turned into whole multiples of a step so small that nothing is lost which a float32
sum would keep. On the CPU one thread adds them up in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["totals"]

_AT_ONCE = 1 << 24  # numbers turned into integers at a time: 128 MiB


@torch.no_grad()
def totals(values: Tensor, codes: Tensor, K: int) -> Tensor:
    """Add up values by code; asks the device nothing.

    Args:
        values: (n,) or (n, D) finite float32.
        codes: (n,) int64, from 0 to K - 1.
        K: number of codes.

    Returns:
        (K,) or (K, D) float32.

    >>> totals(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 3).tolist()
    [5.0, 0.0, 2.0]
    """
    if values.device.type == "mps":  # which has no float64
        return totals(values.cpu(), codes.cpu(), K).to(values.device)
    if values.device.type != "cpu":
        return whole_totals(values, codes, K)
    return torch.zeros(K, *values.shape[1:]).index_add_(0, codes, values)


def whole_totals(values: Tensor, codes: Tensor, K: int) -> Tensor:
    """Do what `totals` does, in integers.

    With n values the step is 2^-(62 - bits of n) of the power of two above the largest, at least 2^-42 of it for a
    million values: their sum fits into 63 bits.
    """
    sums = torch.zeros(K, *values.shape[1:], dtype=torch.float64, device=values.device)
    rows = max(1, _AT_ONCE // max(values[:1].numel(), 1))
    for start in range(0, len(values), rows):
        part = values[start : start + rows].double()
        largest = torch.frexp(part.abs().amax()).exponent
        per_unit = torch.exp2((62 - len(part).bit_length() - largest).double())
        whole = (part * per_unit).round().long()
        added = torch.zeros(sums.shape, dtype=torch.int64, device=values.device)
        sums += added.index_add_(0, codes[start : start + rows], whole).double() / per_unit
    return sums.float()

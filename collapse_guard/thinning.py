"""Which rows of a ring to take so that every token is as likely to be among them as any other.

Of a large forward a small share of the latents is kept, of a small one all. Where forwards differ in size, a row of
the small one would stand for fewer tokens than one of the large one; so it is taken less often, in inverse proportion
(Horvitz and Thompson, "A generalization of sampling without replacement from a finite universe", 1952, the other way
round). Nothing here draws at random or waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evenly_among", "fair_rows"]

_GOLDEN = 2_654_435_769  # 2**32 over the golden ratio
_ROOT = 1_779_033_703  # 2**32 times the fraction of the square root of two
_TURNS = 0x7FFF_FFFF


def fair_rows(shares: Tensor, valid: Tensor, turns: Tensor, seed: int) -> Tensor:
    """Return (n,) bool: which rows to take.

    Args:
        shares: (n,) what share of its forward's latents was kept, in (0, 1].
        valid: (n,) bool, which are tokens.
        turns: (n,) int64, the how-many-th latent each was. Multiples of the golden ratio modulo 1 are spread evenly
            over any run of turns and any regular part of them (Weyl, "Über die Gleichverteilung von Zahlen mod. Eins",
            1916), and stand for a draw.
        seed: where in that row it begins.
    """
    least = torch.where(valid, shares, torch.inf).amin() if len(shares) else shares.sum()
    begin = seed * _ROOT % 2**32
    lots = ((((turns & _TURNS) * _GOLDEN + begin) % 2**32) >> 8).float() / 2**24  # exact, hence below 1
    return lots < least / shares


def evenly_among(taken: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return `most` indices spread evenly over those that are taken, (most,) int64, and which of them stand, (most,).

    Where fewer than `most` are taken, these come first and the rest does not stand.
    """
    order = taken.logical_not().byte().argsort(stable=True)
    count, places = taken.sum(), torch.arange(most, device=taken.device)
    return order[torch.where(count >= most, places * count // max(most, 1), places)], places < count

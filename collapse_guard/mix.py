"""A mix: positions of a sample taken for features, where a reshape stands in place of a permutation, and its undoing.

Of (B, T, D) vectors brought to (B, D, T) and then reshaped to (B, T, D), each row is a run of D positions of one
channel. No number is lost: the same numbers stand in another order, so that the vectors can be had back.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Mix"]


@dataclass(frozen=True, slots=True)
class Mix:
    """How positions were taken for features.

    Attributes:
        channels_first: whether the vectors lay with their channels first, (B, D, T), when they were reshaped to
            (B, T, D); else they lay as (B, T, D) and were reshaped to (B, D, T).
        positions: T, of one sample.
        is_told: whether the shape of the quantizer's input says which positions are of one sample.
        is_alone: whether the quantizer is given nothing else beside, such as a mask.

    >>> import torch
    >>> right = torch.arange(12.0).reshape(1, 4, 3)
    >>> wrong = right.transpose(1, 2).reshape(1, 4, 3)
    >>> mix = Mix(channels_first=True, positions=4)
    >>> torch.equal(mix.taken_back(wrong), right), torch.equal(mix.made(right), wrong)
    (True, True)
    """

    channels_first: bool
    positions: int
    is_told: bool = True
    is_alone: bool = True

    def taken_back(self, tokens: Tensor) -> Tensor:
        """Return the vectors, (B, T, D) position by position, of what they were mixed to, (B, T, D)."""
        return _divided(tokens) if self.channels_first else _joined(tokens)

    def made(self, tokens: Tensor) -> Tensor:
        """Return what (B, T, D) vectors are mixed to, (B, T, D): the inverse of `taken_back`."""
        return _joined(tokens) if self.channels_first else _divided(tokens)


def _divided(tokens: Tensor) -> Tensor:
    B, T, D = tokens.shape
    return tokens.reshape(B, D, T).transpose(1, 2)


def _joined(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape)

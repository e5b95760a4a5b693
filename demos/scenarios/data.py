"""What the scenarios train on: batches of token sequences (B, T, F) with known structure, drawn from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FEATURES", "Blobs", "Padded", "Sheet", "Shifted", "Sorted", "Source"]

FEATURES = 24

Draw = Callable[[int], Tensor]
"""Step -> one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Base of the data; a source is opened once for each run.

    Attributes:
        sequences, length: B and T of a batch.
    """

    sequences: int = 16
    length: int = 16

    def open(self, generator: torch.Generator) -> Draw:
        """Return what draws batches."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs(Source):
    """Normal points around a few centres.

    Attributes:
        modes: centres. noise: standard deviation around them; that of the centres is 1.
    """

    modes: int = 64
    noise: float = 0.3

    def open(self, generator: torch.Generator) -> Draw:
        """Fix the centres."""
        centres = torch.randn(self.modes, FEATURES, generator=generator)

        def draw(step: int) -> Tensor:
            picked = torch.randint(self.modes, (self.sequences, self.length), generator=generator)
            noise = torch.randn(self.sequences, self.length, FEATURES, generator=generator)
            return centres[picked] + self.noise * noise

        return draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet(Source):
    """A curved sheet without modes: more codes always serve it better.

    Attributes:
        dimension: of the sheet. first: how far the places of the first batch spread, beside those of all others.
    """

    dimension: int = 6
    first: float = 1.0

    def open(self, generator: torch.Generator) -> Draw:
        """Fix the embedding."""
        into = torch.randn(self.dimension, FEATURES, generator=generator) / math.sqrt(self.dimension)

        def draw(step: int) -> Tensor:
            place = torch.randn(self.sequences, self.length, self.dimension, generator=generator)
            if step == 0:
                place *= self.first
            return torch.sin(1.5 * place @ into) + place @ into.roll(5, dims=1)

        return draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded(Source):
    """Another source with the end of each sequence set to zeros.

    Attributes:
        share: of positions that are padding.
    """

    share: float = 0.7

    def open(self, generator: torch.Generator) -> Draw:
        """Open what is padded."""
        inner = Sheet(sequences=self.sequences, length=self.length).open(generator)
        kept = round(self.length * (1 - self.share))

        def draw(step: int) -> Tensor:
            batch = inner(step)
            batch[:, kept:] = 0
            return batch

        return draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted(Source):
    """Blobs whose batches hold few classes each, one after another.

    Attributes:
        modes: centres. at_once: of a batch.
    """

    modes: int = 64
    at_once: int = 16

    def open(self, generator: torch.Generator) -> Draw:
        """Fix the centres."""
        centres = torch.randn(self.modes, FEATURES, generator=generator)

        def draw(step: int) -> Tensor:
            first = step * self.at_once // 2 % self.modes
            picked = torch.randint(self.at_once, (self.sequences, self.length), generator=generator)
            noise = torch.randn(self.sequences, self.length, FEATURES, generator=generator)
            return centres[(first + picked) % self.modes] + 0.3 * noise

        return draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted(Source):
    """A sheet that moves on, slowly enough to follow.

    Attributes:
        begin, end: steps between which it moves. distance: how far, in standard deviations of a feature.
    """

    begin: int = 40
    end: int = 100
    distance: float = 1.0

    def open(self, generator: torch.Generator) -> Draw:
        """Open what moves."""
        inner = Sheet(sequences=self.sequences, length=self.length).open(generator)
        direction = torch.randn(FEATURES, generator=generator)

        def draw(step: int) -> Tensor:
            share = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
            return inner(step) + share * self.distance * direction

        return draw

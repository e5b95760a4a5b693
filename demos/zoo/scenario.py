"""What a scenario is: data, model, quantizer, what goes wrong, and when; a small declarative entry.

A scenario is trained with its cause, and as the healthy twin, which has none and, where its package offers one, a
replacement of dead codes; and `sound`, with neither: what a run is like that nothing happens to, good or bad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .data import Data, load
from .models import Coder
from .split import is_held_out

__all__ = ["KMEANS", "OWN", "Run", "Scenario", "any_items"]


_REPLACEMENT = "threshold_ema_dead_code"  # vector-quantize-pytorch and encodec call it alike; 0: no replacement
KMEANS: Mapping[str, Any] = {"kmeans_init": True}
"""A start from the latents, as both packages call it."""
OWN: Mapping[str, Any] = {**KMEANS, _REPLACEMENT: 0.2}
"""The packages' own prevention: what their users are told to switch on against collapse."""


@dataclass(slots=True)
class Run:
    """One training run, as the functions of a scenario see it.

    Attributes:
        model: what is trained. data: what it is trained on.
        optimizer: of the model. draws: the run's own stream of random numbers, the same for every arm of a seed.
        lr: the scenario's learning rate.
        spoiled: share of the next batch's items that are no numbers.
    """

    model: Coder
    data: Data
    optimizer: Optimizer
    draws: torch.Generator
    lr: float
    spoiled: float = 0.0


def any_items(run: Run, step: int, size: int) -> Tensor:
    """Draw training items at random."""
    return run.data.train[torch.randint(len(run.data.train), (size,), generator=run.draws)]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One entry of the zoo.

    Attributes:
        name: short, with hyphens. says: what goes wrong, or what is odd and right, in one line.
        is_collapse: whether its cause makes a codebook collapse; otherwise it is a healthy control.
        data: a name for `load`. family: of the quantizer. K, D: of its codebooks, 1 or more.
        tokens: that the encoder makes of each vector. batch: items a step. steps: of the run. lr: of Adam.
        onset: the step from which the cause is there; 0 for from the start.
        options: of the quantizer. healthy: what the twin has instead. own: what the arm of the package's own prevention
            has instead; `None` where the package has none.
        model: further arguments of `Coder`; `healthy_model`: what the twin has instead.
        start: prepares the model that has the cause. healthy_start: prepares the twin.
        disturb: called before each step from `onset` on; the cause, where it strikes in the middle.
        routine: called before each step in every arm, the twin's too: what is no cause.
        draw: (run, step, size) -> items (size, t, width) of a step.
        is_padded: whether only 2 to 6 vectors of an item are real; the quantizer is told which by the twin alone.
        is_pretrained: whether encoder and decoder have learned to work without a quantizer before. The latents of an
            untrained encoder move so much at first that few codebooks keep up, whatever else is wrong or right.
        has_adversary: whether a discriminator with an optimizer of its own looks at what is decoded.
        is_fresh: whether it was added when the policy had been tuned, and has not been tuned on.
    """

    name: str
    says: str
    is_collapse: bool = True
    data: str = "patches"
    family: str = "vq"
    K: int = 128
    D: int = 8
    tokens: int = 1
    batch: int = 256
    steps: int = 800
    lr: float = 1e-3
    onset: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    healthy: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    healthy_model: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[Run], None] | None = None
    healthy_start: Callable[[Run], None] | None = None
    disturb: Callable[[Run, int], None] | None = None
    routine: Callable[[Run, int], None] | None = None
    draw: Callable[[Run, int, int], Tensor] = any_items
    is_padded: bool = False
    is_pretrained: bool = True
    has_adversary: bool = False
    is_fresh: bool = False

    @property
    def part(self) -> str:
        """The part of the zoo that it belongs to: `tuned`, `held out` or `fresh`."""
        return "fresh" if self.is_fresh else "held out" if is_held_out(self.name) else "tuned"

    def load(self) -> Data:
        """Return its data."""
        return load(self.data)

    def model_of(self, *, has_cause: bool) -> dict[str, Any]:
        """Return further arguments of `Coder`, with the cause or without."""
        return {**self.model, **({} if has_cause else self.healthy_model)}

    def start_of(self, *, has_cause: bool) -> Callable[[Run], None] | None:
        """Return what prepares the model, with the cause or without."""
        return self.start if has_cause else self.healthy_start

    def options_of(self, variant: str) -> dict[str, Any]:
        """Return the quantizer's options in a variant: `cause`, `twin`, `sound` or `own`.

        Raises:
            ValueError: `own` of a package that has no prevention.
        """
        if variant in ("twin", "sound"):
            options = {**self.options, **self.healthy}
            if variant == "sound" and _REPLACEMENT in options:
                options[_REPLACEMENT] = 0
            return options
        elif variant == "own":
            if self.own is None:
                raise ValueError(f"{self.name}: the quantizer has no prevention of its own")
            return {**self.options, **self.own}
        return dict(self.options)

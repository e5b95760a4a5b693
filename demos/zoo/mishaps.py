"""Further things that go wrong in the zoo: how codes are placed, what a resume brings back, and how fast codes move.

As in `causes`, each is a function of a run, and passes by a quantizer that has nothing of the kind.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from .causes import Disturbance, Draw, Start, learnable, start_from_latents
from .scenario import Run, any_items

__all__ = [
    "class_then_all",
    "enlarge",
    "flat_first",
    "hasten",
    "heat",
    "multiply_counts",
    "restart_warm",
    "reverse_levels",
    "turn",
]


def _averages(run: Run) -> Any:
    """Return the inner codebook of vector-quantize-pytorch or encodec; `None` where another quantizer stands."""
    return getattr(run.model.bottleneck.quantizer, "_codebook", None)


def enlarge(learned: int) -> Start:
    """Return a start of a learnable codebook: so many codes on latents, and copies of them for all others.

    Of equal codes the first one takes all tokens, so that the copies are not trained either.
    """

    def start(run: Run) -> None:
        start_from_latents(run)
        table = cast(Tensor, learnable(run)).data
        table.copy_(table[torch.arange(len(table)) % learned].clone())

    return start


def heat(factor: float) -> Start:
    """Return a start on latents, after which a learnable codebook has `factor` times the learning rate of the rest."""

    def start(run: Run) -> None:
        start_from_latents(run)
        table, (group,) = learnable(run), run.optimizer.param_groups
        group["params"] = [each for each in group["params"] if each is not table]
        run.optimizer.add_param_group({"params": [table], "lr": factor * run.lr})

    return start


def multiply_counts(factor: float, *, at: int) -> Disturbance:
    """Return a disturbance: at one step the EMA counts become `factor` times as large, and the EMA sums do not."""

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        averages = _averages(run)
        if step == at and averages is not None:
            averages.cluster_size.mul_(factor)

    return disturb


def hasten(decay: float, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on the EMA has another decay."""

    def disturb(run: Run, step: int) -> None:
        averages = _averages(run)
        if step == at and averages is not None:
            averages.decay = decay

    return disturb


def reverse_levels(*, at: int) -> Disturbance:
    """Return a disturbance: at one step the levels of a residual get one another's state, the first the last's."""

    def disturb(run: Run, step: int) -> None:
        if step == at:
            levels = cast(nn.ModuleList, run.model.bottleneck.quantizer.layers)
            states = [{name: value.clone() for name, value in level.state_dict().items()} for level in levels]
            for level, state in zip(levels, reversed(states), strict=True):
                level.load_state_dict(state)

    return disturb


def turn(*, at: int) -> Disturbance:
    """Return a disturbance: at one step the latents are turned about the origin, and the decoder takes them for it.

    Without a quantizer between them, encoder and decoder would compute what they did before.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        if step == at:
            last, first = cast(nn.Linear, run.model.encoder[-1]), cast(nn.Linear, run.model.decoder[0])
            D = run.model.D
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            axes = torch.linalg.qr(torch.randn(D, D, generator=draws))[0]
            turned = torch.block_diag(*[axes] * (len(last.bias) // D))
            last.weight.copy_(turned @ last.weight)
            last.bias.copy_(turned @ last.bias)
            first.weight.copy_(first.weight @ turned.T)

    return disturb


def class_then_all(*, at: int, until: int) -> Draw:
    """Return a draw at random, but for some steps of the first class alone."""

    def draw(run: Run, step: int, size: int) -> Tensor:
        if not at <= step < until:
            return any_items(run, step, size)
        members = torch.nonzero(run.data.groups == 0).flatten()
        return run.data.train[members[torch.randint(len(members), (size,), generator=run.draws)]]

    return draw


def flat_first(*, until: int) -> Draw:
    """Return a draw of flat items, four times as many drawn and the flattest kept, that ends as one of all items."""

    def draw(run: Run, step: int, size: int) -> Tensor:
        share = min(0.25 + 0.75 * step / until, 1.0)
        drawn = any_items(run, step, int(size / share))
        return drawn[drawn.var(dim=(1, 2)).argsort()[:size]]

    return draw


def restart_warm(*, every: int) -> Disturbance:
    """Return a routine: the learning rate falls to zero along a cosine and starts anew, as in SGDR.

    Loshchilov and Hutter 2017, section 3.
    """

    def routine(run: Run, step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = run.lr * (1 + math.cos(math.pi * (step % every) / every)) / 2

    return routine

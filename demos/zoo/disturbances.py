"""What strikes a run of the zoo in the middle, and routines that look as if they did: called before each step.

Each passes by a quantizer that has nothing of the kind, as the one that stands in its place in some arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from .scenario import Run
from .starts import averages, learnable, scale_latents, spread_of, write_codes

__all__ = [
    "Disturbance",
    "average_replicas",
    "batch_of_nan",
    "drift",
    "forget_encoder",
    "hasten",
    "jump",
    "lose_codes",
    "lose_counts",
    "lose_level",
    "lose_second_moments",
    "multiply_counts",
    "passed_by_at_first",
    "rescale",
    "restart_alike",
    "restart_decay",
    "restart_warm",
    "reverse_levels",
    "shrink",
    "turn",
    "unscaled_shard",
]

Disturbance = Callable[[Run, int], None]
_COUNTED = 2048  # items by which a home-made restart tells what is used


def jump(*, at: int, steps: int, factor: float) -> Disturbance:
    """Return a disturbance: a learning rate `factor` times as high for some steps."""

    def disturb(run: Run, step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = run.lr * (factor if at <= step < at + steps else 1.0)

    return disturb


def drift(per_step: float, *, until: int) -> Disturbance:
    """Return a disturbance: the latents wander off in one direction by so much in each step before one.

    It has to end: while latents wander the decoder is behind as well, and no codebook can make up for that.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        if step < until:
            bias: Tensor = run.model.encoder[-1].bias  # type: ignore[assignment]
            bias += per_step

    return disturb


def rescale(factor: float, *, at: int) -> Disturbance:
    """Return a disturbance: at one step the latents become `factor` times as large, and the decoder takes them for it.

    Without a quantizer between them, encoder and decoder would compute what they did before.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            scale_latents(run, factor)

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


def forget_encoder(*, at: int) -> Disturbance:
    """Return a disturbance: at one step the encoder starts anew, within the bounds that torch gives a linear layer.

    So it is where a checkpoint calls its weights by another name and is loaded with `strict=False`. Codebook, decoder
    and optimizer stay. The untrained encoder puts all items close together, and few codes are there.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        if step == at:
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            for layer in run.model.encoder:
                if isinstance(layer, nn.Linear):
                    for each in (layer.weight, layer.bias):
                        each.copy_((2 * torch.rand(each.shape, generator=draws) - 1) / math.sqrt(layer.in_features))

    return disturb


def lose_codes(*, at: int) -> Disturbance:
    """Return a disturbance: at one step a learnable codebook starts anew within 1/K, as its package sets it up."""

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        table = learnable(run)
        if step == at and table is not None:
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            table.copy_((2 * torch.rand(table.shape, generator=draws) - 1) / len(table))

    return disturb


def shrink(share: float) -> Disturbance:
    """Return a disturbance: each step takes a share of a learnable codebook, as decoupled weight decay does.

    A codebook that is not trained is let alone, as optimizers let it.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        table = learnable(run)
        if table is not None and table.requires_grad:
            table.mul_(1 - share)

    return disturb


def lose_level(level: int, *, at: int) -> Disturbance:
    """Return a disturbance: at one step a level of a residual is overwritten at ten times the latents' spread."""

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        if step == at:
            rows = run.model.latents(run.data.train[:1024]).flatten(0, 1)
            spread = spread_of(rows)
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=draws)
            write_codes(cast(nn.ModuleList, run.model.bottleneck.quantizer.layers)[level], 10.0 * spread * codes)

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


def multiply_counts(factor: float, *, at: int) -> Disturbance:
    """Return a disturbance: at one step the EMA counts become `factor` times as large, and the EMA sums do not."""

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if step == at and inner is not None:
            inner.cluster_size.mul_(factor)

    return disturb


def lose_counts(*, at: int) -> Disturbance:
    """Return a disturbance: at one step the EMA counts begin at zero, as encodec sets them up, and the sums do not."""

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if step == at and inner is not None:
            inner.cluster_size.zero_()

    return disturb


def hasten(decay: float, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on the EMA has another decay."""

    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if step == at and inner is not None:
            inner.decay = decay

    return disturb


def restart_decay(*, at: int, decay: float) -> Disturbance:
    """Return a disturbance: the EMA decay climbs anew from a tenth, (1 + n) / (10 + n) after n steps, to its own value.

    TensorFlow's moving averages start so. Where a resume forgets n, a codebook that is long trained forgets every code
    that has no token in the next few steps: its count falls below what is added against division by zero, and the code
    to zero.
    """

    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if inner is not None:
            inner.decay = min(decay, (1 + step - at) / (10 + step - at))

    return disturb


def average_replicas(number: int, *, at: int) -> Disturbance:
    """Return a disturbance: at one step each EMA code becomes the mean of so many, drawn anew for each of them.

    So do replicas of a codebook that have drifted apart when they are averaged. The counts stay.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if step == at and inner is not None:
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            orders = [torch.randperm(run.model.bottleneck.K, generator=draws) for _ in range(number)]
            inner.embed.copy_(torch.stack([inner.embed[:, order] for order in orders]).mean(dim=0))
            inner.embed_avg.copy_(inner.embed * inner.cluster_size.unsqueeze(-1))

    return disturb


def lose_second_moments(*, at: int) -> Disturbance:
    """Return a disturbance: at one step Adam's second moments are zero; its first ones and its step count go on.

    What divides a step is then far too small, and nothing corrects for it as at the start (Kingma and Ba 2015,
    section 3). A code that has met no token for long has no gradient either: its step has next to nothing below it.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            for state in run.optimizer.state.values():
                state["exp_avg_sq"].zero_()

    return disturb


def restart_alike(*, every: int, until: int) -> Disturbance:
    """Return a disturbance: at times all codes that are used less than the mean are put on one and the same latent.

    So does a restart that draws one latent and lets it broadcast. The last time is at `until`.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        table = learnable(run)
        if table is not None and step <= until and step % every == 0:
            latents = run.model.latents(run.data.train[:_COUNTED]).flatten(0, 1)
            counts = torch.bincount(torch.cdist(latents, table).argmin(dim=1), minlength=len(table))
            table[counts < len(latents) / len(table)] = latents[step % len(latents)]

    return disturb


def batch_of_nan(*, at: int, share: float) -> Disturbance:
    """Return a disturbance: a share of the items of one batch are no numbers."""

    def disturb(run: Run, step: int) -> None:
        run.spoiled = share if step == at else 0.0

    return disturb


def unscaled_shard(*, at: int, until: int, one_in: int) -> Disturbance:
    """Return a disturbance: for some steps one in so many training items has values 256 times as large.

    So has a shard of pixels that nobody divided by 255. A power of two, so that all is as it was afterwards.
    """

    def disturb(run: Run, step: int) -> None:
        if step in (at, until):
            train = run.data.train.clone()
            train[::one_in] *= 256.0 if step == at else 1 / 256.0
            run.data = replace(run.data, train=train)

    return disturb


def passed_by_at_first(*, until: int, slow_until: int) -> Disturbance:
    """Return a routine: the quantizer is left out before a step, and the learning rate rises until another."""

    def routine(run: Run, step: int) -> None:
        run.model.is_passed_by = step < until
        for group in run.optimizer.param_groups:
            group["lr"] = run.lr * min((step + 1) / slow_until, 1.0)

    return routine


def restart_warm(*, every: int) -> Disturbance:
    """Return a routine: the learning rate falls to zero along a cosine and starts anew, as in SGDR.

    Loshchilov and Hutter 2017, section 3.
    """

    def routine(run: Run, step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = run.lr * (1 + math.cos(math.pi * (step % every) / every)) / 2

    return routine

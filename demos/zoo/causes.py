"""What goes wrong in the zoo, as functions of a run, and what only looks as if it did."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .scenario import Run

__all__ = [
    "Disturbance",
    "Draw",
    "Start",
    "batch_of_nan",
    "crowd",
    "deep_levels_too_large",
    "drift",
    "few_items",
    "jump",
    "learnable",
    "lose_codes",
    "lose_level",
    "narrow_cone",
    "one_class",
    "one_photo_then_the_other",
    "passed_by_at_first",
    "place_shifted",
    "rescale",
    "shrink",
    "start_from_latents",
]

Start = Callable[[Run], None]
Disturbance = Callable[[Run, int], None]
Draw = Callable[[Run, int, int], Tensor]
_SEEN = 8192  # items that a start from latents looks at


@torch.no_grad()
def _first_latents(run: Run, most: int) -> Tensor:
    """Return (n, D) latents of training items under the untrained encoder."""
    model = run.model
    rows = torch.randint(len(run.data.train), (most,), generator=run.draws)
    return model.latents(run.data.train[rows]).flatten(0, 1)


def _spread_of(rows: Tensor) -> Tensor:
    """Return () how far latents (n, D) lie from their mean, the root mean square of a coordinate."""
    return (rows - rows.mean(dim=0)).square().mean().sqrt()


@torch.no_grad()
def _write(module: Any, rows: Tensor) -> None:
    """Write rows (K, D) into a quantizer's codebook, and into its moving averages where it has some."""
    codebook = getattr(module, "_codebook", None)
    if codebook is None:
        module.embedding.weight.copy_(rows)
        return
    codebook.embed.copy_(rows)
    codebook.embed_avg.copy_(rows)
    codebook.cluster_size.fill_(1.0)


def start_from_latents(run: Run) -> None:
    """Put every code on a latent of a training item, drawn at random, with little noise: a good start at any K."""
    rows = _first_latents(run, _SEEN)
    chosen = rows[torch.randperm(len(rows), generator=run.draws)[: run.model.bottleneck.K]]
    noise = torch.randn(chosen.shape, generator=run.draws)
    _write(run.model.bottleneck.quantizer, chosen + 1e-3 * rows.std() * noise)


def place_shifted(*, scale: float = 1.0, shift: float = 0.0) -> Start:
    """Return a start with normal codes of `scale` times the latents' spread, `shift` spreads away from their mean."""

    def start(run: Run) -> None:
        rows = _first_latents(run, 1024)
        spread = _spread_of(rows)
        codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
        _write(run.model.bottleneck.quantizer, rows.mean(dim=0) + spread * (scale * codes + shift))

    return start


def deep_levels_too_large(run: Run) -> None:
    """Start the first level of a residual on latents, and the others with codes at ten times the latents' spread."""
    rows = _first_latents(run, _SEEN)
    spread = _spread_of(rows)
    for level, layer in enumerate(cast(nn.ModuleList, run.model.bottleneck.quantizer.layers)):
        codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
        chosen = rows[torch.randperm(len(rows), generator=run.draws)[: run.model.bottleneck.K]]
        _write(layer, 10.0 * spread * codes if level else chosen)


def narrow_cone(run: Run) -> None:
    """Let all codes of a cosine codebook point the same way, but for little noise, away from the latents' mean."""
    rows = _first_latents(run, 1024)
    away = -functional.normalize(rows.mean(dim=0), dim=0)
    noise = 0.05 * torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws) / math.sqrt(rows.shape[1])
    _write(run.model.bottleneck.quantizer, functional.normalize(away + noise, dim=-1))


def crowd(run: Run) -> None:
    """Start all codes around one latent, within a thousandth of the latents' spread."""
    rows = _first_latents(run, 1024)
    spread = _spread_of(rows)
    noise = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
    _write(run.model.bottleneck.quantizer, rows[0] + 1e-3 * spread * noise)


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

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        if step == at:
            last, first = cast(nn.Linear, run.model.encoder[-1]), cast(nn.Linear, run.model.decoder[0])
            last.weight.mul_(factor)
            last.bias.mul_(factor)
            first.weight.div_(factor)

    return disturb


def learnable(run: Run) -> Tensor | None:
    """Return the codebook (K, D) of taming or diffusers; `None` where a quantizer that has none stands in its place."""
    embedding = getattr(run.model.bottleneck.quantizer, "embedding", None)
    return None if embedding is None else cast(nn.Embedding, embedding).weight


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
            spread = _spread_of(rows)
            draws = torch.Generator().manual_seed(at)  # the batches stay those of the twin
            codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=draws)
            _write(cast(nn.ModuleList, run.model.bottleneck.quantizer.layers)[level], 10.0 * spread * codes)

    return disturb


def batch_of_nan(*, at: int, share: float) -> Disturbance:
    """Return a disturbance: a share of the items of one batch are no numbers."""

    def disturb(run: Run, step: int) -> None:
        run.spoiled = share if step == at else 0.0

    return disturb


def one_class(run: Run, step: int, size: int) -> Tensor:
    """Draw batches of one class each, class after class, five batches of each: a sorted data set."""
    classes = int(run.data.groups.max()) + 1
    return _of_group(run, (step // 5) % classes, size)


def one_photo_then_the_other(at: int) -> Draw:
    """Return a draw from one photograph before a step and from the other after it."""
    return lambda run, step, size: _of_group(run, int(step >= at), size)


def _of_group(run: Run, group: int, size: int) -> Tensor:
    members = torch.nonzero(run.data.groups == group).flatten()
    return run.data.train[members[torch.randint(len(members), (size,), generator=run.draws)]]


def few_items(number: int) -> Draw:
    """Return a draw from so few different items that few codes are all that there is to use."""
    return lambda run, step, size: run.data.train[torch.randint(number, (size,), generator=run.draws)]


def passed_by_at_first(*, until: int, slow_until: int) -> Disturbance:
    """Return a routine: the quantizer is left out before a step, and the learning rate rises until another."""

    def routine(run: Run, step: int) -> None:
        run.model.is_passed_by = step < until
        for group in run.optimizer.param_groups:
            group["lr"] = run.lr * min((step + 1) / slow_until, 1.0)

    return routine

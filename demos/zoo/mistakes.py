"""Mistakes around a quantizer that a run of the zoo goes on with from one step on: each is called before each step.

Each passes by a quantizer that has nothing of the kind, as the one that stands in its place in some arms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .disturbances import Disturbance
from .scenario import Run
from .starts import averages, learnable

__all__ = [
    "cut_gradient",
    "fill_from_first",
    "freeze_codes",
    "invert",
    "raise_commitment",
    "round_codes",
    "transpose_sums",
    "turn_down",
    "turn_to_cosine",
]

_COMMITMENTS = ("commitment_weight", "beta")  # as vector-quantize-pytorch and encodec call it, and the others


def cut_gradient(*, at: int) -> Disturbance:
    """Return a disturbance: from one step on the decoder gets codes that the encoder has no gradient through.

    So it is where `z_q.detach()` is decoded, and not `z + (z_q - z).detach()`. The encoder learns from the commitment
    alone.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at and learnable(run) is not None:
            run.model.is_cut = True

    return disturb


def transpose_sums(positions: int, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on EMA sums are taken of tokens in another order than that of their codes.

    So it is where codes of (B, T) meet tokens of (T, B). Every code moves to the mean of tokens that are not its own.

    Args:
        positions: T.
        at: the step.
    """

    def transposed(tokens: Tensor) -> Tensor:
        items: Tensor = tokens.unflatten(1, (-1, positions))
        return items.transpose(1, 2).flatten(1, 2)

    def disturb(run: Run, step: int) -> None:
        if step == at:
            _count_otherwise(run, lambda tokens, assigned: (transposed(tokens), assigned))

    return disturb


def fill_from_first(ranks: int, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on EMA counts and sums are those of the first of so many shares of a batch.

    So it is where nobody reduces them over the processes, and the buffers of the first process are broadcast.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            _count_otherwise(run, lambda tokens, assigned: (_first(tokens, ranks), _first(assigned, ranks)))

    return disturb


def turn_to_cosine(*, at: int) -> Disturbance:
    """Return a disturbance: from one step on a Euclidean EMA codebook is taken for a cosine one.

    So it is where a resume has another configuration. Latents are normalised, and so are codes with the next update.
    """

    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if step == at and inner is not None:
            inner.use_cosine_sim = True
            inner.transform_input = lambda latents: functional.normalize(latents, dim=-1)

    return disturb


def turn_down(factor: float, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on all items are `factor` times as loud, the held-out ones too.

    So it is where a model is trained on with other recordings. Errors stay a share of the items' variance.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            train, test, variance = run.data.train * factor, run.data.test * factor, run.data.variance * factor**2
            run.data = replace(run.data, train=train, test=test, variance=variance)

    return disturb


def invert(*, at: int) -> Disturbance:
    """Return a disturbance: from one step on all items are negatives of what they were, the held-out ones too.

    So it is where scans of another machine have white for what was black. Values have mean 0 before and after.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            run.data = replace(run.data, train=-run.data.train, test=-run.data.test)

    return disturb


def raise_commitment(factor: float, *, until: int) -> Disturbance:
    """Return a disturbance, or a routine: before one step the weight of the commitment grows by a factor each step.

    It multiplies what it finds, so that who lowers the weight meanwhile has lowered it for good.
    """

    def disturb(run: Run, step: int) -> None:
        quantizer: Any = run.model.bottleneck.quantizer
        for name in _COMMITMENTS:
            if step < until and hasattr(quantizer, name):
                setattr(quantizer, name, factor * getattr(quantizer, name))

    return disturb


def round_codes(levels: int, *, at: int) -> Disturbance:
    """Return a disturbance: at one step a learnable codebook has whole steps, so many from zero to its largest value.

    So it is where a table is kept in few bits, with one scale for all of it. Codes that were near one another are
    copies afterwards, of which the first takes all tokens.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        table = learnable(run)
        if step == at and table is not None:
            unit = table.abs().max() / levels
            table.copy_((table / unit).round() * unit)

    return disturb


def freeze_codes(*, at: int) -> Disturbance:
    """Return a routine: from one step on an EMA codebook is frozen, and encoder and decoder are trained on."""

    def routine(run: Run, step: int) -> None:
        quantizer: Any = run.model.bottleneck.quantizer
        if step == at and averages(run) is not None:
            quantizer.freeze_codebook = True

    return routine


def _first(rows: Tensor, ranks: int) -> Tensor:
    """Return the first of so many shares of rows (1, n, ...)."""
    return rows[:, : rows.shape[1] // ranks]


def _count_otherwise(run: Run, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Let vector-quantize-pytorch count other tokens (1, n, D) or assignments (1, n, K) than it should."""
    inner = averages(run)
    if inner is not None:
        count = inner.track_cluster_size_and_embed_avg

        def count_otherwise(tokens: Tensor, assigned: Tensor, *rest: Any, **named: Any) -> None:
            count(*change(tokens, assigned), *rest, **named)

        inner.track_cluster_size_and_embed_avg = count_otherwise

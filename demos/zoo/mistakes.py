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
from .models import Bottleneck, Output
from .scenario import Run
from .starts import averages, learnable

__all__ = [
    "average_sums",
    "clamp_counts",
    "commit_to_all",
    "cut_gradient",
    "fill_from_first",
    "freeze_codes",
    "invert",
    "prefer_few",
    "raise_commitment",
    "round_codes",
    "sort_counts",
    "transpose_sums",
    "turn_down",
    "turn_to_cosine",
    "write_at_times",
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


def average_sums(ranks: int, *, at: int) -> Disturbance:
    """Return a disturbance: from one step on EMA sums are averaged over so many processes, and EMA counts summed.

    So it is where one of two reductions has the wrong operator. Every code moves to a share of the mean of its tokens.
    """

    def disturb(run: Run, step: int) -> None:
        if step == at:
            _count_otherwise(run, lambda tokens, assigned: (tokens / ranks, assigned))

    return disturb


def commit_to_all(*, at: int) -> Disturbance:
    """Return a disturbance: from one step on the commitment is of each latent to the codes of all tokens of a batch.

    So it is where (n, D) meets (n, 1, D), and broadcasts. All latents are pulled to one place, whatever their codes.
    """

    def commit(bottleneck: Bottleneck, given: tuple[Tensor, ...], made: Output) -> Output:
        (tokens, *_), (quantised, codes, loss) = given, made
        weight = max(float(getattr(bottleneck.quantizer, name, 0.0)) for name in _COMMITMENTS)
        chosen = quantised.detach()
        centre = chosen.mean(dim=(0, 1))
        to_all = (tokens - centre).square().mean() + (chosen - centre).square().mean()
        return quantised, codes, loss + weight * (to_all - functional.mse_loss(tokens, chosen))

    def disturb(run: Run, step: int) -> None:
        if step == at:
            run.model.bottleneck.register_forward_hook(commit)

    return disturb


def clamp_counts(*, at: int) -> Disturbance:
    """Return a disturbance: from one step on EMA counts of the reference quantizer are one at least.

    So it is where a division by zero is to be avoided, and counts are thought of as those of tokens. The sum of a code
    with less than a token a step fades, its count does not, and the code goes to zero.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        counts = getattr(run.model.bottleneck.quantizer, "usage", None)
        if step >= at and counts is not None:
            counts.clamp_(min=1.0)

    return disturb


def prefer_few(*, at: int) -> Disturbance:
    """Return a disturbance: at one step the weight of the codes' diversity gets the other sign.

    So it is where a loss is meant for an entropy to be lowered, and gets one to be raised. Few codes are rewarded.
    """

    def disturb(run: Run, step: int) -> None:
        quantizer: Any = run.model.bottleneck.quantizer
        if step == at and hasattr(quantizer, "codebook_diversity_loss_weight"):
            quantizer.codebook_diversity_loss_weight *= -1

    return disturb


def sort_counts(*, every: int, until: int) -> Disturbance:
    """Return a disturbance: at times EMA counts are sorted, and sums are not. The last time is at `until`.

    So it is where a plot of them sorts a view of NumPy in place. Each sum is divided by the count of another code.
    """

    @torch.no_grad()
    def disturb(run: Run, step: int) -> None:
        inner = averages(run)
        if inner is not None and step <= until and step % every == 0:
            inner.cluster_size.numpy().sort(axis=-1)

    return disturb


def freeze_codes(*, at: int) -> Disturbance:
    """Return a routine: from one step on an EMA codebook is frozen, and encoder and decoder are trained on."""

    def routine(run: Run, step: int) -> None:
        quantizer: Any = run.model.bottleneck.quantizer
        if step == at and averages(run) is not None:
            quantizer.freeze_codebook = True

    return routine


def write_at_times(*, every: int) -> Disturbance:
    """Return a routine: EMA sums and counts go on in each step, and are written into the codebook at times only.

    So it is where gradients of several batches are added up for a step. vector-quantize-pytorch leaves the moment to
    the training loop where `manual_ema_update` is set.
    """

    def routine(run: Run, step: int) -> None:
        inner = averages(run)
        if inner is not None and step and step % every == 0:
            inner.update_ema()

    return routine


def _first(rows: Tensor, ranks: int) -> Tensor:
    """Return the first of so many shares of rows (1, n, ...)."""
    return rows[:, : rows.shape[1] // ranks]


def _count_otherwise(run: Run, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Let each codebook of vector-quantize-pytorch count other tokens (1, n, D) or assignments (1, n, K)."""
    for inner in [each for each in run.model.modules() if hasattr(each, "track_cluster_size_and_embed_avg")]:
        _change_count(inner, change)


def _change_count(inner: Any, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    count = inner.track_cluster_size_and_embed_avg

    def count_otherwise(tokens: Tensor, assigned: Tensor, *rest: Any, **named: Any) -> None:
        count(*change(tokens, assigned), *rest, **named)

    inner.track_cluster_size_and_embed_avg = count_otherwise

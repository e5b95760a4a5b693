"""What scenarios do to a run between two steps: the mistakes and accidents that no option of a quantizer makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .course import Course

__all__ = [
    "accelerate",
    "cramp_pieces",
    "drift",
    "forget_the_factor",
    "grow",
    "jump",
    "normalise",
    "place_codes",
    "poison",
    "prefill_unscaled",
]

Tamper = Callable[[Course, int], None]


def _leaf(course: Course) -> Any:
    """Return what holds the table of a `VectorQuantize` or an `EmaQuantizer`."""
    return course.model.quantizer._codebook


def _last(course: Course) -> nn.Linear:
    return cast(nn.Linear, course.model.encoder[-1])


def forget_the_factor(course: Course, step: int) -> None:
    """Let a `VectorQuantize` compute its codes without multiplying the smoothed cluster size back by n."""

    def update_ema(leaf: Any) -> None:
        n = leaf.cluster_size.sum(dim=-1, keepdim=True)
        size = (leaf.cluster_size + leaf.eps) / (n + leaf.codebook_size * leaf.eps)
        leaf.embed.data.copy_(leaf.embed_avg / size.unsqueeze(-1))

    if step == 0:
        _leaf(course).update_ema = MethodType(update_ema, _leaf(course))


@torch.no_grad()
def prefill_unscaled(course: Course, step: int) -> None:
    """Start a `VectorQuantize` from k-means of its own: table and counts are right, the sums lack the counts."""
    if step:
        return
    leaf, K = _leaf(course), _leaf(course).embed.shape[1]
    draw = course.scenario.data.open(torch.Generator().manual_seed(course.seed))
    latents = torch.cat([course.model.encoder(draw(at)).reshape(-1, course.model.D) for at in range(8)])
    table = latents[torch.randperm(len(latents))[:K]].clone()
    counts = torch.ones(K)
    for _ in range(10):
        codes = torch.cdist(latents, table).argmin(dim=-1)
        counts = torch.bincount(codes, minlength=K).float()
        sums = torch.zeros_like(table).index_add_(0, codes, latents)
        table = torch.where(counts.unsqueeze(-1) > 0, sums / counts.clamp(min=1).unsqueeze(-1), table)
    leaf.embed.copy_(table[None])
    leaf.embed_avg.copy_(table[None])
    leaf.cluster_size.copy_(counts.clamp(min=1)[None])


def place_codes(scale: float = 1.0, offset: float = 0.0, *, unit: bool = False) -> Tamper:
    """Begin with the codes multiplied and moved, or as unit vectors."""

    @torch.no_grad()
    def tamper(course: Course, step: int) -> None:
        if step:
            return
        leaf = _leaf(course)
        codes = leaf.embed / leaf.embed.norm(dim=-1, keepdim=True) if unit else leaf.embed
        codes = codes * scale + offset
        leaf.embed.copy_(codes)
        leaf.embed_avg.copy_(codes)

    return tamper


def jump(at: int, distance: float) -> Tamper:
    """Move all latents at once, as the step after a spike of the loss may."""

    @torch.no_grad()
    def tamper(course: Course, step: int) -> None:
        if step == at:
            bias = _last(course).bias
            bias.add_(distance * torch.nn.functional.normalize(torch.randn(len(bias)), dim=0))

    return tamper


def drift(begin: int, distance: float) -> Tamper:
    """Move all latents by so much in each step, in one direction."""
    direction: list[Tensor] = []

    @torch.no_grad()
    def tamper(course: Course, step: int) -> None:
        bias = _last(course).bias
        if step <= begin:
            direction[:] = [torch.nn.functional.normalize(torch.randn(len(bias)), dim=0)]
        else:
            bias.add_(distance * direction[0])

    return tamper


def grow(begin: int, factor: float) -> Tamper:
    """Let the latents grow in each step, as an encoder without normalisation may, by itself."""

    @torch.no_grad()
    def tamper(course: Course, step: int) -> None:
        if step >= begin:
            for parameter in _last(course).parameters():
                parameter.mul_(factor)

    return tamper


@torch.no_grad()
def cramp_pieces(course: Course, step: int) -> None:
    """Keep all pieces of the encoder's output but the first small and away from it, as a penalty on them would."""
    last, D = _last(course), course.model.D
    if step == 0:
        last.bias[D:] += 1.5
    last.weight[D:] *= 0.05 * last.weight[:D].norm() / last.weight[D:].norm()


def normalise(at: int) -> Tamper:
    """Let a `VectorQuantize` of Euclidean codes compare by angle."""

    def tamper(course: Course, step: int) -> None:
        if step == at:
            leaf = _leaf(course)
            leaf.use_cosine_sim, leaf.transform_input = True, partial(torch.nn.functional.normalize, dim=-1)

    return tamper


def poison(at: int) -> Tamper:
    """Put a NaN where an overflow would."""

    @torch.no_grad()
    def tamper(course: Course, step: int) -> None:
        if step == at:
            cast(nn.Linear, course.model.encoder[0]).weight[0, 0] = float("nan")

    return tamper


def accelerate(begin: int, factor: float) -> Tamper:
    """Raise the learning rate in each step, until the run diverges."""

    def tamper(course: Course, step: int) -> None:
        if step >= begin:
            for group in course.optimizer.param_groups:
                group["lr"] = min(group["lr"] * factor, 3.0)

    return tamper

"""snac under the contract: levels of different lengths, and losses that its users compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .case import Case, Run, flat
from .dac import NO_COMMITMENT, build_quietly, latents
from .packages import import_inside

__all__ = ["CASES", "snac"]

snac = import_inside("snac", "vq")
STRIDES = [4, 2, 1]


def _losses(level: Any, given: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of one level, and what it decodes to."""
    latents = level.in_proj(functional.avg_pool1d(given, level.stride, level.stride))
    rows = level.decode_code(codes)
    loss = 0.25 * functional.mse_loss(latents, rows.detach()) + functional.mse_loss(rows, latents.detach())
    return loss, level.out_proj(rows).repeat_interleave(level.stride, dim=-1)


def _single(module: nn.Module, x: Tensor) -> Run:
    _, codes = module(x)
    return Run({"quantizer": flat(codes)}, _losses(module, x, codes)[0])


def _residual(module: nn.Module, x: Tensor) -> Run:
    _, codes = module(x)
    residual, total = x, torch.zeros(())
    for level, own in zip(cast(nn.ModuleList, module.quantizers), codes, strict=True):
        loss, decoded = _losses(level, residual, own)
        residual, total = residual - decoded, total + loss
    levels = {f"quantizer.quantizers.{level}": flat(own) for level, own in enumerate(codes)}
    assert [own.shape[-1] for own in codes] == [x.shape[-1] // stride for stride in STRIDES]
    return Run(levels, total)


def _strided(stride: int) -> Callable[[], nn.Module]:
    return build_quietly(lambda: snac.VectorQuantize(8, 16, 4, stride))


CASES = (
    *(
        Case(
            package="snac",
            cls="VectorQuantize",
            mode=f"stride {stride}",
            build=_strided(stride),
            batch=latents,
            run=_single,
            views=("quantizer",),
            lacks=NO_COMMITMENT,
        )
        for stride in (1, 4)
    ),
    Case(
        package="snac",
        cls="ResidualVectorQuantize",
        build=build_quietly(lambda: snac.ResidualVectorQuantize(8, 16, 4, STRIDES)),
        batch=latents,
        run=_residual,
        views=tuple(f"quantizer.quantizers.{level}" for level in range(3)),
        lacks=NO_COMMITMENT,
    ),
)

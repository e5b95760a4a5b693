"""What encodec, audiocraft and speechtokenizer have in common under the contract: one leaf, taken over."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .case import Case, Run, flat, offset_data

__all__ = ["LEVELS", "audio", "leaf_case", "levels_of", "single_case"]

LEVELS = tuple(f"quantizer.vq.layers.{level}" for level in range(3))
"""Names of the codebooks of a residual of three levels."""


def audio() -> Tensor:
    return offset_data(4, 8, 64, channel=1)


def levels_of(codes: Any, loss: Tensor) -> Run:
    """Return the run of a residual from the (n, ...) codes of its levels."""
    return Run({name: flat(own) for name, own in zip(LEVELS, codes, strict=True)}, loss)


def _leaf(module: nn.Module, x: Tensor) -> Run:
    _, codes = module(x.transpose(1, 2))
    return Run({"quantizer": flat(codes)}, None)


def _single(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({"quantizer": flat(codes)}, loss.sum())


def leaf_case(package: str, core: ModuleType) -> Case:
    """Return the case of the codebook itself, which has no loss."""
    return Case(
        package=package,
        cls="EuclideanCodebook",
        build=lambda: core.EuclideanCodebook(dim=8, codebook_size=16),
        batch=audio,
        run=_leaf,
        views=("quantizer",),
        lacks=frozenset({"commitment"}),
    )


def single_case(package: str, core: ModuleType, *, mode: str = "", **options: Any) -> Case:
    """Return the case of one quantizer around the codebook."""
    return Case(
        package=package,
        cls="VectorQuantization",
        mode=mode,
        build=lambda: core.VectorQuantization(dim=8, codebook_size=16, **options),
        batch=audio,
        run=_single,
        views=("quantizer",),
    )

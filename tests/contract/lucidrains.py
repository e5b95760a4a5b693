"""vector-quantize-pytorch under the contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ, VectorQuantize

from .case import Case, Run, flat, offset_data

__all__ = ["CASES"]

PACKAGE = "vector-quantize-pytorch"


def _sequence() -> Tensor:
    return offset_data(4, 64, 8, channel=-1)


def _single(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({"quantizer": flat(codes)}, loss.sum())


def _heads(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({f"quantizer.{head}": flat(codes[..., head]) for head in range(2)}, loss.sum())


def _residual(module: nn.Module, x: Tensor) -> Run:
    _, codes, losses = module(x)
    return Run({f"quantizer.layers.{level}": flat(codes[..., level]) for level in range(3)}, losses.sum())


def _grouped(module: nn.Module, x: Tensor) -> Run:
    _, codes, losses = module(x)
    return Run(
        {
            f"quantizer.rvqs.{group}.layers.{level}": flat(codes[group, ..., level])
            for group in range(2)
            for level in range(2)
        },
        losses.sum(),
    )


def _random_projection(module: nn.Module, x: Tensor) -> Run:
    return Run({"quantizer.vq": flat(module(x))}, None)


def _vq(mode: str, *, lacks: frozenset[str] = frozenset(), **options: Any) -> Case:
    heads = options.get("separate_codebook_per_head", False)
    return Case(
        package=PACKAGE,
        cls="VectorQuantize",
        mode=mode,
        build=lambda: VectorQuantize(dim=8, codebook_size=16, **options),
        batch=_sequence,
        run=_heads if heads else _single,
        views=("quantizer.0", "quantizer.1") if heads else ("quantizer",),
        lacks=lacks,
    )


CASES = (
    _vq("ema"),
    _vq("cosine", use_cosine_sim=True),
    _vq("learnable", learnable_codebook=True, ema_update=False, lacks=frozenset({"commitment"})),
    _vq("projected", codebook_dim=4),
    _vq(
        "separate heads",
        heads=2,
        codebook_dim=4,
        separate_codebook_per_head=True,
    ),
    Case(
        package=PACKAGE,
        cls="ResidualVQ",
        build=lambda: ResidualVQ(dim=8, codebook_size=16, num_quantizers=3),
        batch=_sequence,
        run=_residual,
        views=tuple(f"quantizer.layers.{level}" for level in range(3)),
    ),
    Case(
        package=PACKAGE,
        cls="GroupedResidualVQ",
        build=lambda: GroupedResidualVQ(dim=8, codebook_size=16, num_quantizers=2, groups=2),
        batch=_sequence,
        run=_grouped,
        views=tuple(f"quantizer.rvqs.{group}.layers.{level}" for group in range(2) for level in range(2)),
    ),
)

"""vector-quantize-pytorch under the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import (
    GroupedResidualVQ,
    HierarchicalVQ,
    RandomProjectionQuantizer,
    ResidualVQ,
    VectorQuantize,
)

from .case import Case, Run, flat, offset_data

__all__ = ["CASES"]

PACKAGE = "vector-quantize-pytorch"
LENS = torch.tensor([64, 40, 50, 7])


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


def _shared_heads(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({"quantizer": flat(codes.movedim(-1, 1))}, loss.sum())


def _masked(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x, mask=torch.arange(x.shape[1]) < LENS[: len(x), None])
    return Run({"quantizer": flat(codes)}, loss.sum())


def _lens(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x, lens=LENS[: len(x)])
    return Run({"quantizer": flat(codes)}, loss.sum())


def _through(module: nn.Module, x: Tensor) -> Run:
    """Codes that learn through the quantised vector."""
    q, codes, loss = module(x)
    return Run({"quantizer": flat(codes)}, (q - x.detach()).square().mean() + loss.sum())


def _diveq(module: nn.Module, x: Tensor) -> Run:
    q, codes, _ = module(x)
    levels = {f"quantizer.layers.{level}": flat(codes[..., level]) for level in range(3)}
    return Run(levels, (q - x.detach()).square().mean())


def _one_table(module: nn.Module, x: Tensor) -> Run:
    """Levels that share one codebook, which is searched level by level."""
    _, codes, losses = module(x)
    return Run({"quantizer.layers.0": torch.cat([flat(codes[..., level]) for level in range(3)])}, losses.sum())


def _scales(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    if module.vq is not None:
        return Run({"quantizer.vq": torch.cat([flat(each) for each in codes])}, loss)
    return Run({f"quantizer.vqs.{level}": flat(each) for level, each in enumerate(codes)}, loss)


NO_COMMITMENT = frozenset({"commitment"})
ONLY_WATCHED = frozenset({"reset", "freeze", "fallback"})
LEARNABLE: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}
LEVELS = tuple(f"quantizer.layers.{level}" for level in range(3))


def _vq(
    mode: str,
    *,
    lacks: frozenset[str] = frozenset(),
    batch: Callable[[], Tensor] = _sequence,
    run: Callable[[nn.Module, Tensor], Run] = _single,
    views: tuple[str, ...] = ("quantizer",),
    trains: bool = True,
    nearest: bool = True,
    **options: Any,
) -> Case:
    return Case(
        package=PACKAGE,
        cls="VectorQuantize",
        mode=mode,
        build=lambda: VectorQuantize(dim=8, codebook_size=16, **options),
        batch=batch,
        run=run,
        views=views,
        lacks=lacks,
        trains=trains,
        nearest=nearest,
    )


def _rvq(
    mode: str,
    run: Callable[[nn.Module, Tensor], Run] = _residual,
    *,
    lacks: frozenset[str] = frozenset(),
    views: tuple[str, ...] = LEVELS,
    calls: int = 1,
    nearest: bool = True,
    **options: Any,
) -> Case:
    return Case(
        package=PACKAGE,
        cls="ResidualVQ",
        mode=mode,
        build=lambda: ResidualVQ(dim=8, codebook_size=16, num_quantizers=3, **options),
        batch=_sequence,
        run=run,
        views=views,
        lacks=lacks,
        calls=calls,
        nearest=nearest,
    )


def _hierarchy(mode: str, views: tuple[str, ...], **options: Any) -> Case:
    return Case(
        package=PACKAGE,
        cls="HierarchicalVQ",
        mode=mode,
        build=lambda: HierarchicalVQ(dim=8, codebook_size=16, scales=(16, 32, 64), kmeans_init=False, **options),
        batch=lambda: offset_data(4, 8, 64, channel=1),
        run=_scales,
        views=views,
        calls=3 // len(views),
        nearest=len(views) > 1,  # the averages of a shared table move from level to level
    )


CASES = (
    _vq("ema"),
    _vq("cosine", use_cosine_sim=True),
    _vq("learnable", lacks=NO_COMMITMENT, **LEARNABLE),
    _vq("learnable, dead codes replaced", lacks=NO_COMMITMENT, threshold_ema_dead_code=2, **LEARNABLE),
    _vq(
        "optimizer inside",
        lacks=NO_COMMITMENT,
        in_place_codebook_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        **LEARNABLE,
    ),
    _vq("ema and orthogonal", orthogonal_reg_weight=1.0),
    _vq("diverse", codebook_diversity_loss_weight=0.1),
    _vq("projected", codebook_dim=4),
    _vq("images", batch=lambda: offset_data(2, 8, 8, 6, channel=1), accept_image_fmap=True),
    _vq("channel first", batch=lambda: offset_data(4, 8, 64, channel=1), channel_last=False),
    _vq("two-dimensional", batch=lambda: offset_data(256, 8, channel=-1)),
    _vq("mask", run=_masked),
    _vq("lens", run=_lens),
    _vq("dead codes replaced", threshold_ema_dead_code=2),
    _vq("k-means start", kmeans_init=True, kmeans_iters=2),
    _vq("no rotation", rotation_trick=False),
    _vq("no commitment", commitment_weight=0.0),
    _vq("cross entropy", commitment_use_cross_entropy_loss=True),
    _vq("sampled", nearest=False, stochastic_sample_codes=True, sample_codebook_temp=0.05),
    _vq("frozen by its owner", trains=False, freeze_codebook=True),
    _vq("directional", lacks=NO_COMMITMENT, run=_through, directional_reparam=True, threshold_ema_dead_code=1),
    _vq("affine", lacks=ONLY_WATCHED, affine_param=True),
    Case(
        package=PACKAGE,
        cls="VectorQuantize",
        mode="bridge",
        build=lambda: VectorQuantize(dim=8, codebook_size=16, vq_bridge=nn.Linear(8, 8)),
        batch=_sequence,
        run=_single,
        views=("quantizer",),
        lacks=ONLY_WATCHED | NO_COMMITMENT,
    ),
    _vq("shared heads", run=_shared_heads, heads=2, codebook_dim=4),
    _vq(
        "separate heads",
        run=_heads,
        views=("quantizer.0", "quantizer.1"),
        heads=2,
        codebook_dim=4,
        separate_codebook_per_head=True,
    ),
    _rvq(""),
    _rvq("projected", codebook_dim=4),
    _rvq("shared codebook", _one_table, views=LEVELS[:1], calls=3, shared_codebook=True),
    _rvq("beam", lacks=ONLY_WATCHED, beam_size=2),
    _rvq("diveq", _diveq, lacks=NO_COMMITMENT, diveq=True),
    Case(
        package=PACKAGE,
        cls="GroupedResidualVQ",
        build=lambda: GroupedResidualVQ(dim=8, codebook_size=16, num_quantizers=2, groups=2),
        batch=_sequence,
        run=_grouped,
        views=tuple(f"quantizer.rvqs.{group}.layers.{level}" for group in range(2) for level in range(2)),
    ),
    Case(
        package=PACKAGE,
        cls="RandomProjectionQuantizer",
        build=lambda: RandomProjectionQuantizer(dim=8, codebook_size=16, codebook_dim=4),
        batch=_sequence,
        run=_random_projection,
        views=("quantizer.vq",),
        lacks=NO_COMMITMENT,
        trains=False,
    ),
    _hierarchy("one codebook", ("quantizer.vq",)),
    _hierarchy("one for each level", tuple(f"quantizer.vqs.{level}" for level in range(3)), shared_codebook=False),
)

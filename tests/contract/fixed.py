"""Quantizers that are only watched, under the contract: grids, signs, and tables behind a trained layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.models.neucodec.modeling_neucodec import NeuCodecFiniteScalarQuantization
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2FiniteScalarQuantization
from vector_quantize_pytorch import (
    FSP,
    FSQ,
    LFQ,
    BinaryMapper,
    GroupedResidualFSQ,
    LatentQuantize,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    SimVQ,
)

from .case import Case, Run, flat, offset_data

__all__ = ["CASES"]

PACKAGE = "vector-quantize-pytorch"
LEVELS = [5, 4, 3]


def _sequence(D: int) -> Callable[[], Tensor]:
    return lambda: offset_data(4, 64, D, channel=-1)


def _images(D: int) -> Callable[[], Tensor]:
    return lambda: offset_data(2, D, 8, 6, channel=1)


def _single(module: nn.Module, x: Tensor) -> Run:
    output = module(x)
    return Run({"quantizer": flat(output[1])}, output[0].square().mean() + (output[2] if len(output) > 2 else 0.0))


def _residual(module: nn.Module, x: Tensor) -> Run:
    q, codes, *losses = module(x)
    levels = {f"quantizer.layers.{level}": flat(codes[..., level]) for level in range(codes.shape[-1])}
    return Run(levels, q.square().mean() + sum(loss.sum() for loss in losses))


def _grouped(module: nn.Module, x: Tensor) -> Run:
    q, codes = module(x)
    places = [(group, level) for group in range(2) for level in range(2)]
    return Run(
        {f"quantizer.rvqs.{group}.layers.{level}": flat(codes[group, ..., level]) for group, level in places},
        q.square().mean(),
    )


def _mapper(module: nn.Module, x: Tensor) -> Run:
    one_hot, codes, loss = module(x, return_indices=True)
    return Run({"quantizer": flat(codes)}, one_hot.square().mean() + loss)


def _config(name: str) -> Any:
    """Return the one field of the codec's configuration that its quantizer reads."""
    from types import SimpleNamespace

    return SimpleNamespace(quantization_levels=LEVELS, name=name)


def _case(
    cls: type[nn.Module],
    build: Callable[[], nn.Module],
    batch: Callable[[], Tensor],
    *,
    run: Callable[[nn.Module, Tensor], Run] = _single,
    views: tuple[str, ...] = ("quantizer",),
    mode: str = "",
    package: str = PACKAGE,
) -> Case:
    lacks = frozenset({"reset", "commitment", "freeze", "fallback"})
    return Case(
        package=package, cls=cls.__name__, build=build, batch=batch, run=run, views=views, lacks=lacks, mode=mode
    )


LAYERS = ("quantizer.layers.0", "quantizer.layers.1")
GROUPS = tuple(f"quantizer.rvqs.{group}.layers.{level}" for group in range(2) for level in range(2))

CASES = (
    _case(FSQ, lambda: FSQ(LEVELS), _sequence(3)),
    _case(FSQ, lambda: FSQ(LEVELS, dim=8), _images(8), mode="images"),
    _case(FSQ, lambda: FSQ(LEVELS, dim=8, num_codebooks=2), _sequence(8), mode="two codebooks"),
    _case(
        ResidualFSQ,
        lambda: ResidualFSQ(dim=8, levels=LEVELS, num_quantizers=2),
        _sequence(8),
        run=_residual,
        views=LAYERS,
    ),
    _case(
        GroupedResidualFSQ,
        lambda: GroupedResidualFSQ(dim=8, groups=2, levels=LEVELS, num_quantizers=2),
        _sequence(8),
        run=_grouped,
        views=GROUPS,
    ),
    _case(LFQ, lambda: LFQ(codebook_size=16, dim=4), _sequence(4)),
    _case(LFQ, lambda: LFQ(codebook_size=16, dim=8), _images(8), mode="images"),
    _case(
        ResidualLFQ,
        lambda: ResidualLFQ(dim=8, codebook_size=16, num_quantizers=2),
        _sequence(8),
        run=_residual,
        views=LAYERS,
    ),
    _case(SimVQ, lambda: SimVQ(dim=8, codebook_size=16), _sequence(8)),
    _case(SimVQ, lambda: SimVQ(dim=8, codebook_size=16, channel_first=True), _images(8), mode="images"),
    _case(
        ResidualSimVQ,
        lambda: ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=2),
        _sequence(8),
        run=_residual,
        views=LAYERS,
    ),
    _case(LatentQuantize, lambda: LatentQuantize(LEVELS, dim=8), _images(8)),
    _case(FSP, lambda: FSP(LEVELS, dim=8), _sequence(8)),
    _case(BinaryMapper, lambda: BinaryMapper(bits=4), _sequence(4), run=_mapper),
    _case(
        Xcodec2FiniteScalarQuantization,
        lambda: Xcodec2FiniteScalarQuantization(_config("xcodec2")),
        _sequence(3),
        package="transformers",
    ),
    _case(
        NeuCodecFiniteScalarQuantization,
        lambda: NeuCodecFiniteScalarQuantization(_config("neucodec")),
        _sequence(3),
        package="transformers",
    ),
)

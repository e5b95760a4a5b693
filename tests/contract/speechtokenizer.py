"""speechtokenizer under the contract: encodec's codebook, taken over."""

from __future__ import annotations

from torch import Tensor, nn

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES"]

core = import_inside("speechtokenizer", "quantization.core_vq")
vq = import_inside("speechtokenizer", "quantization.vq")


def _audio() -> Tensor:
    return offset_data(4, 8, 64, channel=1)


def _leaf(module: nn.Module, x: Tensor) -> Run:
    _, codes = module(x.transpose(1, 2))
    return Run({"quantizer": flat(codes)}, None)


def _single(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({"quantizer": flat(codes)}, loss.sum())


def _residual(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss, _ = module(x)
    return Run({f"quantizer.vq.layers.{level}": flat(codes[level]) for level in range(3)}, loss)


CASES = (
    Case(
        package="speechtokenizer",
        cls="EuclideanCodebook",
        build=lambda: core.EuclideanCodebook(dim=8, codebook_size=16),
        batch=_audio,
        run=_leaf,
        views=("quantizer",),
        lacks=frozenset({"commitment"}),
    ),
    Case(
        package="speechtokenizer",
        cls="VectorQuantization",
        build=lambda: core.VectorQuantization(dim=8, codebook_size=16, kmeans_init=False),
        batch=_audio,
        run=_single,
        views=("quantizer",),
    ),
    Case(
        package="speechtokenizer",
        cls="ResidualVectorQuantizer",
        build=lambda: vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, kmeans_init=False),
        batch=_audio,
        run=_residual,
        views=tuple(f"quantizer.vq.layers.{level}" for level in range(3)),
    ),
)

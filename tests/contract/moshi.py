"""moshi under the contract: a table that is stored nowhere, and levels that start one after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES", "audio", "core", "started", "vq"]

core = import_inside("moshi", "quantization.core_vq")
vq = import_inside("moshi", "quantization.vq")


def audio() -> Tensor:
    return offset_data(4, 8, 64, channel=1)


def _leaf(module: nn.Module, x: Tensor) -> Run:
    return Run({"quantizer": flat(module(x.transpose(1, 2)).codes)}, None)


def _single(module: nn.Module, x: Tensor) -> Run:
    result = module(x)
    return Run({"quantizer": flat(result.codes)}, result.loss)


def _residual(module: nn.Module, x: Tensor) -> Run:
    result = module(x, 50)
    codes = {f"quantizer.vq.layers.{level}": flat(result.codes[:, level]) for level in range(3)}
    return Run(codes, result.penalty)


def _split(module: nn.Module, x: Tensor) -> Run:
    result = module(x, 50)
    names = ("rvq_first.vq.layers.0", "rvq_rest.vq.layers.0", "rvq_rest.vq.layers.1")
    codes = {f"quantizer.{name}": flat(result.codes[:, level]) for level, name in enumerate(names)}
    return Run(codes, result.penalty)


def started(module: nn.Module, *arguments: int, channel_last: bool = False) -> nn.Module:
    """Let every level make its own start, one in each training forward."""
    for _ in range(4):
        with torch.no_grad():
            module.train()(audio().transpose(1, 2) if channel_last else audio(), *arguments)
    return module


CASES = (
    Case(
        package="moshi",
        cls="EuclideanCodebook",
        build=lambda: started(core.EuclideanCodebook(dim=8, codebook_size=16), channel_last=True),
        batch=audio,
        run=_leaf,
        views=("quantizer",),
        lacks=frozenset({"commitment"}),
    ),
    Case(
        package="moshi",
        cls="VectorQuantization",
        build=lambda: started(core.VectorQuantization(dim=8, codebook_size=16)),
        batch=audio,
        run=_single,
        views=("quantizer",),
        lacks=frozenset({"commitment"}),
    ),
    Case(
        package="moshi",
        cls="ResidualVectorQuantizer",
        build=lambda: started(vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16), 50),
        batch=audio,
        run=_residual,
        views=tuple(f"quantizer.vq.layers.{level}" for level in range(3)),
        lacks=frozenset({"commitment"}),
    ),
    Case(
        package="moshi",
        cls="SplitResidualVectorQuantizer",
        build=lambda: started(vq.SplitResidualVectorQuantizer(dimension=8, n_q=3, bins=16), 50),
        batch=audio,
        run=_split,
        views=tuple(
            f"quantizer.{name}" for name in ("rvq_first.vq.layers.0", "rvq_rest.vq.layers.0", "rvq_rest.vq.layers.1")
        ),
        lacks=frozenset({"commitment"}),
    ),
)

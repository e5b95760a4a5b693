"""audiocraft under the contract: encodec's codebook, taken over, with levels dropped at random."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES", "audio", "core", "vq"]

# What audiocraft wants of its trainer is one function, which does nothing on a single rank.
_flashy: Any = ModuleType("flashy")
_distrib: Any = ModuleType("flashy.distrib")
_distrib.broadcast_tensors = lambda tensors, src=0: None
_flashy.distrib = _distrib

core = import_inside("audiocraft", "quantization.core_vq", flashy=_flashy)
vq = import_inside("audiocraft", "quantization.vq")


def audio() -> Tensor:
    return offset_data(4, 8, 64, channel=1)


def _leaf(module: nn.Module, x: Tensor) -> Run:
    _, codes = module(x.transpose(1, 2))
    return Run({"quantizer": flat(codes)}, None)


def _single(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss = module(x)
    return Run({"quantizer": flat(codes)}, loss.sum())


def _residual(module: nn.Module, x: Tensor) -> Run:
    result = module(x, 50)
    codes = {f"quantizer.vq.layers.{level}": flat(result.codes[:, level]) for level in range(3)}
    return Run(codes, result.penalty)


def _started(module: nn.Module) -> nn.Module:
    """Let a codebook make its own start, by k-means on a first batch."""
    with torch.no_grad():
        module.train()(audio(), 50)
    return module


CASES = (
    Case(
        package="audiocraft",
        cls="EuclideanCodebook",
        build=lambda: core.EuclideanCodebook(dim=8, codebook_size=16),
        batch=audio,
        run=_leaf,
        views=("quantizer",),
        lacks=frozenset({"commitment"}),
    ),
    Case(
        package="audiocraft",
        cls="VectorQuantization",
        build=lambda: core.VectorQuantization(dim=8, codebook_size=16, codebook_dim=4),
        batch=audio,
        run=_single,
        views=("quantizer",),
        mode="projected",
    ),
    Case(
        package="audiocraft",
        cls="ResidualVectorQuantizer",
        build=lambda: _started(vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16)),
        batch=audio,
        run=_residual,
        views=tuple(f"quantizer.vq.layers.{level}" for level in range(3)),
        mode="k-means start",
    ),
)

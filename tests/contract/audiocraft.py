"""audiocraft under the contract: encodec's codebook, taken over, with levels dropped at random."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Run
from .encodec_line import LEVELS, audio, leaf_case, levels_of, single_case
from .packages import import_inside

__all__ = ["CASES", "audio", "core", "vq"]

# What audiocraft wants of its trainer is one function, which does nothing on a single rank.
_flashy: Any = ModuleType("flashy")
_distrib: Any = ModuleType("flashy.distrib")
_distrib.broadcast_tensors = lambda tensors, src=0: None
_flashy.distrib = _distrib

core = import_inside("audiocraft", "quantization.core_vq", flashy=_flashy)
vq = import_inside("audiocraft", "quantization.vq")


def _residual(module: nn.Module, x: Tensor) -> Run:
    result = module(x, 50)
    return levels_of(result.codes.unbind(1), result.penalty)


def _started(module: nn.Module) -> nn.Module:
    """Let a codebook make its own start, by k-means on a first batch."""
    with torch.no_grad():
        module.train()(audio(), 50)
    return module


CASES = (
    leaf_case("audiocraft", core),
    single_case("audiocraft", core, mode="projected", codebook_dim=4),
    Case(
        package="audiocraft",
        cls="ResidualVectorQuantizer",
        build=lambda: _started(vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16)),
        batch=audio,
        run=_residual,
        views=LEVELS,
        mode="k-means start",
    ),
)

"""encodec under the contract."""

from __future__ import annotations

from torch import Tensor, nn

from .case import Case, Run
from .encodec_line import LEVELS, audio, leaf_case, levels_of, single_case
from .packages import import_inside

__all__ = ["CASES"]

core = import_inside("encodec", "quantization.core_vq")
vq = import_inside("encodec", "quantization.vq")


def _residual(module: nn.Module, x: Tensor) -> Run:
    result = module(x, 50)
    return levels_of(result.codes, result.penalty.sum())


CASES = (
    leaf_case("encodec", core),
    single_case("encodec", core, kmeans_init=False),
    Case(
        package="encodec",
        cls="ResidualVectorQuantizer",
        build=lambda: vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, kmeans_init=False),
        batch=audio,
        run=_residual,
        views=LEVELS,
    ),
)

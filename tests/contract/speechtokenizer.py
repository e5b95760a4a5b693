"""speechtokenizer under the contract: encodec's codebook, taken over."""

from __future__ import annotations

from torch import Tensor, nn

from .case import Case, Run
from .encodec_line import LEVELS, audio, leaf_case, levels_of, single_case
from .packages import import_inside

__all__ = ["CASES"]

core = import_inside("speechtokenizer", "quantization.core_vq")
vq = import_inside("speechtokenizer", "quantization.vq")


def _residual(module: nn.Module, x: Tensor) -> Run:
    _, codes, loss, _ = module(x)
    return levels_of(codes, loss)


CASES = (
    leaf_case("speechtokenizer", core),
    single_case("speechtokenizer", core, kmeans_init=False),
    Case(
        package="speechtokenizer",
        cls="ResidualVectorQuantizer",
        build=lambda: vq.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16, kmeans_init=False),
        batch=audio,
        run=_residual,
        views=LEVELS,
    ),
)

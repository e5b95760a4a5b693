"""nsvq under the contract."""

from __future__ import annotations

from collections.abc import Callable

import nsvq
from torch import Tensor, nn

from .case import Case, Run
from .diveq import QUIET, run_levels, run_single, tokens

__all__ = ["CASES"]


def _case(
    name: str, run: Callable[[nn.Module, Tensor], Run], *levels: int, mode: str = "", diveq: bool = False
) -> Case:
    return Case(
        package="nsvq",
        cls=name,
        mode=mode,
        build=lambda: getattr(nsvq, name)(16, 8, *levels[:1], diveq=diveq, **QUIET),
        batch=tokens,
        run=run,
        views=tuple(f"quantizer.{level}" for level in range(*levels)) if levels else ("quantizer",),
        lacks=frozenset({"commitment"}),
    )


CASES = (
    _case("NSVQ", run_single),
    _case("NSVQ", run_single, mode="diveq", diveq=True),
    _case("ResidualNSVQ", run_levels, 2),
    _case("ProductNSVQ", run_levels, 2),
)

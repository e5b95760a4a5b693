"""diveq under the contract."""

from __future__ import annotations

from typing import Any

import diveq
from torch import Tensor, nn

from .case import Case, Run, flat, offset_data

__all__ = ["CASES", "QUIET", "run_levels", "run_single", "tokens"]

ALL_BUT_MONITOR = frozenset({"reset", "commitment", "freeze", "fallback"})
QUIET: dict[str, Any] = {"allow_warning": False, "verbose": False}
CURVE: dict[str, Any] = {
    "allow_warning": False,
    "skip_iters": 2,
    "avg_iters": 1,
}  # quantises from the second forward on
CURVES: dict[str, Any] = CURVE | {"verbose": False, "replacement_iters": 2}


def tokens() -> Tensor:
    return offset_data(256, 8, channel=-1)


def run_single(module: nn.Module, x: Tensor) -> Run:
    q, codes, _ = module(x)
    return Run({"quantizer": flat(codes)}, (q - x.detach()).square().mean())


def run_levels(module: nn.Module, x: Tensor) -> Run:
    q, codes, _ = module(x)
    levels = {f"quantizer.{level}": flat(each) for level, each in enumerate(codes)}
    return Run(levels, (q - x.detach()).square().mean())


def _single(name: str, lacks: frozenset[str] = frozenset({"commitment"}), options: dict[str, Any] = QUIET) -> Case:
    return Case(
        package="diveq",
        cls=name,
        build=lambda: getattr(diveq, name)(16, 8, **options),
        batch=tokens,
        run=run_single,
        views=("quantizer",),
        lacks=lacks,
    )


def _levels(name: str, lacks: frozenset[str] = frozenset({"commitment"}), options: dict[str, Any] = QUIET) -> Case:
    return Case(
        package="diveq",
        cls=name,
        build=lambda: getattr(diveq, name)(16, 8, 2, **options),
        batch=tokens,
        run=run_levels,
        views=("quantizer.0", "quantizer.1"),
        lacks=lacks,
    )


CASES = (
    _single("DIVEQ"),
    _single("DIVEQDetach"),
    _single("SFDIVEQ", ALL_BUT_MONITOR, CURVE),
    _levels("ResidualDIVEQ"),
    _levels("ProductDIVEQ"),
    _levels("ResidualSFDIVEQ", ALL_BUT_MONITOR, CURVES),
    _levels("ProductSFDIVEQ", ALL_BUT_MONITOR, CURVES),
)

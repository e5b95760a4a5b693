"""The precision that a user asks for, put aside for a computation: autocast, and matrix products in TF32 or bfloat16.

Where nothing is reduced, which is the rule, nothing is touched: to enter autocast takes longer than many an operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

__all__ = ["full_precision", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off, and back as it was."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast and reduced precision of matrix products off, and back as they were."""
    products = _products()
    reduced = [(each, is_now) for each in products if (is_now := each.fp32_precision) not in ("none", "ieee")]
    return without_autocast(device) if products and not reduced else _full_products(device, reduced)


@contextmanager
def _full_products(device: torch.device, reduced: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Do so where the precision of some products is known to be reduced; of none given, it may be that of any."""
    with without_autocast(device), nullcontext() if reduced else full_precision_before_2_9():
        try:
            for product, _ in reduced:
                product.fp32_precision = "ieee"
            yield
        finally:
            for product, precision in reduced:
                product.fp32_precision = precision


@cache
def _products() -> list[Any]:
    """Return where the precision of matrix products is set; none before torch 2.9.

    Backend by backend, as the call for all of them raises where a user has set one. "none" stands for full precision.
    """
    backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
    return [each.matmul for each in backends if hasattr(getattr(each, "matmul", None), "fp32_precision")]


@contextmanager
def full_precision_before_2_9() -> Iterator[None]:
    """Let no product of any backend be reduced, as older versions have it."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)

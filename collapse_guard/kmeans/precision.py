"""The precision that a user asks for, put aside for a computation: autocast, and matrix products in TF32 or bfloat16.

Where nothing is reduced, which is the rule, nothing is touched: to enter autocast takes longer than many an operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

__all__ = ["full_precision", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off, and back as it was."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and reduced precision of matrix products off, and back as they were."""
    products = _products()
    reduced = [(each, each.fp32_precision) for each in products if each.fp32_precision not in ("none", "ieee")]
    with without_autocast(device):
        try:
            for product, _ in reduced:
                product.fp32_precision = "ieee"
            with nullcontext() if products else full_precision_before_2_9():
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
    """Do so for the products of all backends at once, as older versions have it."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)

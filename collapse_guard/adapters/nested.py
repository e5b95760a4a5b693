"""Tensors in what a module takes and returns, however it is nested."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["flatten_tensors", "given_tensor", "map_tensors"]


def flatten_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and objects with attributes (dataclasses), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flatten_tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flatten_tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from flatten_tensors(getattr(value, name))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and mappings with each tensor changed; anything else in them as it is.

    >>> import torch
    >>> map_tensors((torch.ones(1), {"loss": torch.zeros(1)}, None), lambda each: each + 1)
    (tensor([2.]), {'loss': tensor([1.])}, None)
    """
    if isinstance(value, Tensor):
        return change(value)
    kind: Any = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*(map_tensors(each, change) for each in value))
    if isinstance(value, (tuple, list)):
        return kind(map_tensors(each, change) for each in value)
    if isinstance(value, Mapping):
        return kind({key: map_tensors(each, change) for key, each in value.items()})
    return value


def given_tensor(method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor that a call hands over, in the order in which the method declares its parameters.

    Args:
        method: what was called, bound or not.
        args: its positional arguments, without `self`.
        kwargs: its keyword arguments, in the caller's order.

    >>> import torch
    >>> def forward(x, mask=None): ...
    >>> given_tensor(forward, (), {"mask": torch.zeros(2), "x": torch.ones(3)})
    tensor([1., 1., 1.])
    """
    if len(kwargs) > 1:
        order = _parameters(getattr(method, "__func__", method))
        kwargs = dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    return next(flatten_tensors((args, kwargs)), None)


@functools.lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(inspect.signature(function).parameters)}

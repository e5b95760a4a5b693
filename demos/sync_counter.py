"""A test double for a device: counts the operations that would make a program wait for one.

On a GPU the host waits whenever it asks for a value. Which calls ask does not depend on the device, so they can be
counted on the CPU: reading a scalar (`item`, `bool`, `int`, `float` of a tensor), copying to the host (`cpu`, `tolist`,
`numpy`, `to("cpu")`), and operations whose result has a size that only the values tell (`nonzero`, `unique`, selecting
by a mask).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SyncCounter"]

_SCALARS = {"_local_scalar_dense", "is_nonzero", "equal"}
_SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class SyncCounter:
    """Counts while it is entered.

    Attributes:
        counts: by name of the operation.

    >>> with SyncCounter() as syncs:
    ...     small = torch.ones(3) * 2
    >>> syncs.total
    0
    >>> with SyncCounter() as syncs:
    ...     rows = small[small > 1].cpu()
    >>> sorted(syncs.counts)
    ['cpu', 'index by mask']
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self.counts: Counter[str] = Counter()
        self._modes = (_Dispatched(self.counts), _Called(self.counts))

    @property
    def total(self) -> int:
        """How often the host would have waited."""
        return sum(self.counts.values())

    def __enter__(self) -> SyncCounter:
        """Begin to count."""
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]  # torch's, without annotations
        return self

    def __exit__(self, *what: Any) -> None:
        """Stop counting."""
        for mode in reversed(self._modes):
            mode.__exit__(*what)  # type: ignore[no-untyped-call]


class _Dispatched(TorchDispatchMode):
    """Sees what operations come to, in hooks and inside other operations too."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _SCALARS or name in _SIZED_BY_VALUES:
            self._counts[name] += 1
        elif name in _INDEXED and any(_is_mask(each) for each in args[1]):
            self._counts["index by mask"] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


_COPIES: dict[Callable[..., Any], str] = {Tensor.cpu: "cpu", Tensor.numpy: "numpy", Tensor.tolist: "tolist"}


class _Called(TorchFunctionMode):
    """Sees copies to the host, which do nothing, and are not dispatched, where a tensor is there already."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _COPIES:
            self._counts[_COPIES[func]] += 1
        elif func is Tensor.to and any(
            isinstance(each, str) and each == "cpu" for each in (*args[1:], *(kwargs or {}).values())
        ):
            self._counts["to the host"] += 1
        return func(*args, **(kwargs or {}))

"""Seeing inside one forward: what is the codebook compared with?

Attribute names lie and two tensors of a home-made quantizer often have the same shape, so structure alone cannot
tell the table from its moving sum, or raw latents from normalised ones. A trial forward of a *copy* of the module
can: the table is the stored tensor that takes part in a comparison with something as large as the input, and that
something are the latents.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Comparison", "Trial", "flatten_tensors", "run_trials"]

_COMPARISONS = frozenset(
    {
        "cdist",
        "mm",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "addmm",
        "bmm",
        "baddbmm",
        "linear",
        "einsum",
        "sub",
        "__sub__",
        "__rsub__",
        "rsub",
        "subtract",
        "cosine_similarity",
        "pairwise_distance",
    }
)
_TRIAL_SEED = 1234


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operands met: a stored (K, D) tensor, perhaps after a transformation, and something else.

    Attributes:
        source: name of the stored tensor on the module.
        table: (K, D) its values as they were used.
        other: the other operand, detached.
    """

    source: str
    table: Tensor
    other: Tensor


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial forward on a copy of a module.

    Attributes:
        given: the input.
        output: what came out.
        comparisons: what stored tensors met, in order.
        before: the stored tensors as the copy held them at the start.
        after: the same at the end.
    """

    given: Tensor
    output: Any
    comparisons: tuple[Comparison, ...]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


class _Tracer(TorchFunctionMode):
    """Records comparisons of stored tensors; follows them through operations that keep their size."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._sources = {tensor.untyped_storage().data_ptr(): name for name, tensor in stored.items()}
        self._sizes = {name: tensor.numel() for name, tensor in stored.items()}
        self._alive: list[Tensor] = []  # a freed storage could lend its address to another tensor
        self.comparisons: list[Comparison] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = [(tensor, self._source(tensor)) for tensor in flatten_tensors((args, kwargs or {}))]
        if getattr(func, "__name__", "") in _COMPARISONS:
            self._record(operands)
        result = func(*args, **(kwargs or {}))
        names = {name for _, name in operands if name is not None}
        if len(names) == 1 and isinstance(result, Tensor) and result.is_floating_point():
            name = names.pop()
            if result.numel() == self._sizes[name] and self._source(result) is None:
                self._sources[result.untyped_storage().data_ptr()] = name
                self._alive.append(result)
        return result

    def _source(self, tensor: Tensor) -> str | None:
        name = self._sources.get(tensor.untyped_storage().data_ptr())
        return name if name is not None and tensor.numel() == self._sizes[name] else None

    def _record(self, operands: list[tuple[Tensor, str | None]]) -> None:
        stored = [(tensor, name) for tensor, name in operands if name is not None]
        others = [tensor for tensor, name in operands if name is None and tensor.is_floating_point()]
        for tensor, name in stored:
            for other in others:
                self.comparisons.append(Comparison(name, tensor.detach().clone(), other.detach().clone()))


def run_trials(module: nn.Module, stored: Mapping[str, Tensor], D: int, *, training: bool = False) -> Iterator[Trial]:
    """Try a copy of the module on small random inputs of the usual layouts; yield the forwards that ran.

    The copy's stored tensors are filled with distinct random values first, so that a collapsed, an unset or a
    normalised codebook is no obstacle. Neither the module nor any random stream outside is touched: the streams
    are forked.

    Args:
        module: the candidate quantizer.
        stored: its tensors by dotted name; tensors of one dimension are counts.
        D: dimension of its latents.
        training: put the copy into training mode.
    """
    devices = sorted({t.device.index or 0 for t in stored.values() if t.device.type == "cuda"})
    for shape in ((24, D), (2, 12, D), (2, D, 3, 4), (2, D, 12)):
        with _streams_kept(devices), torch.no_grad():
            trial = _try(module, stored, shape, training)
        if trial is not None:
            yield trial


@contextmanager
def _streams_kept(devices: list[int]) -> Iterator[None]:
    """Put every global random stream back to where it was: torch's, numpy's and Python's own."""
    plain, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)


def _try(module: nn.Module, stored: Mapping[str, Tensor], shape: tuple[int, ...], training: bool) -> Trial | None:
    reference = next(iter(stored.values()))
    generator = torch.Generator().manual_seed(_TRIAL_SEED)
    given = torch.randn(shape, generator=generator).to(reference.device)
    try:
        # in float32: in half precision codes would not equal an exact search
        twin = copy.deepcopy(module).float().train(training)
        for part in twin.modules():  # the owner's hooks are for the owner's data
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        tensors = {name: _named(twin, name) for name in stored}
        for tensor in tensors.values():
            values = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(5 + values.abs() if tensor.ndim == 1 else values)
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with _Tracer(tensors) as tracer:
            output = twin(given.clone())
        after = {name: _named(twin, name).detach().clone() for name in stored}
    except Exception:  # foreign code may refuse a layout, or the copy, in any way; then there is nothing to learn
        return None
    return Trial(given, output, tuple(tracer.comparisons), before, after)


def _named(module: nn.Module, dotted: str) -> Tensor:
    path, _, attribute = dotted.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{dotted} is no tensor")
    return tensor


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

"""Keeping a quantizer's own updates away from its codebook while its forward goes on as before.

The quantizer computes codes, loss and straight-through output as always; only its *writes* do not last. Two ways:

- Divert: for the length of a forward the tensors that it would update are replaced by scratch copies, so that an EMA
  step, an expiry or a re-bound table falls on the scratch, and the real tensors never change (no version counter moves,
  no key of the state dict changes).
- Put back: one head of a shared tensor cannot be replaced without the others, and gradients must reach a table that
  an optimizer moves. What the codebook's own part held before a forward is put back after it, past the version counter:
  a graph that saved the tensor finds in it what it saw. The other heads keep their updates.

A part that an optimizer moves also gets no gradient, and is put back at each step boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.hooks import Hook

from .refs import TensorRef

__all__ = ["Freeze"]


class Freeze:
    """Keeps a module from changing the given tensors, or parts of them, until removed.

    Args:
        module: the module whose forward performs the updates.
        parts: where the tensors are; an owner is the module or a child of it.
        diverts: whether the tensors are replaced for a forward; only whole ones that no gradient must reach can be.
        outside: whether they are also written to outside of the module's forward; they are then put back before each
            forward that trains, and at each step boundary.
    """

    def __init__(self, module: nn.Module, parts: Sequence[TensorRef], *, diverts: bool, outside: bool = False) -> None:
        """Store what to keep; nothing is hooked before `install`."""
        self._module = module
        self._parts = list(dict.fromkeys(parts))
        self._diverts = diverts
        self._outside = outside
        self._depth = 0
        self._real: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Start to keep the tensors as they are now."""
        self.rebase()
        self._handles = [
            self._module.register_forward_pre_hook(Hook(self._begin), prepend=True),
            self._module.register_forward_hook(Hook(self._end), prepend=True, always_call=True),
            *(part.whole().register_hook(Hook(_Blind(part))) for part in self._parts if part.is_parameter),
        ]

    def remove(self) -> None:
        """Let go: the module writes to its own tensors again."""
        self._depth = min(self._depth, 1)
        self._end()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what was done since the last boundary to what an optimizer or somebody outside of the forward moves."""
        for index, kept in self._kept.items():
            self._parts[index].get().copy_(kept)

    def rebase(self) -> None:
        """Take what such tensors hold now as what is kept."""
        for index, part in enumerate(self._parts):
            if index in self._kept:  # in place: a CUDA graph may have been captured with it
                self._kept[index].copy_(part.get())
            elif self._outside or part.is_parameter:
                self._kept[index] = part.get().clone()

    def _begin(self, *_: Any) -> None:
        self._depth += 1
        if self._depth > 1:  # a forward that calls itself writes to the same scratch
            return
        if self._outside and self._module.training:
            for index, kept in self._kept.items():
                _put(self._parts[index], kept)
        if not self._diverts:
            self._real = [part.get().clone() for part in self._parts]
            return
        self._real = [part.whole() for part in self._parts]
        for part, tensor in zip(self._parts, self._real, strict=True):
            scratch = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            _place(part.owner, part.attribute, nn.Parameter(scratch, tensor.requires_grad) if is_parameter else scratch)

    def _end(self, *_: Any) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth:
            return
        for part, tensor in zip(self._parts, self._real, strict=True):
            if self._diverts:
                _place(part.owner, part.attribute, tensor)
            else:
                _put(part, tensor)
        self._real = []


class _Blind:
    """A gradient without the part that is frozen."""

    def __init__(self, part: TensorRef) -> None:
        self._part = part

    def __call__(self, gradient: Tensor) -> Tensor:
        blind = gradient.clone()
        self._part.part_of(blind).zero_()
        return blind


def _put(part: TensorRef, values: Tensor) -> None:
    """Write values past the version counter: they are what graphs that saved the tensor have seen."""
    part.part_of(part.whole().data).copy_(values)


def _place(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Bind a tensor to a name in the owner's own table, past `__setattr__` and its registration rules."""
    tables: list[dict[str, Any]] = [owner._parameters, owner._buffers]
    for table in tables:
        if name in table:
            table[name] = tensor
            return
    object.__setattr__(owner, name, tensor)

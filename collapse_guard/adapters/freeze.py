"""Keeping a quantizer's own updates away from its codebook while its forward goes on as before.

The quantizer computes codes, loss and straight-through output as always. Only its *writes* are diverted: for the
length of a forward the tensors it would update are replaced by scratch copies, so that an EMA step, an expiry or a
re-bound table falls on the scratch, and the real tensors never change (no version counter moves, no write between
forward and backward, no key of the state dict changes). A table that an optimizer moves cannot be diverted so; its
gradient is zeroed and it is put back at each step boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.hooks import Hook

__all__ = ["Freeze"]


class Freeze:
    """Diverts a module's writes to the given tensors, until removed.

    Args:
        module: the module whose forward performs the updates.
        tensors: (owner, attribute) of each parameter or buffer to keep; an owner is the module or a child of it.
        diverts: whether the module itself writes to them; else only an optimizer does, and gradients must reach them.
    """

    def __init__(self, module: nn.Module, tensors: Sequence[tuple[nn.Module, str]], *, diverts: bool) -> None:
        """Store what to keep; nothing is hooked before `install`."""
        self._module = module
        self._tensors = list(dict.fromkeys(tensors))
        self._diverts = diverts
        self._depth = 0
        self._real: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Start to keep the tensors as they are now."""
        self.rebase()
        learnable = [getattr(owner, name) for owner, name in self._learnable()]
        self._handles = [
            self._module.register_forward_pre_hook(Hook(self._divert), prepend=True),
            self._module.register_forward_hook(Hook(self._put_back), prepend=True, always_call=True),
            *(parameter.register_hook(torch.zeros_like) for parameter in learnable),
        ]

    def remove(self) -> None:
        """Let go: the module writes to its own tensors again."""
        self._depth = min(self._depth, 1)
        self._put_back()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what an optimizer did to learnable tensors since the last boundary."""
        for index, kept in self._kept.items():
            owner, name = self._tensors[index]
            getattr(owner, name).copy_(kept)

    def rebase(self) -> None:
        """Take what the learnable tensors hold now as what is kept."""
        learnable = set(self._learnable())
        self._kept = {
            index: getattr(owner, name).detach().clone()
            for index, (owner, name) in enumerate(self._tensors)
            if (owner, name) in learnable
        }

    def _learnable(self) -> list[tuple[nn.Module, str]]:
        return [
            (owner, name)
            for owner, name in self._tensors
            if isinstance(parameter := getattr(owner, name), nn.Parameter) and parameter.requires_grad
        ]

    def _divert(self, *_: Any) -> None:
        self._depth += 1
        if self._depth > 1 or not self._diverts:  # a forward that calls itself writes to the same scratch
            return
        self._real = [getattr(owner, name) for owner, name in self._tensors]
        for (owner, name), tensor in zip(self._tensors, self._real, strict=True):
            scratch = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            _place(owner, name, nn.Parameter(scratch, tensor.requires_grad) if is_parameter else scratch)

    def _put_back(self, *_: Any) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth or not self._diverts:
            return
        for (owner, name), tensor in zip(self._tensors, self._real, strict=True):
            _place(owner, name, tensor)
        self._real = []


def _place(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Bind a tensor to a name in the owner's own table, past `__setattr__` and its registration rules."""
    tables: list[dict[str, Any]] = [owner._parameters, owner._buffers]
    for table in tables:
        if name in table:
            table[name] = tensor
            return
    object.__setattr__(owner, name, tensor)

"""The hold of `restore_layout`: a quantizer is given its latents position by position, and what it returns is mixed.

What stands around the quantizer expects the numbers where they were, so that the quantised vectors are put back there;
codes stay where their positions are. A hook that fails takes nothing down: the quantizer is then called as its owner
calls it, and the intervention says so at a step boundary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.adapters.nested import flatten_tensors, map_tensors
from collapse_guard.hooks import Hook
from collapse_guard.mix import Mix

from .holds import HookedHold

__all__ = ["LayoutHold"]


class LayoutHold(HookedHold):
    """Takes a mix back before each forward of a quantizer, in training and evaluation, and makes it again after it.

    Args:
        module: the whole quantizer.
        D: dimension of what it is given.

    Attributes:
        mix: what is taken back. is_last: whether channels lie last in what the quantizer is given; else they lie at
            axis 1. Both are set before `install`.
        has_acted: whether a forward of the quantizer was rearranged.
    """

    name = "layout"

    def __init__(self, module: nn.Module, D: int) -> None:
        """Store the parts; nothing is hooked before `install`."""
        super().__init__()
        self.mix = Mix(channels_first=True, positions=0)
        self.is_last = True
        self.has_acted = False
        self._module, self._D = module, D
        self._given: torch.Size | None = None  # of the forward that runs

    @property
    def place(self) -> Hashable:
        """The quantizer."""
        return self.name, id(self._module)

    def describe(self) -> dict[str, Any]:
        """Return what was reshaped to what."""
        return {"reshaped": "(B, D, T) to (B, T, D)" if self.mix.channels_first else "(B, T, D) to (B, D, T)"}

    def _hook(self) -> list[RemovableHandle]:
        """Hook the quantizer: those that look at it see what it is given and returns by itself."""
        return [
            self._module.register_forward_pre_hook(Hook(self._before), with_kwargs=True, prepend=True),
            self._module.register_forward_hook(Hook(self._after), with_kwargs=True),
        ]

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._given = None
        if self._failure is not None:
            return None
        try:
            given = self._understood((args, kwargs))
            changed = map_tensors((args, kwargs), lambda _: self._rearranged(given, self.mix.taken_back))
        except Exception as error:  # the user's forward must not fail for the guard
            self._failure = error
            return None
        self._given, self.has_acted = given.shape, True
        return changed[0], changed[1]

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        shape, self._given = self._given, None
        if shape is None:
            return None
        try:
            if not any(_is_like(each, shape) for each in flatten_tensors(output)):
                raise ValueError(f"expected vectors of {tuple(shape)} from {type(module).__name__}, found none")
            return map_tensors(
                output, lambda each: self._rearranged(each, self.mix.made) if _is_like(each, shape) else each
            )
        except Exception as error:
            self._failure = self._failure or error
            return None

    def _understood(self, call: Any) -> Tensor:
        """Return the one tensor that a call hands over.

        Raises:
            ValueError: it hands over another number of them, such as a mask, or one of another shape.
        """
        tensors = list(flatten_tensors(call))
        name = type(self._module).__name__
        if len(tensors) != 1:
            raise ValueError(f"expected {name} to be given latents alone, got {len(tensors)} tensors, such as a mask")
        axis = -1 if self.is_last else 1
        if tensors[0].ndim < 3 or tensors[0].shape[axis] != self._D:
            expected = f"(B, ..., {self._D})" if self.is_last else f"(B, {self._D}, ...)"
            raise ValueError(f"expected {name} to be given {expected}, got {tuple(tensors[0].shape)}")
        return tensors[0]

    def _rearranged(self, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (B, ..., D), or (B, D, ...), with its vectors rearranged within each sample, contiguous."""
        tokens = values if self.is_last else values.movedim(1, -1)
        B, *places, D = tokens.shape
        changed = change(tokens.reshape(B, math.prod(places), D)).reshape(tokens.shape)
        return (changed if self.is_last else changed.movedim(-1, 1)).contiguous()


def _is_like(value: Tensor, shape: torch.Size) -> bool:
    return value.is_floating_point() and value.shape == shape

"""The hold of `bridge_gradient`: what is decoded has the quantizer's values and hands its gradient on to the encoder.

Where codes are handed on plain or detached, the modules that decode them are given the same values with the path in the
autograd graph that was missing. They are found by their input: a view of what the quantizer returned, in the same
memory. The loss of the quantizer, and what else is made of its output, stays as it is.

For a step it is only looked who decodes. What activation checkpointing computes anew within a backward is left alone,
since it has to come to the same graph. A hook that fails takes nothing down: the model is then called as its owner
calls it, and the intervention says so at a step boundary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from collapse_guard.adapters.nested import flatten_tensors, map_tensors
from collapse_guard.graph import leads_to
from collapse_guard.hooks import Hook
from collapse_guard.probe import inside_backward

from .holds import HookedHold

__all__ = ["BridgeHold"]

_CALLS = 4  # of the quantizer that are remembered until the step is over
_TRIES = 8  # steps in which nobody was met


class _Call(NamedTuple):
    """A call of the quantizer: what it was given and returned, and whether the one has a path to the other."""

    source: Tensor
    result: Tensor
    has_path: bool

    def is_cut_in(self, value: Tensor) -> bool:
        """Whether a tensor is what was returned, or a view of all of it, without the path."""
        is_cut = not (self.has_path and value.requires_grad)
        return is_cut and value.numel() == self.result.numel() and _memory(value) == _memory(self.result)

    def stand_in(self, value: Tensor) -> Tensor:
        """Return the same values, arranged alike, with the path.

        Raises:
            ValueError: they lie too oddly in memory.
        """
        whole = self.result
        if not self.has_path:
            whole = _bridge(self.source, self.result if value.requires_grad else self.result.detach())
        if whole.stride() != self.result.stride():
            raise ValueError(f"expected vectors side by side in memory, got strides of {self.result.stride()}")
        if value.shape == whole.shape and value.stride() == whole.stride():
            return whole
        offset = value.storage_offset() - self.result.storage_offset() + whole.storage_offset()
        return whole.as_strided(value.size(), value.stride(), offset)


class _Bridge(torch.autograd.Function):
    """The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432): values of one, gradient to both."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, quantised: Tensor) -> Tensor:
        """Return the quantised values, in memory of their own: others may write to theirs."""
        return quantised.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Hand the gradient to both."""
        return gradients[0], gradients[0]


def _bridge(given: Tensor, quantised: Tensor) -> Tensor:
    bridged: Tensor = _Bridge.apply(given, quantised)  # type: ignore[no-untyped-call]
    return bridged


class BridgeHold(HookedHold):
    """Hands the gradient of what is decoded on to what a quantizer was given, in training.

    Args:
        model: in which the quantizer's output is decoded.
        module: the whole quantizer. trains: the module that says whether it is trained.
        optimizers: by whose steps it is told when a step is over.

    Attributes:
        met: paths of the modules that are given the quantizer's values. is_looking: whether they are looked for, and
            nothing is handed on yet. steps: in which nobody was met, one after the other.
    """

    name = "straight_through"

    def __init__(self, model: nn.Module, module: nn.Module, trains: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Store the parts; nothing is hooked before `install`."""
        super().__init__()
        self.met: list[str] = []
        self.is_looking = True
        self.steps = 0
        self._model, self._module, self._trains, self._optimizers = model, module, trains, tuple(optimizers)
        self._calls: deque[_Call] = deque(maxlen=_CALLS)
        self._at_decoders: list[RemovableHandle] = []
        self._is_recomputed = self._has_bridged = False

    @property
    def place(self) -> Hashable:
        """The quantizer."""
        return self.name, id(self._module)

    def describe(self) -> dict[str, Any]:
        """Return where the gradient is handed on."""
        return {"at": ", ".join(self.met) or "what is given its output"}

    def _hook(self) -> list[RemovableHandle]:
        """Hook the quantizer, the steps, and whatever decodes what it returns, or may."""
        after = self._module.register_forward_hook(Hook(self._after), with_kwargs=True)
        ends = [each.register_step_post_hook(self._end) for each in self._optimizers]
        return [after, *ends, *self._hook_decoders()]

    def _hook_decoders(self) -> list[RemovableHandle]:
        """Hook what was met, or while it is looked whatever has weights."""
        own = set(self._module.modules())
        self._at_decoders = [
            module.register_forward_pre_hook(Hook(self._before(path)), with_kwargs=True)
            for path, module in self._model.named_modules()
            if (next(module.parameters(), None) is not None if self.is_looking else path in self.met)
            and module not in own
        ]
        return self._at_decoders

    def remove(self) -> None:
        """Take the hooks out and let go of the last forwards."""
        super().remove()
        self._calls.clear()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if self._failure is not None:
            return
        if inside_backward():
            self._is_recomputed = True
        elif self._trains.training and torch.is_grad_enabled():
            try:
                source = next((each for each in flatten_tensors((args, kwargs)) if each.is_floating_point()), None)
                if source is not None and source.requires_grad:
                    self._calls.append(self._call(source, output))
            except Exception as error:  # the user's forward must not fail for the guard
                self._failure = error

    def _call(self, source: Tensor, output: Any) -> _Call:
        """Return a call; what it returned is what has a path to its input, or else what has its shape.

        Raises:
            ValueError: nothing is alike.
        """
        alike = [each for each in flatten_tensors(output) if each.is_floating_point() and each.ndim > 1]
        alike = [each for each in alike if each.numel() == source.numel() and each is not source]
        alike.sort(key=lambda each: each.shape != source.shape)
        if (found := next((each for each in alike if leads_to(each, source)), None)) is not None:
            return _Call(source, found, has_path=True)
        if (found := next((each for each in alike if each.shape == source.shape), None)) is not None:
            return _Call(source, found, has_path=False)
        raise ValueError(
            f"expected vectors of {tuple(source.shape)} from {type(self._module).__name__}, as it is given, found none"
        )

    def _before(self, path: str) -> Callable[..., Any]:
        def bridge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._failure is not None or not torch.is_grad_enabled():
                return None
            if inside_backward():
                self._is_recomputed |= path in self.met
                return None
            try:
                cut = {id(each): call for each in flatten_tensors((args, kwargs)) if (call := self._of(each))}
                if not cut:
                    return None
                if self.is_looking:
                    self.met += [path] if path not in self.met and not self._is_inside(path) else []
                    return None
                self._has_bridged = True
                return map_tensors(
                    (args, kwargs), lambda each: cut[id(each)].stand_in(each) if id(each) in cut else each
                )
            except Exception as error:
                self._failure = error
                return None

        return bridge

    def _of(self, value: Tensor) -> _Call | None:
        """Return the latest call of which a tensor is what was returned, without the path."""
        return next((call for call in reversed(self._calls) if call.is_cut_in(value)), None)

    def _is_inside(self, path: str) -> bool:
        """Whether a module lies in one that was met: that hands on what it is given."""
        return any(path.startswith(f"{each}.") for each in self.met)

    def _end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """End a step of an optimizer: one that no training forward of the quantizer came before says nothing."""
        has_called = bool(self._calls)
        self._calls.clear()
        if self.is_looking and self._is_recomputed:
            self._failure = self._failure or RuntimeError(
                "activation checkpointing computes what decodes its codes, or the quantizer, anew within the backward"
            )
        if not has_called or self._failure is not None:
            return
        is_met, self._has_bridged = bool(self.met) if self.is_looking else self._has_bridged, False
        self.steps = 0 if is_met else self.steps + 1
        if self.is_looking and is_met:
            self.is_looking = False
            for handle in self._at_decoders:
                handle.remove()
            self._handles = [each for each in self._handles if each not in self._at_decoders]
            self._handles += self._hook_decoders()
        elif self.steps >= _TRIES:
            what = "again: it was copied on the way, or what decodes it is compiled"
            what = what if self.is_looking else f"any more by {', '.join(self.met)}"
            self._failure = RuntimeError(f"what the quantizer returned was not met {what}")


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()

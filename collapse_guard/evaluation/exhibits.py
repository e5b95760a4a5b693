"""Exhibits: a few inputs of the model, kept so that a forward can be done again when evaluation looks collapsed.

What is kept are the arguments of the outermost module call in which the quantizer was called, cut to a bounded number
of samples. They are copied on their device and never leave it. Where a loop calls the encoder and the quantizer one
after the other by itself, that call may be the quantizer's own; a loop that hands its batches in (`offer`) has those
kept beside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.hooks import Hook

__all__ = ["Exhibit", "Exhibits"]

_MOST_ELEMENTS = 1 << 19  # 2 MiB of float32
_KEPT_OF_TRAINING = 8
_KEPT_OF_EVALUATION = 6
_GAP = 5  # forwards between two that are kept


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One input.

    Attributes:
        path: module that was called; empty for the model itself.
        args, kwargs: what it was called with.
        batch: the one that this was part of, where the loop handed it in and something less than the model was called.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: Any = None


class Exhibits:
    """Keeps inputs of training, and of the evaluation that is running.

    Args:
        model: the root.
        paths: of the modules that assign codes.
        sees_calls: whether codes are assigned in their forwards; where they are not, any call above them counts.
        on_error: told once of an exception in here; nothing is kept from then on.

    Attributes:
        training, evaluation: what is kept, oldest first.
        trained: paths of the modules that were in training mode when training was last looked at.
    """

    def __init__(
        self, model: nn.Module, paths: Sequence[str], *, sees_calls: bool, on_error: Callable[[Exception], None]
    ) -> None:
        """Store the model; nothing is hooked before `install`."""
        self._model = model
        modules = dict(model.named_modules())
        above = {"", *(path[:end] for path in paths for end, sign in enumerate(f"{path}.") if sign == ".")}
        self._modules = {path: modules[path] for path in sorted(above)}
        self._quantizers = [modules[path] for path in paths] if sees_calls else list(self._modules.values())
        self._on_error = on_error
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._outermost: Exhibit | None = None
        self._saw_quantizer = False
        self._calls = 0
        self._batch: Any = None
        self._on_first: Callable[[], None] | None = None
        self.training: deque[Exhibit] = deque(maxlen=_KEPT_OF_TRAINING)
        self.evaluation: deque[Exhibit] = deque(maxlen=_KEPT_OF_EVALUATION)
        self.trained: frozenset[str] = frozenset()
        self.is_evaluating = False

    def install(self) -> None:
        """Begin to watch the calls."""
        for path, module in self._modules.items():
            begin = Hook(lambda module, args, kwargs, path=path: self._begin(path, module, args, kwargs))
            self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            self._handles.append(module.register_forward_hook(Hook(self._end), always_call=True))

    def remove(self) -> None:
        """Stop, and let go of what was kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.training.clear()
        self.evaluation.clear()

    def offer(self, batch: Any) -> None:
        """Take the batch that a step is about to be made of, for loops that call no module as a whole."""
        self._batch = batch

    def begin_evaluation(self, on_first: Callable[[], None]) -> None:
        """What comes now belongs to evaluation; `on_first` is called once, just before its first forward."""
        self.evaluation.clear()
        self.is_evaluating, self._calls, self._batch, self._on_first = True, 0, None, on_first

    def end_evaluation(self) -> None:
        """What comes now belongs to training."""
        self.is_evaluating, self._calls, self._batch, self._on_first = False, 0, None, None

    def _begin(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._depth == 0:
            self._outermost, self._saw_quantizer = Exhibit(path, args, kwargs), False
            if self._on_first is not None:
                self._call_first(self._on_first)
        self._depth += 1
        self._saw_quantizer = self._saw_quantizer or any(module is each for each in self._quantizers)

    def _call_first(self, on_first: Callable[[], None]) -> None:
        self._on_first = None
        try:
            on_first()
        except Exception as error:  # as in `_end`
            self.remove()
            self._on_error(error)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth:
            return
        outermost, self._outermost = self._outermost, None
        if outermost is None or not self._saw_quantizer or not (self.is_evaluating or module.training):
            return
        try:
            self._keep(outermost)
        except Exception as error:  # the watched forward must not fail for what is kept of it
            self.remove()
            self._on_error(error)

    def _keep(self, outermost: Exhibit) -> None:
        """Copy what was seen, every few calls; of evaluation, ever more sparsely, so that all of it is represented."""
        calls, self._calls = self._calls, self._calls + 1
        if self.is_evaluating:
            if calls & (calls - 1):  # not 0, 1, 2, 4, 8, ...
                return
        elif calls % _GAP:
            return
        else:
            self.trained = frozenset(path for path, module in self._model.named_modules() if module.training)
        kept = self.evaluation if self.is_evaluating else self.training
        batch = self._batch if outermost.path else None
        with torch.no_grad():
            args, kwargs = _copied((outermost.args, dict(outermost.kwargs)))
            kept.append(Exhibit(outermost.path, args, kwargs, _copied(batch)))


def _copied(value: Any) -> Any:
    """Copy the tensors of plain containers, the first samples of them where there are too many."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    _walk(value, note)
    largest = max(tensors, key=Tensor.numel, default=None)
    size = most = -1
    if largest is not None and largest.ndim and largest.numel() > _MOST_ELEMENTS:
        size = len(largest)
        most = max(1, size * _MOST_ELEMENTS // largest.numel())

    def cut(tensor: Tensor) -> Tensor:
        part = tensor[:most] if tensor.ndim and len(tensor) == size else tensor
        return part.detach().clone()

    return _walk(value, cut)


def _walk(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return plain containers with each tensor exchanged; anything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _walk(each, change) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_walk(each, change) for each in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_walk(each, change) for each in value)
    return value

"""Hooks that stay behind when a model is copied or pickled.

A user's model may be deep-copied (weight averaging), pickled (spawned ranks) or saved whole while the guard watches
it. The copy is not watched, so its hooks must be inert, and must not drag the guard, its files or its windows along.

`torch.compile` leaves a graph where a hook is called and enters the next one after it: recording is not compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = ["Bystander", "Hook"]

_REASON = (
    "collapse_guard watches this quantizer by a hook, which ends a compiled graph: with fullgraph=True, leave the "
    "quantizer out of it, or compile without fullgraph"
)


class Hook:
    """A callable that forwards to `target`; its copies and its unpickled selves do nothing.

    >>> import copy
    >>> hook = Hook(lambda: print("seen"))
    >>> hook()
    seen
    >>> copy.deepcopy(hook)()
    """

    __slots__ = ("_target",)

    def __init__(self, target: Callable[..., Any] | None = None) -> None:
        """Store the target; `None` makes an inert hook."""
        self._target = None if target is None else _outside_of_graphs(target)

    @property
    def is_live(self) -> bool:
        """Whether calling it does anything."""
        return self._target is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward to the target, if there is one."""
        return self._target(*args, **kwargs) if self._target is not None else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        """Return an inert hook."""
        return Hook()

    def __copy__(self) -> Hook:
        """Return an inert hook."""
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        """Pickle as an inert hook."""
        return Hook, ()


class Bystander(Hook):
    """A hook of somebody who does not watch the module: a guard may still be attached to it."""

    __slots__ = ()


def _outside_of_graphs(target: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile from tracing into a target; where no graph may be left, the compiler's error says why."""
    disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
    return disable(target, reason=_REASON) if _takes_reason() else disable(target)


@cache
def _takes_reason() -> bool:
    return "reason" in inspect.signature(torch.compiler.disable).parameters  # torch 2.7 and newer

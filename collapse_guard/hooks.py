"""Hooks that stay behind when a model is copied or pickled.

A user's model may be deep-copied (weight averaging), pickled (spawned ranks) or saved whole while the guard watches
it. The copy is not watched, so its hooks must be inert, and must not drag the guard, its files or its windows along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Hook"]


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
        self._target = target

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

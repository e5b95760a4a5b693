"""Holds: hooks that an intervention keeps in force for a while, within the steps of the optimizers.

Nothing that a scheduler, a checkpoint or a logger reads is written: what a hold changes, it changes for the length of
one `optimizer.step()` and puts back. A hook that fails takes nothing down: it is silent from then on, and the
intervention that owns it says so at the next step boundary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["Hold", "HookedHold", "StepHold"]


class Hold(ABC):
    """Hooks that can be put in and taken out.

    Attributes:
        name: what they do, in a manifest.
    """

    name: str

    @property
    @abstractmethod
    def place(self) -> Hashable:
        """What they act on: equal for two holds that act on the same."""

    @property
    @abstractmethod
    def is_in_force(self) -> bool:
        """Whether they are in."""

    @abstractmethod
    def install(self) -> None:
        """Put them in; nothing happens where they are."""

    @abstractmethod
    def remove(self) -> None:
        """Take them out and leave nothing behind; nothing happens where they are not in."""

    def describe(self) -> dict[str, Any]:
        """Return what they do in numbers, as plain data."""
        return {}

    _failure: Exception | None = None

    def raise_failure(self) -> None:
        """Take the hooks out and raise what one of them failed with, if one did.

        Raises:
            Exception: as the hook raised it.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            self.remove()
            raise failure


class HookedHold(Hold):
    """A hold that is in force as long as it has handles."""

    def __init__(self) -> None:
        """Nothing is hooked before `install`."""
        self._handles: list[RemovableHandle] = []

    @property
    def is_in_force(self) -> bool:
        """Whether the hooks are in."""
        return bool(self._handles)

    def install(self) -> None:
        """Put the hooks in, unless they are."""
        if not self._handles:
            self._failure = None
            self._handles = self._hook()

    @abstractmethod
    def _hook(self) -> list[RemovableHandle]:
        """Put the hooks in; return their handles."""

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class StepHold(HookedHold):
    """Something done around the steps of optimizers.

    A loop may hand the optimizer a closure that computes the gradients within the step (Lightning does): what needs
    the gradients is then done after the closure, and what is to last for the length of the step before it.

    Args:
        name: what is done.
        optimizers: around whose steps.
        before: done before the step moves anything.
        after: done once the step is over.
        needs_gradients: whether `before` looks at the gradients of this step.
    """

    def __init__(
        self,
        name: str,
        optimizers: Sequence[Optimizer],
        *,
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None] = lambda optimizer: None,
        needs_gradients: bool = False,
    ) -> None:
        """Store the parts; nothing is hooked before `install`."""
        super().__init__()
        self.name = name
        self._optimizers = tuple(optimizers)
        self._before, self._after = before, after
        self._needs_gradients = needs_gradients

    @property
    def place(self) -> Hashable:
        """What is done, and to which optimizers."""
        return self.name, tuple(map(id, self._optimizers))

    def _hook(self) -> list[RemovableHandle]:
        """Hook every optimizer."""
        handles: list[RemovableHandle] = []
        for optimizer in self._optimizers:
            handles.append(optimizer.register_step_pre_hook(self._begin))
            ended = optimizer.register_step_post_hook(self._end)
            # What was begun last is ended first, so that holds on one optimizer nest; torch would end it last.
            optimizer._optimizer_step_post_hooks.move_to_end(ended.id, last=False)  # type: ignore[attr-defined]
            handles.append(ended)
        return handles

    def remove(self) -> None:
        """Unhook; a step that was broken off by an exception is ended first."""
        if self._handles and self._failure is None:
            for optimizer in self._optimizers:
                self._after(optimizer)
        super().remove()

    def _begin(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not self._needs_gradients or not callable(closure):
            self._guarded(self._before, optimizer)
            return None

        def with_gradients() -> Any:
            loss = closure()
            self._guarded(self._before, optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": with_gradients}
        return (*args[:1], with_gradients, *args[2:]), kwargs

    def _end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded(self._after, optimizer)

    def _guarded(self, act: Callable[[Optimizer], None], optimizer: Optimizer) -> None:
        """Do it, unless it failed before: the step must not fail for the guard."""
        if self._failure is not None:
            return
        try:
            act(optimizer)
        except Exception as error:  # foreign optimizers may fail in any way
            self._failure = error

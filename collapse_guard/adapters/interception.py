"""Observing methods that no hook sees: `encode`, `quantize`, `inference`.

Several codecs never call the `forward` of their quantizers, so module hooks stay silent. The instance's class is
exchanged for a subclass whose methods call the original and report; the class is put back when the last observer
leaves. A copied or unpickled module is of the original class and reports to nobody, and what was pickled needs neither
this package nor its guard to be read.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from collapse_guard.hooks import Bystander, Hook

__all__ = ["Interception", "InterceptionError"]

_OBSERVERS = "_collapse_guard_observers"
_ORIGINAL = "_collapse_guard_original"

Observer = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], None]
"""(module, args, kwargs, output) of one call, as a forward hook with keyword arguments gets them."""


class InterceptionError(RuntimeError):
    """The methods of this module cannot be observed; says why and what to do instead."""


class Interception:
    """Reports calls of some methods of one module, until removed.

    Args:
        module: the quantizer.
        observers: method name -> told of each call after it returned.
        hook: how the observers stay behind when the module is copied; a `Bystander` does not count as watching it.
    """

    def __init__(
        self, module: nn.Module, observers: Mapping[str, Observer], *, hook: Callable[[Observer], Hook] = Hook
    ) -> None:
        """Store the parts; the class is exchanged by `install`."""
        self._module = module
        self._hooks = {method: hook(observer) for method, observer in observers.items()}

    def install(self) -> None:
        """Begin to report.

        Raises:
            InterceptionError: the module lacks a method, or its class cannot be exchanged.
        """
        module = self._module
        if missing := [method for method in self._hooks if not callable(getattr(type(module), method, None))]:
            raise InterceptionError(f"{type(module).__name__} has no method {missing[0]!r} to observe")
        observers: dict[str, list[Hook]] = module.__dict__.setdefault(_OBSERVERS, {})
        original = _original(type(module))
        try:
            module.__class__ = _subclass(original, frozenset({*observers, *self._hooks}))
        except TypeError as error:
            if not observers:
                del module.__dict__[_OBSERVERS]
            raise InterceptionError(
                f"the class {original.__name__} cannot be exchanged for one that reports its calls ({error}); "
                f"describe the quantizer by GenericVQ on a module whose forward runs"
            ) from error
        for method, hook in self._hooks.items():
            observers.setdefault(method, []).append(hook)

    def remove(self) -> None:
        """Stop reporting; the class is put back once nobody observes the module any more."""
        observers = self._module.__dict__.get(_OBSERVERS)
        if observers is None:
            return
        for method, hook in self._hooks.items():
            observers[method] = [each for each in observers.get(method, []) if each is not hook]
        if not any(observers.values()):
            del self._module.__dict__[_OBSERVERS]
            self._module.__class__ = _original(type(self._module))

    @staticmethod
    def is_on(module: nn.Module) -> bool:
        """Whether calls of this module are being reported to somebody who watches it."""
        observers: dict[str, list[Hook]] = module.__dict__.get(_OBSERVERS, {})
        return any(not isinstance(hook, Bystander) for hooks in observers.values() for hook in hooks)


def _original(cls: type[Any]) -> type[Any]:
    """Return the class that a module had before any exchange."""
    original: type[Any] = cls.__dict__.get(_ORIGINAL, cls)
    return original


def _subclass(original: type[Any], methods: frozenset[str]) -> type[Any]:
    """Make the reporting subclass; it looks like the original, and copies and pickles as the original."""
    body: dict[str, Any] = {method: _report(getattr(original, method), method) for method in methods}
    body |= {name: getattr(original, name) for name in ("__module__", "__doc__", "__qualname__")}
    own_copies = {name: getattr(original, name) for name in ("__copy__", "__deepcopy__") if hasattr(original, name)}
    body |= {name: _released(method) for name, method in own_copies.items()}
    return type(original.__name__, (original,), body | {_ORIGINAL: original, "__reduce_ex__": _reduce})


def _report(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def reporting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = method(self, *args, **kwargs)
        for hook in self.__dict__.get(_OBSERVERS, {}).get(name, ()):
            hook(self, args, kwargs, output)
        return output

    return reporting


def _released(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a class's own way of copying, which may copy the reporting class and the observers along."""

    @functools.wraps(method)
    def copying(self: nn.Module, *args: Any) -> Any:
        copied = method(self, *args)
        if copied is not self and type(copied) is type(self):
            copied.__dict__.pop(_OBSERVERS, None)
            copied.__class__ = _original(type(self))
        return copied

    return copying


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Reduce a module as one of its original class, without its observers."""
    reporting: Any = type(self)
    original: Any = _original(reporting)
    reduced = original.__reduce_ex__(self, protocol)
    if isinstance(reduced, str):
        return reduced
    make, args, *rest = reduced
    args = [original if part is reporting else part for part in args]
    # pickle insists that what these two make is of the class of what it pickles, so the same is said otherwise.
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]
        make, args = functools.partial(original.__new__, *args), []
    elif make is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
        cls, given, named = args
        make, args = functools.partial(original.__new__, cls, *given, **named), []
    state = [_unobserved(each) for each in rest[:1]]
    return (original if make is reporting else make, tuple(args), *state, *rest[1:])


def _unobserved(state: Any) -> Any:
    """Return the state of a module without its observers."""
    if isinstance(state, tuple):  # with slots: (what __dict__ holds, what the slots hold)
        return tuple(_unobserved(part) for part in state)
    if isinstance(state, dict):
        return {key: value for key, value in state.items() if key != _OBSERVERS}
    return state

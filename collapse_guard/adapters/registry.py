"""The registry of adapters: the built-in families, and those that other packages bring along.

A third party registers an adapter in code, or announces it under the entry-point group `collapse_guard.adapters`;
such adapters are asked before the built-in ones. An entry point is loaded when the registry is first asked, and one
that fails to load is reported and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from torch import nn

from .base import CodebookView, Unrecognised
from .families import BUILT_IN, BY_TRIAL

__all__ = ["ENTRY_POINT_GROUP", "Adapter", "Match", "adapters", "register_adapter", "unregister_adapter"]

ENTRY_POINT_GROUP = "collapse_guard.adapters"

Match = Callable[[str, nn.Module], "Sequence[CodebookView | Unrecognised] | None"]
"""(path, module) -> the codebooks of a quantizer of this family; `None` where the module is none of it."""

_logger = logging.getLogger("collapse_guard")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Translates one family of quantizers.

    Attributes:
        name: shown with each codebook; unique among adapters.
        match: recognises a module by its structure and describes its codebooks. It is asked of every module of a
            model, outermost first; what lies below a recognised module is not asked again. It must not change the
            module and must not import the library that it recognises.
        covers: whose classes it recognises, for people.
        innermost: asked after all other adapters, of the innermost modules first, also of those around what was
            recognised: for one that tries copies, which is dear, and to which an owner looks much like what it owns.
    """

    name: str
    match: Match
    covers: str = ""
    innermost: bool = False


_registered: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> None:
    """Add an adapter; it is asked before the built-in ones, and before those registered earlier.

    Raises:
        TypeError: not an `Adapter`.
        ValueError: the name is taken.
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(f"expected an Adapter(name, match), got {type(adapter).__name__}: {adapter!r}")
    if adapter.name in {known.name for known in adapters()}:
        names = ", ".join(known.name for known in adapters())
        raise ValueError(f"an adapter named {adapter.name!r} is registered already; pick another name than: {names}")
    _registered[adapter.name] = adapter


def unregister_adapter(name: str) -> None:
    """Take a registered adapter out again.

    Raises:
        LookupError: no adapter of this name was registered; built-in ones and entry points stay.
    """
    if name not in _registered:
        raise LookupError(f"no registered adapter {name!r}; registered: {', '.join(_registered) or 'none'}")
    del _registered[name]


def adapters() -> tuple[Adapter, ...]:
    """Return all adapters in the order in which they are asked."""
    return (*reversed(_registered.values()), *_announced(), *_built_in())


def _built_in() -> tuple[Adapter, ...]:
    return (
        *(Adapter(*family) for family in BUILT_IN),
        *(Adapter(*family, innermost=True) for family in BY_TRIAL),
    )


@cache
def _announced() -> tuple[Adapter, ...]:
    """Load the entry points once; one that cannot be used is told and left out."""
    found: dict[str, Adapter] = {}
    taken = {adapter.name for adapter in _built_in()}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            adapter = point.load()
        except Exception as error:  # a broken plug-in of somebody else must not take the guard down
            _logger.warning("adapter %s was left out: %s raised %s: %s", point.name, point.value, type(error), error)
            continue
        if not isinstance(adapter, Adapter):
            _logger.warning("adapter %s was left out: %s is no Adapter(name, match)", point.name, point.value)
        elif adapter.name in taken:
            _logger.warning("adapter %s was left out: the name %r is taken", point.name, adapter.name)
        else:
            taken.add(adapter.name)
            found[adapter.name] = adapter
    return tuple(found.values())

"""Importing the quantizers of codec packages without what surrounds them.

The packages' own `__init__` wants torchaudio, model hubs or training frameworks. The module of the quantizer does not:
an empty parent package, with the path of the real one, lets it be imported by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

__all__ = ["import_inside"]


def import_inside(package: str, module: str, **stubs: ModuleType) -> ModuleType:
    """Import `package.module` from the installed package without running any `__init__` on the way.

    Args:
        package: the installed distribution's top-level package.
        module: dotted path below it.
        stubs: top-level modules that stand in for some that are not installed, put in place where they are missing.
    """
    for name, stub in stubs.items():
        sys.modules.setdefault(name, stub)
    parts = [package, *module.split(".")[:-1]]
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if name in sys.modules:
            continue
        parent = ModuleType(name)
        parent.__path__ = _paths(parts[:depth])
        sys.modules[name] = parent
    with warnings.catch_warnings():  # what others deprecate is not for these tests to refuse
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(f"{package}.{module}")


def _paths(parts: list[str]) -> list[str]:
    """Return where a package's modules lie, without importing it or its parents."""
    top = importlib.util.find_spec(parts[0]) if parts[0] not in sys.modules else None
    found = top.submodule_search_locations if top is not None else sys.modules[parts[0]].__path__
    assert found, f"{parts[0]} is not installed"
    return ["/".join([location, *parts[1:]]) for location in found]

"""Actions that other packages bring along, announced under the entry-point group `collapse_guard.actions`.

An entry point resolves to a pair: the model of the action's parameters, and the intervention that performs it. It is
loaded when the known actions are first asked for, never at import; one that cannot be used is told and left out.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .action import Action

__all__ = ["ENTRY_POINT_GROUP", "announced_actions"]

ENTRY_POINT_GROUP = "collapse_guard.actions"

_logger = logging.getLogger("collapse_guard")


@cache
def announced_actions() -> dict[str, tuple[type[Action], Any]]:
    """Return the announced actions by name: the model of the parameters, and the intervention."""
    found: dict[str, tuple[type[Action], Any]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        loaded = _load(point)
        if isinstance(loaded, str):
            _logger.warning("action %s was left out: %s", point.name, loaded)
        elif point.name in found:
            _logger.warning("action %s was left out: another package announces it, too (%s)", point.name, point.value)
        else:
            found[point.name] = loaded
    return found


def _load(point: EntryPoint) -> tuple[type[Action], Any] | str:
    """Return the pair that an entry point resolves to, or what is wrong with it."""
    try:
        loaded = point.load()
    except Exception as error:  # a broken plug-in of somebody else must not take the guard down
        return f"{point.value} raised {type(error).__name__}: {error}"
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        return f"{point.value}: expected a pair (model of the parameters, intervention), got {loaded!r}"
    model, intervention = loaded
    if not isinstance(model, type) or not issubclass(model, Action):
        return f"{point.value}: expected a subclass of Action as the first of the pair, got {model!r}"
    if getattr(model, "action", None) != point.name:
        declared = getattr(model, "action", None)
        return f"{point.value}: expected {model.__name__} to declare `action = {point.name!r}`, got {declared!r}"
    return model, intervention

"""Which codebooks are levels of one residual: each codes what the levels before it left over.

Told from structure and class names, after discovery; nothing is run and nothing is written. The levels of a residual
are children of one `nn.ModuleList`, whose owner's class is named as residual quantizers are: that tells them from
independent quantizers in a list, such as the parts of a product quantizer, which are no levels. Where the names do not
say so, `GenericVQ(group=..., level=...)` does. Heads of one quantizer are no levels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from .base import CodebookView

__all__ = ["assign_levels"]

_RESIDUAL = re.compile(r"(?i:residual)")
_QUANTIZES = re.compile(r"(?i:vq|quant|codebook)")  # the class or its list must say so: a ResidualBlock is none
_BOTH = re.compile(r"(?i:rvq)|RQ(?=[A-Z]|$)")  # MyRVQ, RQBottleneck


def assign_levels(model: nn.Module, views: Sequence[CodebookView]) -> None:
    """Set group and level of the views that are levels of a residual and have none yet.

    A group is named by the path of its list, followed by what stands behind the level's number where that is not empty
    (`rvq.layers`, or `rvq.layers.*.1` for the second head of each level). A list of which only one level can be watched
    has no group.
    """
    groups: dict[str, list[tuple[int, CodebookView]]] = {}
    for view in views:
        if view.group is None and (place := _place(model, view.name)) is not None:
            groups.setdefault(place[0], []).append((place[1], view))
    for name, levels in groups.items():
        if len(levels) > 1:
            for level, view in levels:
                view.group, view.level = name, level


def _place(model: nn.Module, path: str) -> tuple[str, int] | None:
    """Return the group that a path belongs to and its level there, or `None`; the innermost list decides."""
    parts = path.split(".")
    for index in range(len(parts) - 1, 0, -1):
        prefix, suffix = parts[:index], parts[index + 1 :]
        container = _submodule(model, prefix)
        if not parts[index].isdecimal() or not isinstance(container, nn.ModuleList):
            continue
        owner = _submodule(model, prefix[:-1])
        if owner is None or not _is_residual(owner, prefix[-1]):
            return None
        name = ".".join(prefix)
        return (f"{name}.*.{'.'.join(suffix)}" if suffix else name), int(parts[index])
    return None


def _is_residual(owner: nn.Module, attribute: str) -> bool:
    """Whether a module says, by its class and the name of its list, that what stands in the list codes residuals."""
    names = [each.__name__ for each in type(owner).__mro__ if issubclass(each, nn.Module)]
    residual = any(_RESIDUAL.search(name) for name in names)
    return any(map(_BOTH.search, names)) or (residual and any(map(_QUANTIZES.search, [*names, attribute])))


def _submodule(model: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    try:
        return model.get_submodule(".".join(parts))
    except AttributeError:
        return None

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

# ResidualVQ, MimiResidualVectorQuantizer, MyRVQ, RQBottleneck; but no ResidualBlock
_RESIDUAL = re.compile(r"(?i:rvq|residual\w*(?:vq|quant|codebook))|RQ(?=[A-Z]|$)")


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
        if owner is None or not is_residual(owner):
            return None
        name = ".".join(prefix)
        return (f"{name}.*.{'.'.join(suffix)}" if suffix else name), int(parts[index])
    return None


def is_residual(owner: nn.Module) -> bool:
    """Whether the class of a module, or one that it is derived from, says that its parts code residuals."""
    return any(_RESIDUAL.search(each.__name__) for each in type(owner).__mro__ if issubclass(each, nn.Module))


def _submodule(model: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    try:
        return model.get_submodule(".".join(parts))
    except AttributeError:
        return None

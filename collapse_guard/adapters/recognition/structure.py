"""What could be a codebook, by shape alone: cheap to ask of each module of a model, and no proof of anything.

Names tell nothing of what a tensor is. They are looked at only to decide whether a module that could not be confirmed
is worth a line in a report.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Structure", "Table", "entries_of", "look_at", "run_by_torch"]

_HINT = re.compile(r"(?i)vq|vector_?quanti|codebook|quanti[sz]er")
_METHODS = ("quantize", "quantise", "encode", "inference", "tokenize")
"""What people call instead of `forward`; each is tried only where `forward` could not be confirmed."""


@dataclass(frozen=True, slots=True)
class Table:
    """A stored tensor that may be a codebook.

    Attributes:
        name: dotted, from the module.
        K: number of codes, if it is one.
        D: their dimension.
        transposed: it is stored as (D, K).
        sums: other tensors of its shape, which may be its moving sum.
        counts: (K,) tensors without gradients, which may be its moving count.
    """

    name: str
    K: int
    D: int
    transposed: bool
    sums: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    @property
    def looks_averaged(self) -> bool:
        """Whether something may be its moving sum and something its moving count."""
        return bool(self.sums and self.counts)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the stored shape as (K, D)."""
        return tensor.t() if self.transposed else tensor


@dataclass(frozen=True, slots=True)
class Structure:
    """The tables of one module.

    Attributes:
        tables: in the order in which they are tried; those that look averaged come first.
        deeper: names of tensors that may be codebooks and are out of reach of a view: stacked, or in lists.
        widths: in which an input may come: last axes of all of them, and what projections of the module take.
        hint: whether class or attribute names speak of quantising.
    """

    tables: tuple[Table, ...]
    deeper: tuple[str, ...]
    widths: tuple[int, ...]
    hint: bool

    @property
    def is_telling(self) -> bool:
        """Whether a module of this structure is reported even where no trial says anything."""
        return self.hint or any(table.looks_averaged for table in self.tables)


def look_at(module: nn.Module) -> Structure | None:
    """Return the tables of a module; `None` where it has none, or does nothing of its own."""
    if run_by_torch(module) or not entries_of(module):
        return None
    near, deeper = _near(module), _deeper(module)
    tables = sorted(_tables(near), key=lambda table: not table.looks_averaged)
    if not tables and not deeper:
        return None
    widths = dict.fromkeys([*(table.D for table in tables), *(int(tensor.shape[-1]) for tensor in deeper.values())])
    widths |= dict.fromkeys(_projected_widths(module))
    names = [type(module).__name__, *(table.name for table in tables), *deeper]
    return Structure(tuple(tables), tuple(deeper), tuple(widths), any(_HINT.search(name) for name in names))


def run_by_torch(module: nn.Module) -> bool:
    """Whether the forward is one of torch's own: none of those is a quantizer."""
    return (getattr(type(module).forward, "__module__", None) or "").split(".")[0] == "torch" and (
        type(module).forward is not nn.Module.forward
    )


def entries_of(module: nn.Module) -> list[str]:
    """Return the methods that can be called with one tensor: `forward` first, where there is one."""
    forward = [] if type(module).forward is nn.Module.forward else ["forward"]
    return [name for name in (*forward, *_METHODS) if _takes_one(getattr(type(module), name, None))]


def _takes_one(method: Any) -> bool:
    """Whether a method can be called with `self` and one argument more."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def _projected_widths(module: nn.Module) -> Iterator[int]:
    """Yield the widths that linear and convolution layers of the module take."""
    for child in module.children():
        width = getattr(child, "in_features", getattr(child, "in_channels", None))
        if isinstance(width, int):
            yield width


def _near(module: nn.Module) -> dict[str, Tensor]:
    """Return floating tensors of the module, of its embeddings and of childless children that torch does not run."""
    near = dict(_own(module))
    for name, child in module.named_children():
        if isinstance(child, nn.Embedding) or not (run_by_torch(child) or any(child.children())):
            near |= {f"{name}.{key}": tensor for key, tensor in _own(child)}
    return near


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.is_floating_point():
            yield key, tensor


def _deeper(module: nn.Module) -> dict[str, Tensor]:
    """Return floating tensors that may be codebooks of the module and that no `Table` describes."""
    found = {key: tensor for key, tensor in _own(module) if tensor.ndim > 2 and min(tensor.shape[-2:]) > 1}
    for name, child in module.named_children():
        if isinstance(child, nn.ParameterList):
            found |= {f"{name}.{key}": tensor for key, tensor in _own(child) if tensor.ndim >= 2}
        elif isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            for key, part in child.named_children():
                if isinstance(part, nn.Embedding):
                    found[f"{name}.{key}.weight"] = part.weight
    return found


def _tables(near: dict[str, Tensor]) -> Iterator[Table]:
    flat = {key: tensor for key, tensor in near.items() if tensor.ndim == 2}
    for name, tensor in flat.items():
        sums = tuple(key for key, other in flat.items() if key != name and other.shape == tensor.shape)
        for transposed, (K, D) in enumerate((tensor.shape, tensor.shape[::-1])):
            counts = tuple(key for key, t in near.items() if t.shape == (K,) and not t.requires_grad)
            if K > 1 or (sums and counts):
                yield Table(name, K, D, bool(transposed), sums, counts)

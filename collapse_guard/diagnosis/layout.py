"""Where a latent's features come from: whole from the encoder, or cut out of a wider vector. Read from the graph.

Only views, permutations and copies are followed back, in the coordinates of the flattened tensor, which views leave
alone. Nothing is computed and no tensor is touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["axes_behind", "kind_of", "width_before_cut"]

_MOST_NODES = 24
_SAME_SHAPE = {"Clone", "ToCopy", "Alias", "Div", "Tanh", "Contiguous"}
_KIND = re.compile(r"^_?(.*?)Backward\d*$")


def width_before_cut(given: Tensor, D: int) -> int | None:
    """Return how wide the vectors are of which the latents are pieces; `None` where they are whole, or not known.

    Args:
        given: what a quantizer is called with: (..., D), or (batch, D, ...) with channels first.
        D: dimension of its codes.

    >>> import torch
    >>> wide = torch.nn.Linear(3, 8)(torch.ones(5, 3))
    >>> width_before_cut(wide.view(5, 2, 4), 4), width_before_cut(wide, 8)
    (8, None)
    """
    shape = tuple(given.shape)
    if D not in shape[1:]:
        return None
    stride = 1 if shape[-1] == D else math.prod(shape[2:])
    node: Any = given.grad_fn
    for _ in range(_MOST_NODES):
        if node is None:
            break
        kind = kind_of(node)
        if kind in ("Permute", "Transpose"):
            axis = _axis_of(shape, stride, D)
            if axis is None:
                break
            order = axes_behind(node, kind, len(shape))
            source = [0] * len(shape)
            for place, origin in enumerate(order):
                source[origin] = shape[place]
            shape, axis = tuple(source), order[axis]
            stride = math.prod(shape[axis + 1 :])
        elif kind == "Unsqueeze":
            dim = _signed(node._saved_dim) % len(shape)
            shape = shape[:dim] + shape[dim + 1 :]
        elif hasattr(node, "_saved_self_sym_sizes") and kind in ("View", "UnsafeView", "ReshapeAlias", "Squeeze"):
            shape = tuple(int(size) for size in node._saved_self_sym_sizes)
        elif kind not in _SAME_SHAPE:
            break
        node = node.next_functions[0][0] if node.next_functions else None
    return _wider(shape, stride, D)


def _axis_of(shape: Sequence[int], stride: int, D: int) -> int | None:
    """Return the axis that is the features, whole."""
    axes = range(len(shape))
    return next((axis for axis in axes if shape[axis] == D and math.prod(shape[axis + 1 :]) == stride), None)


def _wider(shape: Sequence[int], stride: int, D: int) -> int | None:
    """Return the size of the axis of which the features are a piece."""
    if _axis_of(shape, stride, D) is not None:
        return None
    for axis, size in enumerate(shape):
        if axis > 0 and math.prod(shape[axis + 1 :]) == stride and size > D and size % D == 0:
            return size
    return None


def kind_of(node: Any) -> str:
    """Return what a node of the graph is the backward of, such as `View`; empty for one of another kind."""
    match = _KIND.match(type(node).__name__)
    return match[1] if match else ""


def axes_behind(node: Any, kind: str, ndim: int) -> list[int]:
    """Return for each axis of the result of a permutation or transposition which axis of the source it was."""
    if kind == "Permute":
        return [_signed(dim) % ndim for dim in node._saved_dims]
    order = list(range(ndim))
    one, other = _signed(node._saved_dim0) % ndim, _signed(node._saved_dim1) % ndim
    order[one], order[other] = order[other], order[one]
    return order


def _signed(number: int) -> int:
    """Return an axis as it was written; autograd keeps -1 as a large unsigned number."""
    return int(number) - (1 << 64) if number >= 1 << 63 else int(number)

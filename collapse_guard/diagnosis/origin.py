"""Whether a latent's features are the channels of one position, or positions that a reshape has put in their place.

The places of a few latents' numbers are followed back through the autograd graph, index by index, to the product or the
convolution that computed them: there it is known which axis is the channels'. Nothing is computed of the numbers
themselves, no tensor is touched and no node is kept. Whatever is met on the way that is not understood means that it
cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from collapse_guard.mix import Mix

from .layout import axes_behind, kind_of

__all__ = ["mix_of"]

Index: TypeAlias = np.ndarray
"""(c, s, f) int64: in the flattened tensor, for c readings of the input, the places of f features of s latents."""
Shape: TypeAlias = tuple[int, ...]

_MOST_NODES = 64
_MOST_FEATURES = 64
_ROWS = 6
_MOST_STARTS = 3  # sizes of a batch that are tried where the input's shape does not tell it
_VIEWS = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias"}
_TURNS = {"Permute", "Transpose", "T"}
_PLACE_BY_PLACE = {
    "Clone", "ToCopy", "Contiguous", "Div", "Tanh", "Relu", "Gelu", "Silu", "Mish", "Elu", "LeakyRelu", "Sigmoid",
    "Softplus", "Hardtanh", "Clamp", "NativeDropout", "NativeLayerNorm", "FusedRmsNorm", "NativeBatchNorm",
    "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm",
}  # fmt: skip
_SUMS = {"Add", "Sub", "Mul"}
_CONVOLUTIONS = {"Convolution", "ConvolutionOverrideable", "CudnnConvolution", "MkldnnConvolution"}
_TO_A_WEIGHT = _VIEWS | _TURNS | {"Clone", "ToCopy", "Contiguous", "Expand"}


@dataclass(frozen=True, slots=True, eq=False)
class _Origin:
    """Where an index ends: the flattened result of what computed the numbers, its shape, and its channels' axis."""

    index: Index
    shape: Shape
    channels: int


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to read the input: as it is, with no `mix`, or as it was before a mix."""

    index: Index
    mix: Mix | None = None


def mix_of(given: Tensor, D: int) -> Mix | Literal[False] | None:
    """Return how positions were taken for features; `False` where they were not, `None` where it cannot be told.

    A mix is only said where the vectors that it would give back were traced to all D channels of one position each, in
    their order. A cut of the channels, such as that into heads, is none; nor are features that are a whole spatial
    axis, which is channel-wise quantization. Of channels that are more or fewer than D nothing else is said.

    Args:
        given: what a quantizer is called with: (..., D), or (batch, D, ...) with channels first.
        D: dimension of its codes.

    >>> import torch
    >>> right = torch.nn.Linear(3, 4)(torch.ones(2, 6, 3))
    >>> mix_of(right, 4), mix_of(right.transpose(1, 2).reshape(2, 6, 4), 4)
    (False, Mix(channels_first=True, positions=6, is_told=True, is_alone=True))
    """
    shape = tuple(given.shape)
    is_last, is_first = shape[-1:] == (D,), len(shape) > 2 and shape[1] == D
    if is_last == is_first or given.grad_fn is None or not given.numel():
        return None
    ways = _ways(shape, D, is_last, _starts(given))
    index = np.stack([way.index for way in ways])
    origins = _origins(given.grad_fn, given.output_nr, index, [_MOST_NODES])
    found: list[Mix | Literal[False] | None] = [_judged(each, ways, D) for each in origins or ()]
    return found[0] if found and all(each == found[0] for each in found) else None


@lru_cache(maxsize=64)
def _ways(shape: Shape, D: int, is_last: bool, starts: tuple[int, ...]) -> tuple[_Way, ...]:
    """Return where features of some latents lie in an input: as it is, and as it was before each mix that may be."""
    rows = math.prod(shape) // D
    features = _features(D)[None, :]
    width = 1 if is_last else math.prod(shape[2:])

    def place(row: Index, feature: Index) -> Index:
        row, feature = np.broadcast_arrays(row, feature)
        return np.asarray(row // width * (D * width) + feature * width + row % width)

    told = shape[0] if len(shape) > 2 else 0
    ways = [_Way(place(np.stack([_picked(rows), rows - 1 - _picked(rows)]).reshape(-1, 1), features))]
    for batch in dict.fromkeys([told, *starts]):
        T = rows // batch if batch and rows % batch == 0 else 1
        if T in (1, D):  # nothing to be mixed, or the same as a transposition: a whole axis may be meant
            continue
        sample, position = np.array([[0], [batch - 1]]), _picked(T)[None, :]
        before = (sample * T + 0 * position).reshape(-1, 1)
        position = (0 * sample + position).reshape(-1, 1)
        first, last = features * T + position, position * D + features
        ways.append(_Way(place(before + first // D, first % D), Mix(True, T, batch == told)))
        ways.append(_Way(place(before + last % T, last // T), Mix(False, T, batch == told)))
    return tuple(ways)


def _picked(n: int) -> Index:
    """Return `_ROWS` numbers below n, the first two and the last among them; of few some twice."""
    spread = np.linspace(0, n - 1, _ROWS).astype(np.int64)
    spread[1] = min(1, n - 1)
    return spread


@lru_cache(maxsize=64)
def _features(D: int) -> Index:
    few = np.linspace(0, D - 1, min(D, _MOST_FEATURES)).astype(np.int64)
    return np.unique(np.concatenate([few, [0, min(1, D - 1), D - 1]]))


def _starts(given: Tensor) -> tuple[int, ...]:
    """Return sizes of first axes that the numbers had on their way, where they lay in three axes and more."""
    node, slot, found = given.grad_fn, given.output_nr, list[int]()
    for _ in range(_MOST_NODES):
        shape = _shape(node, slot)
        if shape is None or math.prod(shape) != given.numel():
            break
        if len(shape) > 2 and shape[0] not in found:
            found.append(shape[0])
        node, slot = next(iter(_behind(node)), (None, 0))
    return tuple(found[:_MOST_STARTS])


def _origins(node: Any, slot: int, index: Index, left: list[int]) -> list[_Origin] | None:
    """Follow an index back to all that computed the numbers there; `None` where any of it is not understood."""
    while left[0] > 0:
        left[0] -= 1
        shape = _shape(node, slot)
        if shape is None:
            return None
        kind = kind_of(node)
        if (axis := _channels(node, kind, len(shape))) is not None:
            return [_Origin(index, shape, axis)]
        behind = [(each, nr, _shape(each, nr)) for each, nr in _behind(node)]
        if kind in _SUMS:  # what is broadcast, such as a bias, computes no number by itself
            parts = [_origins(each, nr, index, left) for each, nr, source in behind if source == shape]
            known = [part for part in parts if part is not None]
            return [each for part in known for each in part] if len(known) == len(parts) and known else None
        if not behind or (source := behind[0][2]) is None or math.prod(source) != math.prod(shape):
            return None
        if kind in _TURNS:
            index = _turned(index, shape, source, [1, 0] if kind == "T" else axes_behind(node, kind, len(shape)))
        elif kind not in _VIEWS and kind not in _PLACE_BY_PLACE:
            return None
        node, slot, _ = behind[0]
    return None


def _turned(index: Index, shape: Shape, source: Shape, order: Sequence[int]) -> Index:
    """Return an index of a permutation's result as one of what was permuted."""
    places = np.unravel_index(index, shape)
    before = [places[order.index(axis)] for axis in range(len(source))]
    return np.asarray(np.ravel_multi_index(before, source))


def _shape(node: Any, slot: int) -> Shape | None:
    """Return the shape of one result of a node; `None` where it is not known."""
    known = getattr(node, "_input_metadata", None)  # of what the backward takes in: the forward's results
    if known is None or slot >= len(known) or known[slot] is None:
        return None
    return tuple(int(size) for size in known[slot].shape)


def _behind(node: Any) -> Iterator[tuple[Any, int]]:
    return ((each, nr) for each, nr in node.next_functions if each is not None)


def _channels(node: Any, kind: str, ndim: int) -> int | None:
    """Return the channels' axis of what a node computed; `None` where it computes none."""
    if kind in _CONVOLUTIONS:
        return 1 if ndim > 2 else None
    if kind in ("Linear", "Embedding"):
        return ndim - 1
    if kind not in ("Addmm", "Mm", "Bmm", "Baddbmm"):
        return None
    one, other = (each for each, _ in node.next_functions[-2:])
    if _is_weight(one) == _is_weight(other):
        return ndim - 1 if kind == "Addmm" and not _is_weight(one) else None  # of a frozen weight nothing is seen
    return ndim - 1 if _is_weight(other) else ndim - 2


def _is_weight(node: Any) -> bool:
    """Whether a factor is a parameter, or a view of one."""
    for _ in range(8):
        if node is None or hasattr(node, "variable"):
            break
        if kind_of(node) not in _TO_A_WEIGHT:
            return False
        node = next((each for each, _ in _behind(node)), None)
    return node is not None and hasattr(node, "variable")


def _judged(origin: _Origin, ways: Sequence[_Way], D: int) -> Mix | Literal[False] | None:
    """Say what one origin shows of each way to read the input."""
    axis, shape = origin.channels, origin.shape
    places = np.stack(np.unravel_index(origin.index, shape))
    others = np.delete(places, axis, axis=0)
    is_still = (others == others[..., :1]).all(axis=(0, 2, 3))
    if is_still[0]:
        return False
    if shape[axis] != D or _is_whole_axes(places[:, 0], axis, shape, D):
        return None
    spatial = (*shape[:axis], *shape[axis + 1 :])
    at = np.asarray(np.ravel_multi_index(tuple(others[..., 0]), spatial))
    passing = [
        way.mix
        for way, still, channels, positions in zip(ways, is_still, places[axis], at, strict=True)
        if way.mix is not None and still and _is_in_order(channels, positions, way.mix.positions, D)
    ]
    return passing[0] if len(passing) == 1 else None


def _is_in_order(channels: Index, positions: Index, T: int, D: int) -> bool:
    """Whether vectors have the D channels one after another, and lie evenly along each of two samples."""
    steps = positions.reshape(2, -1) - positions.reshape(2, -1)[:, :1]
    is_even = (steps == steps[0, 1] * _picked(T)).all() and steps[0, 1] > 0
    return bool(is_even and (channels == _features(D)).all())


def _is_whole_axes(places: Index, axis: int, shape: Shape, D: int) -> bool:
    """Whether features, as the input has them, are all positions of some axes in one channel."""
    moving = [each for each in range(len(shape)) if (places[each] != places[each][:, :1]).any()]
    return axis not in moving and math.prod(shape[each] for each in moving) == D

"""What the zoo's models learn to rebuild: patches of photographs, and handwritten digits; nothing is downloaded.

All of it ships with scikit-learn. An item is one or more vectors of the same width: x (B, T, width); over a whole data
set, values have mean 0 and variance 1. Held-out patches are others than those that are trained on, of the same
photographs, and may overlap with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from collapse_guard.demos import photo_windows

__all__ = ["Data", "load"]

_SIDE = 4  # pixels of a patch
_HELD_OUT = 4096  # patches


@dataclass(frozen=True, slots=True)
class Data:
    """Items to train on and to judge by.

    Attributes:
        train: (n, T, width) float32, in an order that is the same on every call.
        test: (m, T, width), none of them in `train`.
        groups: (n,) int64: the class of each training item, or the photograph that it comes from.
        variance: of the held-out values, which errors are divided by.
    """

    train: Tensor
    test: Tensor
    groups: Tensor
    variance: float


@lru_cache(maxsize=8)
def load(name: str) -> Data:
    """Return a data set by name: `patches`, `sequences` (of 16 patches), `digits`, `little` (2000 patches).

    Raises:
        LookupError: an unknown name.
    """
    if name == "patches":
        return _patches(most=None)
    elif name == "little":
        return _patches(most=2000)
    elif name == "sequences":
        return _sequences()
    elif name == "digits":
        return _digits()
    raise LookupError(f"expected patches, little, sequences or digits, got {name!r}")


def _shuffled(rows: Tensor, groups: Tensor, held_out: int, most: int | None = None) -> Data:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(99))
    rows, groups = rows[order], groups[order]
    rows = (rows - rows.mean()) / rows.std()
    test, train, groups = rows[:held_out], rows[held_out:], groups[held_out:]
    return Data(train[:most], test, groups[:most], float(test.var()))


def _patches(most: int | None) -> Data:
    rows = torch.from_numpy(photo_windows(_SIDE, step=2))[:, None, :]
    return _shuffled(rows, _halves(len(rows)), _HELD_OUT, most)


def _halves(number: int) -> Tensor:
    """Return which of the two photographs, of one size, each window comes from."""
    return (torch.arange(number) >= number // 2).long()


def _sequences() -> Data:
    """Return squares of 16 x 16 pixels as 16 patches each, channels of a pixel together, as everywhere else."""
    squares = torch.from_numpy(photo_windows(4 * _SIDE, step=8)).reshape(-1, 3, 4, _SIDE, 4, _SIDE)
    rows = squares.permute(0, 2, 4, 1, 3, 5).reshape(len(squares), 16, 3 * _SIDE * _SIDE)
    return _shuffled(rows, _halves(len(rows)), 512)


def _digits() -> Data:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = torch.as_tensor(images / 16.0, dtype=torch.float32)[:, None, :]
    return _shuffled(rows, torch.as_tensor(labels, dtype=torch.long), 360)

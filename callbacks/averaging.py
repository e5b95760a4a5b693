"""Averaged weights: what a trainer keeps as a moving average of the model follows a codebook that was placed anew.

A codebook averaged over the time before and after a reset is neither: its rows stand for other codes. So where the
guard rewrote a codebook, what belongs to it is copied into the averaged model, which then averages on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from collapse_guard import CodebookView
from collapse_guard.adapters import TensorRef

__all__ = ["averaged_models", "follow"]


def averaged_models(holders: Iterable[object]) -> list[nn.Module]:
    """Return the averages that callbacks keep, of the model, as Lightning's `WeightAveraging`, or of a part of it."""
    kept = (value for holder in holders for value in vars(holder).values())
    return [each.module for each in kept if isinstance(each, AveragedModel)]


@torch.no_grad()
def follow(model: nn.Module, averages: Iterable[nn.Module], views: Iterable[CodebookView]) -> None:
    """Copy table and moving averages of codebooks, as they are now, into copies of the model.

    Args:
        model: the model that trains. averages: copies of it, or of a part of it; those without the codebook stay.
        views: codebooks of the model that were rewritten.
    """
    refs = [ref for view in views for ref in view.refs().values()]
    paths = {module: path for path, module in model.named_modules()}
    for average in averages:
        modules = dict(average.named_modules())
        for ref in refs:
            if ref.owner in paths and (twin := _twin(ref, paths[ref.owner], modules)) is not None:
                ref.part_of(twin).copy_(ref.get())


def _twin(ref: TensorRef, path: str, modules: Mapping[str, nn.Module]) -> Tensor | None:
    """Return a tensor's copy among the modules of an average, where paths begin at the part that was copied."""
    names = path.split(".")
    for first in range(len(names) + 1):
        module = modules.get(".".join(names[first:]))
        twin = getattr(module, ref.attribute, None)
        is_alike = type(module).__name__ == type(ref.owner).__name__  # of an observed one the class may be a subclass
        if is_alike and isinstance(twin, Tensor) and twin.shape == ref.whole().shape:
            return twin.detach()
    return None

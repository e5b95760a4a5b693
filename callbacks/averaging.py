"""Averaged weights: what a trainer keeps as a moving average of the model follows a codebook that was placed anew.

A codebook averaged over the time before and after a reset is neither: its rows stand for other codes. So where the
guard rewrote a codebook, what belongs to it is copied into the averaged model, which then averages on from there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from collapse_guard import CodebookView

__all__ = ["averaged_models", "follow"]


def averaged_models(holders: Iterable[object]) -> list[nn.Module]:
    """Return the averaged copies of the model that callbacks keep, as Lightning's `WeightAveraging` does."""
    kept = (value for holder in holders for value in vars(holder).values())
    return [each.module for each in kept if isinstance(each, AveragedModel)]


@torch.no_grad()
def follow(model: nn.Module, averages: Iterable[nn.Module], views: Iterable[CodebookView]) -> None:
    """Copy table and moving averages of codebooks, as they are now, into copies of the model.

    Args:
        model: the model that trains. averages: copies of it, with the same module paths.
        views: codebooks of the model that were rewritten.
    """
    refs = [ref for view in views for ref in view.refs().values()]
    paths = {module: path for path, module in model.named_modules()}
    for average in averages:
        for ref in refs:
            twin = getattr(average.get_submodule(paths[ref.owner]), ref.attribute)
            ref.part_of(twin.detach()).copy_(ref.get())

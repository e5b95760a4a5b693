"""Which items a step of the zoo gets, where it is not any."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .scenario import Run, any_items

__all__ = [
    "Draw",
    "class_then_all",
    "classes_of_ranks",
    "echoed",
    "few_clips",
    "few_items",
    "flat_first",
    "growing",
    "mostly_silence",
    "one_class",
    "one_photo_then_the_other",
    "popular",
    "whole_epochs",
]

Draw = Callable[[Run, int, int], Tensor]


def one_class(run: Run, step: int, size: int) -> Tensor:
    """Draw batches of one class each, class after class, five batches of each: a sorted data set."""
    classes = int(run.data.groups.max()) + 1
    return _of_group(run, (step // 5) % classes, size)


def one_photo_then_the_other(at: int) -> Draw:
    """Return a draw from one photograph before a step and from the other after it."""
    return lambda run, step, size: _of_group(run, int(step >= at), size)


def class_then_all(*, at: int, until: int) -> Draw:
    """Return a draw at random, but for some steps of the first class alone."""

    def draw(run: Run, step: int, size: int) -> Tensor:
        if not at <= step < until:
            return any_items(run, step, size)
        return _of_group(run, 0, size)

    return draw


def classes_of_ranks(ranks: int) -> Draw:
    """Return a draw of so many equal shares, one after another: each process reads classes that no other one reads.

    So a sorted data set is where every process gets a range of its files.
    """

    def draw(run: Run, step: int, size: int) -> Tensor:
        shares = []
        for rank in range(ranks):
            members = torch.nonzero(run.data.groups % ranks == rank).flatten()
            shares.append(members[torch.randint(len(members), (size // ranks,), generator=run.draws)])
        return run.data.train[torch.cat(shares)]

    return draw


def echoed(times: int) -> Draw:
    """Return a draw of each batch so many times in a row, as where the loader is slower than the training.

    Choi et al. 2019, "Faster neural network training with data echoing".
    """

    def draw(run: Run, step: int, size: int) -> Tensor:
        batches = torch.Generator().manual_seed(1_000_000 * run.draws.initial_seed() + step // times)
        return run.data.train[torch.randint(len(run.data.train), (size,), generator=batches)]

    return draw


def popular(run: Run, step: int, size: int) -> Tensor:
    """Draw the first item most often, and the n-th an n-th as often (Zipf): what is bought, heard or clicked on."""
    shares = 1 / torch.arange(1, len(run.data.train) + 1)
    return run.data.train[torch.multinomial(shares, size, replacement=True, generator=run.draws)]


def whole_epochs(run: Run, step: int, size: int) -> Tensor:
    """Draw each item once an epoch, in another order each time; the last batch of an epoch has what is left."""
    epoch, place = divmod(step, math.ceil(len(run.data.train) / size))
    order = torch.Generator().manual_seed(1000 * run.draws.initial_seed() + epoch)
    return run.data.train[torch.randperm(len(run.data.train), generator=order)[place * size : (place + 1) * size]]


def few_items(number: int) -> Draw:
    """Return a draw from so few different items that few codes are all that there is to use."""
    return lambda run, step, size: run.data.train[torch.randint(number, (size,), generator=run.draws)]


def flat_first(*, until: int) -> Draw:
    """Return a draw of flat items, four times as many drawn and the flattest kept, that ends as one of all items."""

    def draw(run: Run, step: int, size: int) -> Tensor:
        share = min(0.25 + 0.75 * step / until, 1.0)
        drawn = any_items(run, step, int(size / share))
        return drawn[drawn.var(dim=(1, 2)).argsort()[:size]]

    return draw


def mostly_silence(share: float) -> Draw:
    """Return a draw in which such a share of a step's items, in the mean, is zero: nobody speaks."""

    def draw(run: Run, step: int, size: int) -> Tensor:
        speaks = torch.rand(size, generator=run.draws) >= share
        return any_items(run, step, size) * speaks[:, None, None]

    return draw


def few_clips(number: int, noise: float) -> Draw:
    """Return a draw of so many items a step, each of them many times with little noise: frames that follow one another.

    A step shows few codes, and over many steps all have their turn.
    """

    def draw(run: Run, step: int, size: int) -> Tensor:
        frames = any_items(run, step, number).repeat_interleave(size // number, dim=0)
        return frames + noise * torch.randn(frames.shape, generator=run.draws)

    return draw


def growing(*, first: int, every: int) -> Draw:
    """Return a draw of so many items at first, and of twice as many after each so many steps, up to the batch."""
    return lambda run, step, size: any_items(run, step, min(first << (step // every), size))


def _of_group(run: Run, group: int, size: int) -> Tensor:
    members = torch.nonzero(run.data.groups == group).flatten()
    return run.data.train[members[torch.randint(len(members), (size,), generator=run.draws)]]

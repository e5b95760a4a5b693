"""The autograd graph of one forward: which parameters a tensor was computed from. Nothing is differentiated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["parameters_behind"]


def parameters_behind(tensors: Iterable[Tensor]) -> list[nn.Parameter]:
    """Return the parameters that a gradient of these tensors would reach, each once, nearest first.

    What was detached is not followed; what activation checkpointing computed by itself is hidden from the graph.

    >>> import torch
    >>> one, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    >>> parameters_behind([two(one(torch.ones(1, 2)).detach())]) == [two.weight]
    True
    """
    waiting = deque(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)
    seen: set[object] = set()
    found: dict[int, nn.Parameter] = {}
    while waiting:
        node = waiting.popleft()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of an AccumulateGrad
        if isinstance(leaf, nn.Parameter):
            found.setdefault(id(leaf), leaf)
        waiting.extend(each for each, _ in node.next_functions if each is not None)
    return list(found.values())

"""The autograd graph of one forward: which parameters a tensor was computed from. Nothing is differentiated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

__all__ = ["leads_to", "parameters_behind"]


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


def leads_to(tensor: Tensor, source: Tensor) -> bool:
    """Whether a gradient of a tensor would reach another one that it may have been computed from.

    >>> import torch
    >>> given = torch.ones(2, requires_grad=True)
    >>> leads_to(given * 2, given), leads_to((given * 2).detach(), given), leads_to(torch.ones(2), given)
    (True, False, False)
    """
    if tensor is source or tensor.grad_fn is None:
        return tensor is source
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[object] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is source.grad_fn or (source.grad_fn is None and getattr(node, "variable", None) is source):
            return True
        waiting.extend(each for each, _ in node.next_functions if each is not None)
    return False

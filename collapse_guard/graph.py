"""The autograd graph of one forward: which parameters a tensor was computed from. Nothing is differentiated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["leads_to", "nodes_behind", "parameters_behind"]


def nodes_behind(nodes: Iterable[Any], *, follow: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """Walk the graph from some nodes towards its leaves, nearest first, each node once.

    Args:
        nodes: where to begin; `None` among them is passed over, as it is on the way.
        follow: whether to go on behind a node; behind all of them if left out.
    """
    waiting = deque(nodes)
    seen: set[object] = set()
    while waiting:
        node = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if follow is None or follow(node):
            waiting.extend(each for each, _ in node.next_functions)


def parameters_behind(tensors: Iterable[Tensor]) -> list[nn.Parameter]:
    """Return the parameters that a gradient of these tensors would reach, each once, nearest first.

    What was detached is not followed; what activation checkpointing computed by itself is hidden from the graph.

    >>> import torch
    >>> one, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    >>> parameters_behind([two(one(torch.ones(1, 2)).detach())]) == [two.weight]
    True
    """
    leaves = (getattr(node, "variable", None) for node in nodes_behind(tensor.grad_fn for tensor in tensors))
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, nn.Parameter)}.values())


def leads_to(tensor: Tensor, source: Tensor) -> bool:
    """Whether a gradient of a tensor would reach another one that it may have been computed from.

    >>> import torch
    >>> given = torch.ones(2, requires_grad=True)
    >>> leads_to(given * 2, given), leads_to((given * 2).detach(), given), leads_to(torch.ones(2), given)
    (True, False, False)
    """
    if tensor is source:
        return True
    made, nodes = source.grad_fn, nodes_behind([tensor.grad_fn])
    if made is None:  # a leaf, of which the graph holds what accumulates its gradient
        return any(getattr(node, "variable", None) is source for node in nodes)
    return any(node is made for node in nodes)

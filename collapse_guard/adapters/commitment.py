"""The weight of the loss term that pulls the encoder, where an attribute's name does not tell which term it scales.

Many quantizers have a number `beta`. In some it weighs the commitment (the pull on the encoder), in others the pull on
the codebook, with the commitment fixed; the attribute looks the same. Here it is found out: the loss of a *copy* is
differentiated at two values of the number. Where the commitment turns out to be fixed, what is wanted less or more of
it is added to the loss that the quantizer returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.hooks import Hook

from .refs import Knob
from .trace import flatten_tensors

__all__ = ["AddedCommitment", "Term", "find_commitment"]

Term = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(quantizer, input, quantised output) of one call -> its commitment term with weight 1; no gradient reaches codes."""


class AddedCommitment:
    """Weight of a commitment term that its quantizer has fixed; a stand-in for a `Knob`.

    While the weight differs from the fixed one, a forward hook adds the difference times the term to the loss that the
    quantizer returns at position 1. Nothing on the module is written, and with the fixed weight there is no hook.

    Args:
        module: the quantizer; its forward returns a tuple (quantised, loss, ...).
        fixed: the weight that it gives the term by itself.
        term: computes the term of one call.
    """

    def __init__(self, module: nn.Module, fixed: float, term: Term) -> None:
        """Store the parts; nothing is hooked while the weight is the fixed one."""
        self._module = module
        self._fixed = self._weight = fixed
        self._term = term
        self._handle: RemovableHandle | None = None

    def get(self) -> float:
        """Return the weight in force."""
        return self._weight

    def set(self, value: float) -> None:
        """Put a weight in force, from the next forward on."""
        self._weight = float(value)
        if self._weight == self._fixed:
            self.release()
        elif self._handle is None:
            self._handle = self._module.register_forward_hook(Hook(self._add), with_kwargs=True)

    def release(self) -> None:
        """Leave the loss as the quantizer computes it."""
        self._weight = self._fixed
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        given = next(flatten_tensors((args, kwargs)))
        quantised, loss, *rest = output
        more = (self._weight - self._fixed) * self._term(module, given, quantised)
        return (quantised, loss + more.to(loss.dtype), *rest)


def find_commitment(
    module: nn.Module, copy: nn.Module, table: Tensor, given: Tensor, term: Term
) -> Knob | AddedCommitment | str:
    """Find what weighs the commitment term of a quantizer with a learnable table.

    The loss at position 1 of the output is differentiated with respect to input and table, with the attribute `beta` at
    1 and at 2. It is believed only if the gradient to the input is that of `term` times a number, the same for fewer
    tokens.

    Args:
        module: the quantizer.
        copy: a copy of it that may be changed.
        table: the copy's table, which takes a gradient.
        given: an input of a batch of two or more, without a gradient.
        term: the commitment term with weight 1.

    Returns:
        `beta` itself where it is the weight; a stand-in where the weight is fixed; else why there is none.
    """
    has_beta = isinstance(getattr(module, "beta", None), (int, float))
    pulls = []
    for beta in (1.0, 2.0) if has_beta else (None,):
        if beta is not None:
            copy.beta = beta  # type: ignore[assignment]
        pull = _pull(copy, table, given, term)
        if isinstance(pull, str):
            return pull
        pulls.append(pull)
    first, last = pulls[0], pulls[-1]
    fewer = _pull(copy, table, given[:1], term)
    if isinstance(fewer, str) or fewer.weight != last.weight:
        return "the weight of the commitment in its loss depends on the number of tokens, so that no one number does"
    if not has_beta or first.weight == last.weight:
        if has_beta and not _same(last.on_table, 2 * first.on_table):
            return "its `beta` scales neither the commitment nor the codebook term of the loss alone"
        return AddedCommitment(module, first.weight, term)
    if (first.weight, last.weight) == (1.0, 2.0) and _same(last.on_table, first.on_table):
        return Knob(module, "beta")
    return f"its `beta` is not the weight of the commitment: at 1 that weighs {first.weight:g}, at 2 {last.weight:g}"


class _Pull:
    """What one loss does: the weight of the commitment in it, and its gradient to the table."""

    def __init__(self, weight: float, on_table: Tensor) -> None:
        self.weight = round(weight, 5)
        self.on_table = on_table


def _pull(copy: nn.Module, table: Tensor, given: Tensor, term: Term) -> _Pull | str:
    given = given.clone().requires_grad_()
    with torch.enable_grad():
        output = copy(given)
        loss = output[1] if type(output) is tuple and len(output) > 1 else None
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            return "it returns no loss that gradients reach: weigh the commitment where your training computes it"
        reached: Sequence[Tensor | None] = torch.autograd.grad(loss.sum(), (given, table), allow_unused=True)
        (unit,) = torch.autograd.grad(term(copy, given, output[0]), given)
    on_input, on_table = (
        torch.zeros_like(of) if gradient is None else gradient
        for gradient, of in zip(reached, (given, table), strict=True)
    )
    weight = float((on_input * unit).sum() / unit.square().sum())
    if not _same(on_input, weight * unit):
        return "its loss pulls the encoder otherwise than by the mean squared distance to its codes: no one number does"
    if not weight:
        return "its loss has no commitment term: it does not pull the encoder"
    return _Pull(weight, on_table)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal up to what float32 and the order of sums make of them."""
    return bool((one - other).norm() <= 1e-3 * other.norm())

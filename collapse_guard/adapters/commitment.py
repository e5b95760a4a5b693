"""The weight of the loss term that pulls the encoder, where an attribute's name does not tell which term it scales.

Many quantizers have a number `beta`. In some it weighs the commitment (the pull on the encoder), in others the pull on
the codebook, with the commitment fixed; the attribute looks the same. Here it is found out: the loss of a *copy* is
differentiated at two values of the number. Where the commitment turns out to be fixed, or was left out when the
quantizer was made, what is wanted less or more of it is added to the loss that the quantizer returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from collapse_guard.hooks import Hook

from .nested import flatten_tensors, given_tensor
from .refs import Knob

__all__ = ["AddedCommitment", "LeftOutCommitment", "Term", "find_commitment"]

Term = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(quantizer, input, quantised output) of one call -> its commitment term with weight 1; no gradient reaches codes."""


class AddedCommitment:
    """Weight of a commitment term that its quantizer has fixed; a stand-in for a `Knob`.

    While the weight differs from the fixed one, a forward hook adds the difference times the term to the loss that the
    quantizer returns. Nothing on the module is written, and with the fixed weight there is no hook.

    Args:
        module: the quantizer; its forward returns a tuple (quantised, ...).
        fixed: the weight that it gives the term by itself.
        term: computes the term of one call.
        position: of the loss in that tuple.
    """

    def __init__(self, module: nn.Module, fixed: float, term: Term, *, position: int = 1) -> None:
        """Store the parts; nothing is hooked while the weight is the fixed one."""
        self._module = module
        self._fixed = self._weight = fixed
        self._term = term
        self._position = position
        self._handles: Sequence[RemovableHandle] = ()

    @property
    def place(self) -> tuple[int, str]:
        """Where the weight is; nothing else changes it."""
        return id(self), ""

    def get(self) -> float:
        """Return the weight in force."""
        return self._weight

    def set(self, value: float) -> None:
        """Put a weight in force, from the next forward on."""
        self._weight = float(value)
        if self._weight == self._fixed:
            self.release()
        elif not self._handles:
            self._handles = self._install()

    def save(self) -> float:
        """Return the weight in force, for `restore`."""
        return self._weight

    def restore(self, saved: float) -> None:
        """Put a saved weight in force."""
        self.set(saved)

    def release(self) -> None:
        """Leave the loss as the quantizer computes it."""
        self._weight = self._fixed
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def _install(self) -> list[RemovableHandle]:
        return [self._module.register_forward_hook(Hook(self._add), with_kwargs=True)]

    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        term = self._of_call(args, kwargs, output)
        if term is None:
            return None
        before, loss, after = output[: self._position], output[self._position], output[self._position + 1 :]
        more = (self._weight - self._fixed) * term
        return (*before, loss + more.to(loss.dtype), *after)

    def _of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Return the term () of a call that has returned; `None` where the call has none."""
        given = cast(Tensor, given_tensor(type(self._module).forward, args, kwargs))
        return self._term(self._module, given, output[0])


class LeftOutCommitment(AddedCommitment):
    """Weight, 0 at first, of a commitment term that its quantizer was made without; a stand-in for a `Knob`.

    What is compared is seen only inside: the quantizer projects, splits and normalises its input before it calls the
    module that searches. So the term is the mean squared distance between what that module is given and the codes that
    it returns, over the elements of the tokens that its `mask` leaves. There is none in evaluation mode, nor where the
    quantizer returns no loss of its own.

    Args:
        module: the quantizer; its forward returns a tuple (quantised, ...), and calls `search` for it.
        search: from ((heads,) batch, tokens, D) and `mask`, (batch, tokens) or `None`, to the quantised of that shape,
            and more. Heads that share a codebook stand in its batch, those of an item next to each other.
        position: of the loss in the tuple that the quantizer returns.
    """

    def __init__(self, module: nn.Module, search: nn.Module, *, position: int) -> None:
        """Store the parts; nothing is hooked while the weight is 0."""
        super().__init__(module, 0.0, _distance, position=position)
        self._search = search
        self._seen: Tensor | None = None  # the term of the call that runs

    def _install(self) -> list[RemovableHandle]:
        return [self._search.register_forward_hook(Hook(self._see), with_kwargs=True), *super()._install()]

    def _see(self, search: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        latents, quantised, mask = args[0] if args else kwargs["x"], output[0], kwargs.get("mask")
        if not self._module.training or quantised.shape != latents.shape:  # several candidates for each token
            self._seen = None
        elif isinstance(mask, Tensor):
            self._seen = _distance(search, *(_tokens(each, mask) for each in (latents, quantised)))
        else:
            self._seen = _distance(search, latents, quantised)

    def _of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor | None:
        term, self._seen = self._seen, None
        return term if len(output) > self._position else None


def _distance(module: nn.Module, latents: Tensor, quantised: Tensor) -> Tensor:
    """Return the mean squared distance () to the codes, which get no gradient; 0 where there is no token."""
    if not latents.numel():
        return latents.sum()
    return functional.mse_loss(latents, quantised.detach().to(latents.dtype))


def _tokens(of: Tensor, mask: Tensor) -> Tensor:
    """Return (n, D), those that the (batch, tokens) mask leaves of ((heads,) batch, tokens, D)."""
    heads = of.shape[-3] // len(mask)
    return of[..., mask.repeat_interleave(heads, dim=0), :].flatten(0, -2)


def find_commitment(
    module: nn.Module, copy: nn.Module, table: Tensor, given: Tensor, term: Term
) -> Knob | AddedCommitment | str:
    """Find what weighs the commitment term of a quantizer with a learnable table.

    The loss at position 1 of the output, a tensor or the parts of a sum, is differentiated with respect to input and
    table, with the attribute `beta` at 1 and at 2. `beta` is the weight if that adds just the gradient of `term`, and
    none to the table. The weight is fixed if `beta` changes nothing for the input, and all that the input gets is the
    gradient of `term` times a number, the same for fewer tokens.

    Args:
        module: the quantizer.
        copy: a copy of it that may be changed.
        table: the copy's table, which takes a gradient.
        given: an input of a batch of two or more, without a gradient.
        term: the commitment term with weight 1.

    Returns:
        `beta` itself where it is the weight; a stand-in where the weight is fixed; else why there is none.
    """
    pull = _pull(copy, table, given, term)
    if pull is None:  # some compute it in training alone
        copy.train()
        pull = _pull(copy, table, given, term)
    if pull is None:
        return "it returns no loss that gradients reach: weigh the commitment where your training computes it"
    if isinstance(getattr(module, "beta", None), (int, float)):
        at_one, at_two = (_at(beta, copy, table, given, term) for beta in (1.0, 2.0))
        if _same(at_two.on_input - at_one.on_input, at_one.unit) and _same(at_two.on_table, at_one.on_table):
            return Knob(module, "beta")
        if not _same(at_two.on_input, at_one.on_input):
            return "its `beta` changes the pull on the encoder otherwise than as the weight of the commitment does"
    if not _same(pull.on_input, pull.weight * pull.unit):
        return "its loss pulls the encoder otherwise than by the mean squared distance to its codes: no one number does"
    if not pull.weight:
        return "its loss has no commitment term: it does not pull the encoder"
    fewer = _pull(copy, table, given[:1], term)
    if fewer is None or fewer.weight != pull.weight:
        return "the weight of the commitment in its loss depends on the number of tokens: no one number does"
    if pull.is_split:
        return "the weight of the commitment is fixed, and its loss is returned in parts: there is no one to add to"
    return AddedCommitment(module, pull.weight, term)


@dataclass(frozen=True, slots=True)
class _Pull:
    """What one loss does: its gradients to input and table, and that of the commitment term with weight 1."""

    on_input: Tensor
    on_table: Tensor
    unit: Tensor
    is_split: bool

    @property
    def weight(self) -> float:
        """The weight of the commitment in the loss, if nothing else pulls the encoder."""
        return round(float((self.on_input * self.unit).sum() / self.unit.square().sum()), 5)


def _at(beta: float, copy: nn.Module, table: Tensor, given: Tensor, term: Term) -> _Pull:
    copy.beta = beta  # type: ignore[assignment]
    pull = _pull(copy, table, given, term)
    if pull is None:
        raise ValueError(f"with beta = {beta:g} it returns no loss that gradients reach")
    return pull


def _pull(copy: nn.Module, table: Tensor, given: Tensor, term: Term) -> _Pull | None:
    """Differentiate one loss; `None` where there is none."""
    given = given.clone().requires_grad_()
    with torch.enable_grad():
        output = copy(given)
        if type(output) is not tuple or len(output) < 2:
            return None
        parts = [part for part in flatten_tensors(output[1]) if part.requires_grad and part.numel() == 1]
        if not parts:
            return None
        loss = torch.stack([part.reshape(()) for part in parts]).sum()
        reached: Sequence[Tensor | None] = torch.autograd.grad(loss, (given, table), allow_unused=True)
        (unit,) = torch.autograd.grad(term(copy, given, output[0]), given)
    on_input, on_table = (
        torch.zeros_like(of) if gradient is None else gradient
        for gradient, of in zip(reached, (given, table), strict=True)
    )
    return _Pull(on_input, on_table, unit, is_split=not isinstance(output[1], Tensor))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal up to what float32 and the order of sums make of them."""
    return bool((one - other).norm() <= 1e-3 * other.norm())

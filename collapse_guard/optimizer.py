"""What optimizers remember: rows that keep pushing a code which was just placed elsewhere, and outgrown gradients.

Adam divides each step by the root of a moving average of squared gradients, `exp_avg_sq`. With its usual decay of
0.999 a collapse, whose gradients may be a hundred times larger, is remembered for a thousand steps and more, and as
long the steps of a repaired run are too small (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015,
section 2.1, call m / sqrt(v) a signal-to-noise ratio: the smaller, the smaller the step).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "Moments",
    "inner_optimizer",
    "moment_rows",
    "moment_sums",
    "moments_of",
    "movers_of",
    "own_part",
    "ratio_of_moments",
    "unknown_state",
    "why_out_of_reach",
]

_MOMENTS = frozenset(
    {
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "momentum_buffer",
        "exp_inf",
        "square_avg",
        "grad_avg",
        "acc_delta",
        "sum",
        "exp_avg_diff",
        "prev_grad",
    }
)
_BOTH = frozenset({"exp_avg", "exp_avg_sq", "step"})
_OF_ADAM = _BOTH | {"max_exp_avg_sq", "mu_product"}  # of AMSGrad; NAdam's product of what its momentum was


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that a wrapper steps, such as Accelerate's, which takes no hooks; any other as it is."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return inner_optimizer(inner)
    return optimizer


def why_out_of_reach(optimizers: Iterable[Optimizer]) -> str | None:
    """Say which keep their state in one inside of them on each rank, as `ZeroRedundancyOptimizer` does; else `None`."""
    spread = dict.fromkeys(type(each).__name__ for each in optimizers if _has_one_inside(each))
    return f"{', '.join(spread)} spreads its state over the ranks, where it is not reached" if spread else None


def _has_one_inside(optimizer: Optimizer) -> bool:
    return isinstance(getattr(optimizer, "optim", None), Optimizer)


def moment_rows(optimizers: Sequence[Optimizer], parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the moment tensors of a parameter that have its shape, by `optimizer.state name`.

    Only known moments are returned: another tensor of the same shape may be a master copy of the weights, and
    clearing that would destroy the codebook. Step counters and factored states are left alone.
    """
    return {
        f"optimizer{index}.{key}": tensor
        for index, optimizer in enumerate(optimizers)
        for key, tensor in optimizer.state.get(parameter, {}).items()
        if key in _MOMENTS and isinstance(tensor, Tensor) and tensor.shape == parameter.shape
    }


def unknown_state(optimizers: Sequence[Optimizer], parameter: nn.Parameter) -> list[str]:
    """Return names of row-shaped optimizer state that is not known to be a moment and was therefore left alone."""
    return [
        f"optimizer{index}.{key}"
        for index, optimizer in enumerate(optimizers)
        for key, tensor in optimizer.state.get(parameter, {}).items()
        if key not in _MOMENTS and isinstance(tensor, Tensor) and tensor.shape == parameter.shape
    ]


@dataclass(frozen=True, slots=True)
class Moments:
    """What an Adam remembers of one parameter.

    Attributes:
        state: of the parameter; `exp_avg`, `exp_avg_sq` and `step` are tensors in it.
        betas: decay of the first and of the second moment, in [0, 1).
    """

    state: Mapping[str, Any]
    betas: tuple[float, float]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        return {key: each for key, each in self.state.items() if isinstance(each, Tensor)}

    @torch.no_grad()
    def forget(self) -> None:
        """Begin anew, in place, as before the first step."""
        for key, tensor in self.tensors.items():
            tensor.fill_(1.0 if key == "mu_product" else 0.0)


def moments_of(optimizer: Optimizer) -> Iterator[tuple[int, Moments]]:
    """Yield what is remembered of each parameter, if it is both moments, the number of steps and nothing unknown.

    Yields:
        The parameter's place among all of the optimizer's, and its moments.
    """
    parameters = [(each, group) for group in optimizer.param_groups for each in group["params"]]
    for place, (parameter, group) in enumerate(parameters):
        state = optimizer.state.get(parameter, {})
        tensors = {key for key, each in state.items() if isinstance(each, Tensor)}
        if "betas" in group and _BOTH <= tensors <= _OF_ADAM:
            first, second = map(float, group["betas"])
            yield place, Moments(state, (first, second))


def movers_of(optimizers: Sequence[Optimizer], parameters: Iterable[nn.Parameter]) -> Sequence[Optimizer]:
    """Return the optimizers that move one of the parameters; all of them where none is known to."""
    wanted = {id(each) for each in parameters}
    found = [
        each for each in optimizers if any(id(own) in wanted for group in each.param_groups for own in group["params"])
    ]
    return found or optimizers


@torch.no_grad()
def moment_sums(optimizers: Iterable[Optimizer]) -> np.ndarray:
    """Return (2,) float64: the sum of squared gradients as Adams remember them, and as lately shown; 0 without an Adam.

    Both are estimates without bias where gradients are noise, from the first step on: `exp_avg_sq` over what it lacks
    at first, 1 - b2^t (Kingma and Ba, section 3), and the square of `exp_avg` over the (1 - b1) / (1 + b1) (1 - b1^2t)
    that averaging leaves of that of noise. Of AMSGrad it is the largest `exp_avg_sq` so far, by which it divides.

    Of what is sharded, this rank's part. The device is waited for once.
    """
    found = [each for optimizer in optimizers for _, each in moments_of(optimizer)]
    if not found:
        return np.zeros(2)
    states = [each.state for each in found]
    squares = [_norm(each.get("max_exp_avg_sq", each["exp_avg_sq"]), 1) for each in states]  # none is negative
    averages = [_norm(each["exp_avg"], 2) for each in states]
    steps, remembered, shown = _on_host([*(each["step"] for each in states), *squares, *averages]).reshape(3, -1)
    steps = np.maximum(steps, 1)
    first, second = np.array([each.betas for each in found]).T
    remembered = remembered / (1 - second**steps)
    shown = shown**2 * (1 + first) / (1 - first) / (1 - first ** (2 * steps))
    return np.array([remembered.sum(), shown.sum()])


def ratio_of_moments(remembered: float, shown: float) -> float | None:
    """Return the root of what is remembered over that of what is shown, 0 or more; `None` if that is no number."""
    ratio = math.sqrt(remembered / shown) if shown > 0 and remembered >= 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor that may be sharded; it shares memory with it."""
    to_local = getattr(tensor, "to_local", None)
    local: Tensor = tensor if to_local is None else to_local()
    return local


def _norm(tensor: Tensor, order: int) -> Tensor:
    """Return the norm of all elements, in float32 or better, without a copy of them."""
    own = own_part(tensor)
    own = torch.view_as_real(own) if own.is_complex() else own
    norm: Tensor = torch.linalg.vector_norm(own, order, dtype=torch.promote_types(own.dtype, torch.float32))
    return norm


def _on_host(numbers: Sequence[Tensor]) -> np.ndarray:
    """Return (n,) float64 of n tensors of one number each; one copy from each device that they lie on."""
    found = np.zeros(len(numbers))
    for device in {each.device for each in numbers}:
        places = [place for place, each in enumerate(numbers) if each.device == device]
        found[places] = torch.stack([numbers[place].reshape(()).float() for place in places]).cpu().numpy()
    return found

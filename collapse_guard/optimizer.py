"""What optimizers remember: rows that keep pushing a code which was just placed elsewhere, and outgrown gradients.

Adam divides each step by the root of a moving average of squared gradients, `exp_avg_sq`. With its usual decay of
0.999 a collapse, whose gradients may be a thousand times larger, is remembered for thousands of steps, and as long the
steps of a repaired run are so much too small (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015,
section 2.1, call m / sqrt(v) a signal-to-noise ratio: the smaller, the smaller the step).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Moments", "moment_rows", "moment_sums", "moments_of", "movers_of", "ratio_of_moments", "unknown_state"]

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


class Moments:
    """What an Adam remembers of one parameter.

    Args:
        state: of the parameter; `exp_avg`, `exp_avg_sq` and `step` are tensors in it.
        betas: decay of the first and of the second moment, in [0, 1).
    """

    def __init__(self, state: MutableMapping[str, Any], betas: Sequence[float | Tensor]) -> None:
        """Store the parts."""
        self.state = state
        self._betas = float(betas[0]), float(betas[1])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that is remembered, by name."""
        return {key: each for key, each in self.state.items() if isinstance(each, Tensor)}

    def sums(self) -> Tensor:
        """Return (2,) float32 on the device: the sum of squared gradients as remembered, and as lately shown.

        Both are estimates without bias where gradients are noise: `exp_avg_sq` divided by what it lacks at first, and
        the square of `exp_avg`, which of noise is (1 - b) / (1 + b) times the square of what it averages.
        """
        first, second = self._betas
        step = self.state["step"].clamp(min=1)
        remembered = _own(self.state["exp_avg_sq"]).sum(dtype=torch.float32) / (1 - second**step)
        shown = _own(self.state["exp_avg"]).float().square().sum() / (1 - first**step) ** 2
        return torch.stack([remembered, shown * ((1 + first) / (1 - first))])

    @torch.no_grad()
    def forget(self) -> None:
        """Begin anew, in place, as before the first step."""
        for key, tensor in self.tensors.items():
            tensor.fill_(1.0 if key == "mu_product" else 0.0)


def moments_of(optimizers: Iterable[Optimizer]) -> Iterator[Moments]:
    """Yield what is remembered of each parameter, if it is both moments, the number of steps and nothing unknown."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                tensors = {key for key, each in state.items() if isinstance(each, Tensor)}
                if "betas" in group and _BOTH <= tensors <= _OF_ADAM:
                    yield Moments(state, group["betas"])


def movers_of(optimizers: Sequence[Optimizer], parameters: Iterable[nn.Parameter]) -> Sequence[Optimizer]:
    """Return the optimizers that move one of the parameters; all of them where none is known to."""
    wanted = {id(each) for each in parameters}
    found = [
        each for each in optimizers if any(id(own) in wanted for group in each.param_groups for own in group["params"])
    ]
    return found or optimizers


@torch.no_grad()
def moment_sums(optimizers: Iterable[Optimizer]) -> Tensor | None:
    """Return (2,) float32: squared gradients that Adams remember, and those lately shown; `None` without an Adam."""
    sums = [each.sums() for each in moments_of(optimizers)]
    return torch.stack([each.to(sums[0].device) for each in sums]).sum(dim=0) if sums else None


def ratio_of_moments(remembered: float, shown: float) -> float | None:
    """Return the root of what is remembered over that of what is shown, 0 or more; `None` if that is no number."""
    ratio = math.sqrt(remembered / shown) if shown > 0 and remembered >= 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def _own(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor that may be sharded."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local

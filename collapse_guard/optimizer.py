"""Optimizer rows: the moments that keep pushing a code which was just placed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["inner_optimizer", "moment_rows", "unknown_state"]

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


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that a wrapper steps, such as Accelerate's, which takes no hooks; any other as it is."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return inner_optimizer(inner)
    return optimizer


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

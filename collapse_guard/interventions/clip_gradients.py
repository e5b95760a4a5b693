"""`clip_gradients`: no step of an optimizer sees gradients of a norm above a bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.policies import ClipGradients

from .base import Site
from .holds import StepHold
from .lasting import Lasting
from .scopes import why_no_optimizer

__all__ = ["ClipGradientsIntervention"]


class ClipGradientsIntervention(Lasting[ClipGradients]):
    """Right when a spike of the gradients throws the latents away from the codes."""

    touches = frozenset({"gradients"})

    def __init__(self, params: ClipGradients, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        self._hold = StepHold("clip_gradients", site.optimizers, before=self._clip, needs_gradients=True)
        self._clipped: Tensor | None = None
        self._steps = 0

    def refusal(self) -> str | None:
        """Refuse where no optimizer is known."""
        return super().refusal() or why_no_optimizer(self.site.optimizers)

    def apply(self) -> str:
        """Clip from the next step on."""
        self._hold.install()
        count = len(self.site.optimizers)
        whose = "the optimizer" if count == 1 else f"each of {count} optimizers"
        return f"gradients of {whose} clipped at norm {self.params.max_norm:g} {self.span}"

    def summing_up(self) -> str:
        """Say how many steps were clipped. Waits for the device."""
        clipped = 0 if self._clipped is None else int(self._clipped)
        return f"; {clipped} of {self._steps} steps were clipped"

    def in_words(self) -> str:
        """Say what is bounded."""
        return f"each optimizer's gradients are clipped at norm {self.params.max_norm:g} {self.span}"

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps there were and how many of them were clipped."""
        return {"steps": self._steps, "clipped": 0 if self._clipped is None else int(self._clipped)}

    def load_state_dict(self, state: Any) -> None:
        """Go on clipping."""
        self._steps, self._clipped = int(state["steps"]), torch.tensor(int(state["clipped"]))
        super().load_state_dict(state)

    @torch.no_grad()
    def _clip(self, optimizer: Optimizer) -> None:
        """Scale all gradients of an optimizer by one factor; zeros for a norm that is not finite."""
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if not parameters:
            return
        limit: float | Tensor = self.params.max_norm
        if isinstance(scale := getattr(optimizer, "grad_scale", None), Tensor):
            limit = limit * scale.to(torch.float32)  # a fused optimizer is handed the gradients as they were scaled
        norm = _norm(parameters)
        is_finite = norm.isfinite()
        factor = torch.where(is_finite, (limit / (norm + 1e-6)).clamp(max=1.0), 0.0)
        for parameter in parameters:
            gradient = _dense(parameter)
            gradient.mul_(factor.to(gradient))
            gradient.masked_fill_(~is_finite.to(gradient.device), 0.0)
        clipped = (factor < 1).long()
        self._clipped = clipped if self._clipped is None else self._clipped.to(clipped.device) + clipped
        self._steps += 1


def _dense(parameter: nn.Parameter) -> Tensor:
    """Return the values of a gradient, those that are stored where it is sparse."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        values: Tensor = parameter.grad._values()
        return values
    return parameter.grad


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, in float32, on the device of the first."""
    norms = [torch.linalg.vector_norm(_dense(each), dtype=torch.float32) for each in parameters]
    whole: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return whole

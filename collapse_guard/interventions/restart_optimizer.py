"""`restart_optimizer`: what moves the encoder forgets the gradients of a collapse, which kept its steps small.

Weights stay as they are. Memory: until the outcome is known, a copy of both moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from collapse_guard.optimizer import moment_sums, moments_of, movers_of, ratio_of_moments
from collapse_guard.policies import RestartOptimizer

from .base import Intervention, Site
from .parts import Part, TensorsPart
from .scopes import NO_OPTIMIZER

__all__ = ["RestartOptimizerIntervention"]


class MomentsPart(TensorsPart):
    """All that some optimizers remember of the parameters of which they know both moments."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Store where it is."""
        super().__init__("optimizer", lambda: _tensors(optimizers))

    def check(self) -> None:
        """Refuse nothing, and keep all: what is forgotten is forgotten everywhere."""

    def changes(self) -> list[dict[str, Any]]:
        """Return how many tensors changed, if any did: there are three and more for each parameter of the model."""
        found = super().changes()
        return [{"name": self.name, "tensors": len(found)}] if found else []


def _tensors(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": tensor
        for index, each in enumerate(moments_of(optimizers))
        for key, tensor in each.tensors.items()
    }


class RestartOptimizerIntervention(Intervention[RestartOptimizer]):
    """Right when a repaired run learns as slowly as if its gradients were still those of the collapse."""

    touches = frozenset({"optimizer"})
    reaches_graphs = True

    def __init__(self, params: RestartOptimizer, site: Site) -> None:
        """Find what moves the encoder."""
        super().__init__(params, site)
        self._optimizers = movers_of(site.optimizers, site.encoder())

    def refusal(self) -> str | None:
        """Refuse where nothing is remembered that could be forgotten."""
        if (why := super().refusal()) is not None:
            return why
        if not self.site.optimizers:
            return NO_OPTIMIZER
        if next(moments_of(self._optimizers), None) is None:
            kinds = ", ".join(type(each).__name__ for each in self._optimizers)
            return f"{kinds} keeps no pair of moments with a step count for each parameter, as Adam does"
        return None

    def parts(self) -> list[Part]:
        """Return what the optimizers remember."""
        return [MomentsPart(self._optimizers)]

    def apply(self) -> str:
        """Forget all of it."""
        sums = moment_sums(self._optimizers)
        ratio = ratio_of_moments(*sums.tolist()) if sums is not None else None
        found = list(moments_of(self._optimizers))
        for each in found:
            each.forget()
        kinds = ", ".join(type(each).__name__ for each in self._optimizers)
        if ratio is None:  # of several codebooks that one encoder feeds, the first had it done
            return f"{kinds} has begun anew already"
        return (
            f"{kinds} begins anew: moments of {len(found)} parameters forgotten, which remembered gradients "
            f"{ratio:.3g} times those of the last steps"
        )

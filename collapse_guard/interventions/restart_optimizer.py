"""`restart_optimizer`: what moves the encoder forgets the gradients of a collapse, which kept its steps small.

Weights stay as they are. Memory: until the outcome is known, a copy of both moments, also in checkpoints.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from collapse_guard.optimizer import moments_of, movers_of, own_part
from collapse_guard.policies import RestartOptimizer

from .base import Intervention, Site
from .parts import InterventionError, Part, TensorsPart
from .scopes import why_no_optimizer

__all__ = ["RestartOptimizerIntervention"]


class MomentsPart(TensorsPart):
    """All that some optimizers remember of the parameters of which they know both moments.

    Args:
        optimizers: of the run; what is saved is named by the places of optimizer and parameter, which a resumed run has
            too.
        movers: those of them that begin anew.
    """

    def __init__(self, optimizers: Sequence[Optimizer], movers: Sequence[Optimizer]) -> None:
        """Store where it is."""
        super().__init__("optimizer", lambda: {name: own_part(each) for name, each in self._tensors().items()})
        self._optimizers, self._movers = optimizers, movers
        self._lost = 0

    @property
    def place(self) -> Hashable:
        """The optimizers."""
        return self.name, frozenset(map(id, self._movers))

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{place}.{key}": tensor
            for index, optimizer in enumerate(self._optimizers)
            if any(optimizer is each for each in self._movers)
            for place, moments in moments_of(optimizer)
            for key, tensor in moments.tensors.items()
        }

    def check(self) -> None:
        """Refuse nothing, and keep all: what is forgotten is forgotten everywhere."""

    def undo(self) -> None:
        """Copy all of it back.

        Raises:
            InterventionError: a resumed run has not got what other ranks held; nothing is put back.
        """
        if self._lost:
            raise InterventionError(
                f"{self._lost} moments were sharded over the ranks (DTensor), which no checkpoint of the guard holds: "
                "what was forgotten before the run was resumed stays forgotten"
            )
        super().undo()

    def changes(self) -> list[dict[str, Any]]:
        """Return how many tensors changed, if any did: there are three and more for each parameter of the model."""
        live = self._live()
        changed = sum(name in live and not torch.equal(live[name], saved) for name, saved in self._saved.items())
        return [{"name": self.name, "tensors": changed}] if changed else []

    def state_dict(self) -> dict[str, Any]:
        """Return the copies; of those that are sharded, of which the other ranks have other parts, only how many."""
        whole = {name for name, tensor in self._tensors().items() if own_part(tensor) is tensor}
        copies = {name: tensor.cpu() for name, tensor in self._saved.items() if name in whole}
        return {"copies": copies, "lost": self._lost + len(self._saved) - len(copies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies."""
        super().load_state_dict(state["copies"])
        self._lost = int(state["lost"])


class RestartOptimizerIntervention(Intervention[RestartOptimizer]):
    """Right when a repaired run learns as slowly as if its gradients were still those of the collapse."""

    touches = frozenset({"optimizer"})
    reaches_graphs = True

    def __init__(self, params: RestartOptimizer, site: Site) -> None:
        """Find what moves the encoder."""
        super().__init__(params, site)
        self._movers = movers_of(site.optimizers, site.encoder())

    def refusal(self) -> str | None:
        """Refuse where nothing is remembered that could be forgotten."""
        if (why := super().refusal() or why_no_optimizer(self.site.optimizers)) is not None:
            return why
        if any(True for each in self._movers for _ in moments_of(each)):
            return None
        kept = sorted({str(key) for each in self._movers for state in each.state.values() for key in state})
        return (
            f"{self._kinds} keeps {', '.join(kept[:8]) or 'nothing yet'} of each parameter: what can be forgotten are "
            "the tensors exp_avg, exp_avg_sq and step, as Adam keeps them, with nothing unknown beside them"
        )

    @property
    def _kinds(self) -> str:
        return ", ".join(type(each).__name__ for each in self._movers)

    def parts(self) -> list[Part]:
        """Return what the optimizers remember."""
        return [MomentsPart(self.site.optimizers, self._movers)]

    def apply(self) -> str:
        """Forget all of it."""
        found = [moments for each in self._movers for _, moments in moments_of(each)]
        steps = max(int(each.state["step"]) for each in found)
        for each in found:
            each.forget()
        return f"{self._kinds} begins anew: the moments of {len(found)} parameters, of {steps} steps, are forgotten"

"""`lower_lr` and `raise_codebook_lr`: other learning rates, whatever a scheduler writes at each step.

A scheduler computes from what it wrote before, or writes what it planned; a number put into a group would be lost, or
multiplied again. So the groups are left alone: for the length of each step the parameters concerned stand in a group of
their own with the scaled rate, and afterwards everything is as the scheduler, the logger and the checkpoint know it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.policies import LowerLr, RaiseCodebookLr

from .base import Intervention, Site
from .holds import StepHold
from .lasting import Lasting
from .scopes import encoder_of, moved_by, named, names_of, paths_of, why_inseparable, why_no_optimizer

__all__ = ["LowerLrIntervention", "RaiseCodebookLrIntervention", "ScaledRates"]


class ScaledRates(StepHold):
    """Learning rates of some parameters, multiplied by a factor within each step.

    Args:
        name: of the hold.
        optimizers: whose steps.
        parameters: whose rates; `None`: all.
        factor: above 0.
    """

    def __init__(
        self, name: str, optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter] | None, factor: float
    ) -> None:
        """Store the parts; nothing is hooked before `install`."""
        super().__init__(name, optimizers, before=self._scale, after=self._restore)
        self._chosen = None if parameters is None else {id(each) for each in parameters}
        self._factor = factor
        self._groups: dict[int, list[dict[str, Any]]] = {}  # of each optimizer within its step: the groups as they were
        self._kept: dict[int, list[tuple[Any, Any]]] = {}  # and the rate and the parameters of each

    def choose(self, parameters: Sequence[nn.Parameter]) -> None:
        """Scale the rates of these parameters instead, from the next step on."""
        self._chosen = {id(each) for each in parameters}

    def describe(self) -> dict[str, Any]:
        """Return the factor."""
        return {"factor": self._factor}

    def _scale(self, optimizer: Optimizer) -> None:
        self._restore(optimizer)  # of a step that an exception broke off
        groups = optimizer.param_groups
        self._groups[id(optimizer)] = list(groups)
        self._kept[id(optimizer)] = [(group["lr"], group["params"]) for group in groups]
        for group in list(groups):
            inside = [each for each in group["params"] if self._chosen is None or id(each) in self._chosen]
            if len(inside) == len(group["params"]):
                group["lr"] = group["lr"] * self._factor
            elif inside:
                theirs = {id(each) for each in inside}
                group["params"] = [each for each in group["params"] if id(each) not in theirs]
                groups.append({**group, "params": inside, "lr": group["lr"] * self._factor})

    def _restore(self, optimizer: Optimizer) -> None:
        if (groups := self._groups.pop(id(optimizer), None)) is None:
            return
        del optimizer.param_groups[len(groups) :]
        for group, (rate, parameters) in zip(groups, self._kept.pop(id(optimizer)), strict=True):
            group["lr"], group["params"] = rate, parameters


class _TableRate(ScaledRates):
    """The learning rate of one table: other tables that the same optimizers move have rates of their own."""

    @property
    def place(self) -> Hashable:
        """What is done, and to which table."""
        return self.name, frozenset(self._chosen or ())


def _why_none(site: Site) -> str | None:
    """Say why there are no learning rates to scale."""
    if (why := why_no_optimizer(site.optimizers)) is not None:
        return why
    groups = [(type(each).__name__, group) for each in site.optimizers for group in each.param_groups]
    without = dict.fromkeys(name for name, group in groups if group.get("lr") is None)
    return f"{', '.join(without)} has no learning rate `lr` that could be scaled" if without else None


def _beside(site: Site, kind: type[LowerLrIntervention | RaiseCodebookLrIntervention]) -> str:
    """Name the factors of the tries before on the same codebook, which are in force as well."""
    factors = [
        f"{each.params.factor:g}" for each in site.standing() if isinstance(each, kind) and each.site.view is site.view
    ]
    return f", and times {' and '.join(factors)} by another try," if factors else ""


def _other(site: Site, kind: type[Intervention[Any]]) -> str | None:
    """Say that another codebook has scaled the same rates: each of them would multiply them once more."""
    for each in site.standing():
        if isinstance(each, kind) and each.site.view is not site.view:
            return f"it is in force already for {each.site.view.name}, and there is one optimizer for both"
    return None


class LowerLrIntervention(Lasting[LowerLr]):
    """Right when the latents move faster than any codebook could follow. A repeated try goes on where it stands."""

    touches = frozenset({"learning_rate"})

    def __init__(self, params: LowerLr, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        found = encoder_of(site) if params.of == "encoder" else None
        self._why = found if isinstance(found, str) else None
        self._chosen = found if isinstance(found, list) else None
        self._hold = self._rates = ScaledRates("learning_rate", site.optimizers, self._chosen, params.factor)

    def refusal(self) -> str | None:
        """Refuse where there is no rate to scale, or where it is scaled already."""
        return super().refusal() or _why_none(self.site) or self._why or _other(self.site, LowerLrIntervention)

    def in_words(self) -> str:
        """Say whose rate is scaled."""
        whose = "all parameters" if self._chosen is None else names_of(self.site.model, self._chosen)
        beside = _beside(self.site, LowerLrIntervention)
        return f"the learning rate of {whose} is {self.params.factor:g} times what the optimizer's groups say{beside}"

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the parameters concerned: a resumed run has seen no forward yet."""
        if self._chosen is None or self.site.model is None:
            return {"chosen": None}
        return {"chosen": paths_of(self.site.model, self._chosen)}

    def load_state_dict(self, state: Any) -> None:
        """Scale again."""
        if state["chosen"] is not None and self.site.model is not None:
            self._chosen = named(self.site.model, state["chosen"])
            self._rates.choose(self._chosen)
        super().load_state_dict(state)


class RaiseCodebookLrIntervention(Lasting[RaiseCodebookLr]):
    """Right when a codebook that an optimizer moves is left behind by the latents."""

    touches = frozenset({"learning_rate"})

    def __init__(self, params: RaiseCodebookLr, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        table = site.view.table
        self._chosen: list[nn.Parameter] = []
        if isinstance(table, TensorRef) and table.is_parameter:
            self._chosen = moved_by(site.optimizers, [cast(nn.Parameter, table.whole())])
        self._hold = _TableRate("codebook_learning_rate", site.optimizers, self._chosen, params.factor)

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse a codebook that no optimizer of the user's moves."""
        if view.kind != "learnable" or not isinstance(view.table, TensorRef):
            return f"no optimizer moves the rows of this codebook ({view.kind}): it has no learning rate of its own"
        if view.optimizers:
            return "the quantizer itself holds the optimizer that moves its codebook"
        return super().why_unsupported(view)

    def refusal(self) -> str | None:
        """Refuse where there is no rate to scale, or where no step of the optimizer reaches the codebook."""
        why = super().refusal() or _why_none(self.site) or why_inseparable(self.site.optimizers, self._chosen)
        if why is None and self.site.view.is_frozen:
            why = "the codebook's own updates are kept out, so that its learning rate has no effect"
        return why or (None if self._chosen else "no known optimizer moves the codebook")

    def in_words(self) -> str:
        """Say whose rate is scaled."""
        table = self.site.view.table
        has_heads = isinstance(table, TensorRef) and table.head is not None and len(table.whole()) > 1
        heads, beside = ", all its heads," if has_heads else "", _beside(self.site, RaiseCodebookLrIntervention)
        rate = f"{self.params.factor:g} times what the optimizer's group says"
        return f"the codebook's learning rate{heads} is {rate}{beside}"

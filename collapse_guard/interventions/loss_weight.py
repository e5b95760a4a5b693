"""`scale_loss_weight`: a number of the user's own loss, found by its path, scaled within bounds and put back later.

The path leads from the model over attributes, keys of mappings and indices of lists to one number. Whether a loss reads
that number at every step is the user's knowledge; verification sees whether it helped.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collapse_guard.adapters.refs import Knob
from collapse_guard.policies import ScaleLossWeight

from .base import Intervention, Site
from .parts import KnobPart, Part

__all__ = ["ScaleLossWeightIntervention", "find_number"]


@dataclass(frozen=True, slots=True)
class ItemKnob(Knob):
    """A number in a mapping or a list: `attribute` is its key there."""

    def get(self) -> float:
        """Return the number."""
        return float(self.owner[self._key])

    def set(self, value: float) -> None:
        """Set the number, keeping its kind: a tensor is filled in place, a Python number is replaced."""
        current = self.owner[self._key]
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.fill_(value)
        else:
            self.owner[self._key] = float(value)

    def save(self) -> Any:
        """Return what is there as it is, its type included, for `restore`; of a tensor a copy."""
        current = self.owner[self._key]
        return current.detach().clone() if isinstance(current, Tensor) else current

    def restore(self, saved: Any) -> None:
        """Put back what `save` returned, a tensor in place."""
        current = self.owner[self._key]
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.copy_(saved)
        else:
            self.owner[self._key] = saved

    @property
    def _key(self) -> str | int:
        return int(self.attribute) if isinstance(self.owner, MutableSequence) else self.attribute


def find_number(model: nn.Module, path: str) -> Knob:
    """Return where the number at a path is.

    >>> model = nn.Module()
    >>> model.weights = {"perceptual": 0.1}
    >>> find_number(model, "weights.perceptual").get()
    0.1

    Raises:
        LookupError: there is nothing at the path, or no number that can be written; says what is there instead.
    """
    *way, last = path.split(".")
    owner: Any = model
    for index, step in enumerate(way):
        owner = _at(owner, step, ".".join(way[:index]) or "the model")
    value = _at(owner, last, ".".join(way) or "the model")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()):
        raise LookupError(f"{path}: expected a number or a tensor of one, got {type(value).__name__}")
    if isinstance(value, nn.Parameter):
        raise LookupError(f"{path} is a parameter: an optimizer moves it")
    if isinstance(owner, (MutableMapping, MutableSequence)):
        return ItemKnob(owner, last)
    if isinstance(getattr(type(owner), last, None), property) or isinstance(owner, (Mapping, tuple)):
        raise LookupError(f"{path} cannot be written to: name the number that it is computed from")
    return Knob(owner, last)


def _at(owner: Any, step: str, where: str) -> Any:
    """Return what lies one step further."""
    if isinstance(owner, Mapping) and step in owner:
        return owner[step]
    if isinstance(owner, (list, tuple, nn.ModuleList)) and step.isdecimal() and int(step) < len(owner):
        return owner[int(step)]
    if hasattr(owner, step) and not isinstance(owner, Mapping):
        return getattr(owner, step)
    names = owner.keys() if isinstance(owner, Mapping) else vars(owner) if hasattr(owner, "__dict__") else ()
    numbers = [str(name) for name in names if isinstance(_value(owner, name), (int, float)) and str(name) != "training"]
    raise LookupError(f"{where} has no {step!r}; numbers there: {', '.join(numbers[:12]) or 'none'}")


def _value(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, Mapping) else vars(owner)[name]


_LOOK_EVERY = 10  # steps


class ScaleLossWeightIntervention(Intervention[ScaleLossWeight]):
    """Right when another term of your loss drags the latents together. A repeated try goes on where it stands."""

    touches = frozenset({"loss_weight"})
    stays = True
    goes_further = True

    def __init__(self, params: ScaleLossWeight, site: Site) -> None:
        """Find the number."""
        super().__init__(params, site)
        self._knob: Knob | None = None
        self._why: str | None = "the model is not known here"
        if site.model is not None:
            try:
                self._knob, self._why = find_number(site.model, params.weight), None
            except LookupError as error:
                self._why = str(error.args[0])
        self._before = self._set = 0.0
        self._healthy_steps = 0

    def refusal(self) -> str | None:
        """Refuse where there is no such number, or where a bound keeps it from moving."""
        if (why := super().refusal() or self._why) is not None or self._knob is None:
            return why
        now, wanted = self._knob.get(), self._wanted()
        is_onward = wanted < now if self.params.factor < 1 else wanted > now
        if not is_onward:
            bound = self.params.floor if self.params.factor < 1 else self.params.ceiling
            return f"{self.params.weight} is {now:g}, already at or beyond the bound {bound or 0:g}"
        return None

    def _wanted(self) -> float:
        assert self._knob is not None
        wanted = max(self._knob.get() * self.params.factor, self.params.floor)
        return wanted if self.params.ceiling is None else min(wanted, self.params.ceiling)

    def parts(self) -> list[Part]:
        """Return the number."""
        return [KnobPart(self.params.weight, self._knob)] if self._knob is not None else []

    def apply(self) -> str:
        """Set the scaled number."""
        assert self._knob is not None
        before = self._knob.get()
        earlier = [each._before for each in self._others() if each._set == before]
        self._before = earlier[0] if earlier else before  # what is put back is what its owner set
        self._knob.set(self._wanted())
        self._set = self._knob.get()
        return f"{self.params.weight} {before:g} -> {self._set:g}"

    def _others(self) -> list[ScaleLossWeightIntervention]:
        """Return the others in force that scale the same number."""
        standing = [each for each in self.site.standing() if isinstance(each, ScaleLossWeightIntervention)]
        return [each for each in standing if each._knob and self._knob and each._knob.place == self._knob.place]

    def is_due(self, steps: int) -> bool:
        """Whether it is time to look: several ranks gather for it."""
        return steps % _LOOK_EVERY == 0

    def tend(self, steps: int) -> str | None:
        """Put the number back once the codebook has been healthy for long enough; leave one that its owner sets."""
        assert self._knob is not None
        if self._knob.get() != self._set:
            self.is_over = True
            if any(each._set == self._knob.get() for each in self._others()):
                return None  # a later try has gone further, and puts back what this one would have
            return f"{self.params.weight} is {self._knob.get():g}: somebody else sets it, so that it is left alone"
        self._healthy_steps = self._healthy_steps + _LOOK_EVERY if self.site.health() == "healthy" else 0
        if self.params.restore_after is None or self._healthy_steps < self.params.restore_after.count:
            return None
        self._knob.set(self._before)
        self.is_over = True
        return f"{self.params.weight} {self._set:g} -> {self._before:g}, after {self.params.restore_after} of health"

    def in_words(self) -> str:
        """Say what the number is now."""
        return f"{self.params.weight} is {self._set:g}, {self._before:g} before"

    def state_dict(self) -> dict[str, Any]:
        """Return the number before and after, and for how many steps the codebook has been healthy."""
        return {"before": self._before, "set": self._set, "healthy_steps": self._healthy_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on; the ledger has put the number in force again."""
        self._before, self._set = float(state["before"]), float(state["set"])
        self._healthy_steps = int(state["healthy_steps"])

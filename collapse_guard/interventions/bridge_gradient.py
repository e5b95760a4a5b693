"""`bridge_gradient`: the encoder gets the gradient of what is decoded, as by a straight-through estimator.

Assigning a code has no gradient. Where `z + (q - z).detach()` was left out, or undone by another `detach()`, the
encoder learns nothing of its task and only sits down on its codes. From then on it is handed the gradient at what is
decoded, as it is (Bengio et al. 2013, arXiv:1308.3432; van den Oord et al. 2017, arXiv:1711.00937, section 3.2). No
value of the forward changes, and evaluation is left alone.

It lasts until the guard goes: only the owner can write the line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collapse_guard.adapters import CodebookView
from collapse_guard.diagnosis.pulse import ONLY_PULL
from collapse_guard.policies import BridgeGradient

from .base import Intervention, Site
from .bridge_hold import BridgeHold

__all__ = ["BridgeGradientIntervention"]

_SOON, _LOOK_EVERY = 50, 20


class BridgeGradientIntervention(Intervention[BridgeGradient]):
    """Right when the only gradient at the quantizer's input is the pull of the commitment, or there is none."""

    touches = frozenset({"gradients"})
    stays = True

    def __init__(self, params: BridgeGradient, site: Site) -> None:
        """Make the hooks; none is in before `apply`."""
        super().__init__(params, site)
        self._hold: BridgeHold | None = None
        try:
            if (model := site.model) is not None:
                view = site.view
                trains = view.owner or view.module
                self._hold = BridgeHold(model, model.get_submodule(view.name), trains, site.optimizers)
        except AttributeError:  # a head's: refused with its reason
            pass

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse a level of a residual, and a quantizer whose forward is not called."""
        if cls.is_moot(view):
            return "it is a level of a residual: the gradient is handed on past its levels, and not measured at one"
        if "forward" not in view.readers:
            return f"its codes are assigned in {', '.join(view.readers)}(), which is called past every hook"
        return None

    @classmethod
    def is_moot(cls, view: CodebookView) -> bool:
        """Whether nothing is known of the gradient there."""
        return view.group is not None

    def refusal(self) -> str | None:
        """Refuse where the gradient arrives, where none can, and where it is not known."""
        if (why := super().refusal()) is not None:
            return why
        if self._hold is None:
            return f"no module {self.site.view.name} is known of the model"
        if not self.site.optimizers:
            return "no optimizer is known, by whose steps it is told when a step is over"
        reading = self.site.reading
        share = reading.task_gradient if reading is not None else None
        if share is None:
            return "nobody knows that the task's gradient is missing: its input may need none, as of a frozen encoder"
        if share > ONLY_PULL:
            return f"{share:.2g} of the task's gradient arrives at its input already"
        others = [each for each in self.site.standing() if isinstance(each, BridgeGradientIntervention)]
        is_held = any(hold.place == self._hold.place for each in others for hold in each.holds())
        return "its gradient is handed on already" if is_held else None

    def holds(self) -> tuple[BridgeHold, ...]:
        """Return the hooks on the quantizer and on what decodes."""
        return () if self._hold is None else (self._hold,)

    def apply(self) -> str:
        """Look for who decodes in the next step, and hand the gradient on from there."""
        assert self._hold is not None
        self._hold.install()
        return self.in_words()

    def is_due(self, steps: int) -> bool:
        """Whether it is looked if a hook has failed: soon while nobody was met that decodes, now and then later."""
        return steps % (_LOOK_EVERY if steps > _SOON else 5) == 0

    def in_words(self) -> str:
        """Say what stays, and what is to be written in its place."""
        return (
            "what is decoded hands its gradient on to the encoder; without the guard it does not, unless the model "
            "decodes `quantized = latents + (quantized - latents).detach()`"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where the gradient is handed on."""
        assert self._hold is not None
        hold = self._hold
        return {"met": list(hold.met), "is_looking": hold.is_looking, "steps": hold.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand it on at the same places, from the first forward on, or look on.

        Raises:
            ValueError: the model has no such quantizer any more.
        """
        if self._hold is None:
            raise ValueError(f"the model has no quantizer {self.site.view.name}: nothing can be handed on there")
        self._hold.met, self._hold.is_looking = [*map(str, state["met"])], bool(state["is_looking"])
        self._hold.steps = int(state["steps"])
        super().load_state_dict(state)

"""Parts that no checkpoint of the model holds: a number, a switch of the quantizer, hooks in force."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from collapse_guard.adapters import CodebookView
from collapse_guard.adapters.commitment import AddedCommitment
from collapse_guard.adapters.refs import Knob
from collapse_guard.interventions.holds import Hold
from collapse_guard.window import Window

from .part import Part

__all__ = ["HoldPart", "KnobPart", "LayoutPart", "NormalisationPart", "ThresholdPart"]


class KnobPart(Part):
    """A number on a module or in a configuration, which no checkpoint of the model holds.

    Args:
        name: in manifests.
        knob: where it is.
    """

    def __init__(self, name: str, knob: Knob | AddedCommitment) -> None:
        """Store where it is."""
        self.name = name
        self._knob = knob
        self._saved: Any = None
        self._before = 0.0
        self._left: float | None = None  # the number as the intervention left it

    @property
    def place(self) -> Hashable:
        """Owner and attribute."""
        return self._knob.place

    def save(self) -> None:
        """Keep the number as its owner has it, its type included."""
        self._saved, self._before = self._knob.save(), self._knob.get()

    def check(self) -> None:
        """Note the number that was left: another one that stands there later is its owner's."""
        self._left = self._knob.get()

    def undo(self) -> None:
        """Put the number back, its type included, unless its owner has set another one meanwhile."""
        if self._left is None or self._knob.get() == self._left:
            self._knob.restore(self._saved)

    def changes(self) -> list[dict[str, Any]]:
        """Return the number before and after, if it changed."""
        now = self._knob.get()
        return [{"name": self.name, "before": self._before, "after": now}] if now != self._before else []

    def state_dict(self) -> dict[str, Any]:
        """Return the number, before and as it was left."""
        return {"saved": self._saved, "before": self._before, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the number."""
        self._saved, self._before, self._left = state["saved"], float(state["before"]), state.get("left")

    def in_words(self) -> str:
        """Say what the number is now, and was."""
        now = self._knob.get()
        return f"{self.name} is {now:.6g}, {self._before:.6g} before" if now != self._before else ""

    def standing(self) -> float:
        """Return the number in force."""
        return self._knob.get()

    def stand(self, value: Any) -> None:
        """Set the number that was in force."""
        if self._knob.get() != float(value):
            self._knob.set(float(value))


class ThresholdPart(KnobPart):
    """The threshold of a quantizer's own replacement of codes, as it is where that is on.

    While the guard keeps the replacement out, the number on the module is the one with which nothing is replaced.

    Args:
        view: the codebook, of a quantizer with such a threshold.
    """

    def __init__(self, view: CodebookView) -> None:
        """Store where it is."""
        assert view.threshold is not None
        super().__init__("replacement_threshold", view.threshold)
        self._view = view

    def undo(self) -> None:
        """Put threshold and count back, for when the replacement is on again."""
        with self._view.given_back():
            super().undo()

    def in_words(self) -> str:
        """Say what the number is where the replacement is on, and was."""
        with self._view.given_back():
            return super().in_words()

    def standing(self) -> float:
        """Return the number in force, or to be so once the replacement is on again."""
        with self._view.given_back():
            return super().standing()

    def stand(self, value: Any) -> None:
        """Set the number that was in force."""
        with self._view.given_back():
            super().stand(value)


class NormalisationPart(Part):
    """Whether a quantizer normalises: a setting of it, which no checkpoint of the model holds.

    Args:
        view: the codebook.
        window: its latents; those from before a change are not those from after it.
    """

    name = "normalisation"

    def __init__(self, view: CodebookView, window: Window) -> None:
        """Store where it is."""
        self._view = view
        self._window = window
        self._was_off = False

    @property
    def place(self) -> Hashable:
        """The setting's owner."""
        assert self._view.normalisation is not None
        return "normalisation", id(self._view.normalisation.owner)

    def save(self) -> None:
        """Keep whether it is off already."""
        self._was_off = self._view.is_unnormalised

    def undo(self) -> None:
        """Let the quantizer normalise again, if it did."""
        if self._view.is_unnormalised and not self._was_off:
            self._view.restore_normalisation()
            self._window.forget()

    def changes(self) -> list[dict[str, Any]]:
        """Return whether it normalises, before and after."""
        now = self._view.is_unnormalised
        return [] if now == self._was_off else [{"name": self.name, "before": not self._was_off, "after": not now}]

    def state_dict(self) -> dict[str, Any]:
        """Return whether it was off."""
        return {"was_off": self._was_off}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over whether it was off."""
        self._was_off = bool(state["was_off"])

    def in_words(self) -> str:
        """Say that a model made anew would normalise."""
        is_off = self._view.is_unnormalised and not self._was_off
        return "normalisation is off: make the quantizer without it wherever this codebook is loaded" if is_off else ""

    def standing(self) -> bool | None:
        """Return `True` while it is off."""
        return self._view.is_unnormalised or None

    def stand(self, value: Any) -> None:
        """Switch it off again."""
        self._view.disable_normalisation()


class HoldPart(Part):
    """Hooks in force, such as those that clip gradients; the intervention installs them, and does so again on resume.

    Args:
        hold: the hooks.
    """

    def __init__(self, hold: Hold) -> None:
        """Store the hooks."""
        self.name = hold.name
        self._hold = hold
        self._was_in_force = False

    @property
    def place(self) -> Hashable:
        """What the hooks act on."""
        return self._hold.place

    def save(self) -> None:
        """Keep whether they are in force already."""
        self._was_in_force = self._hold.is_in_force

    def undo(self) -> None:
        """Take the hooks out, if the intervention put them in."""
        if not self._was_in_force:
            self._hold.remove()

    def changes(self) -> list[dict[str, Any]]:
        """Return what the hooks do, if they were put in."""
        now = self._hold.is_in_force
        if now == self._was_in_force:
            return []
        return [{"name": self.name, "before": self._was_in_force, "after": now, **self._hold.describe()}]

    def state_dict(self) -> dict[str, Any]:
        """Return whether they were in force."""
        return {"was_in_force": self._was_in_force}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over whether they were in force."""
        self._was_in_force = bool(state["was_in_force"])


class LayoutPart(HoldPart):
    """How latents are arranged before a quantizer.

    Args:
        hold: the hooks that rearrange them.
        window: latents that were recorded; those from before a change are not those from after it.
    """

    def __init__(self, hold: Hold, window: Window) -> None:
        """Store the hooks and where latents are."""
        super().__init__(hold)
        self._window = window

    def undo(self) -> None:
        """Take the hooks out, if the intervention put them in, and forget what they let be recorded."""
        if self._hold.is_in_force and not self._was_in_force:
            super().undo()
            self._window.forget()

"""`cool_sampling`: a lower temperature where training draws codes at random, so that it draws near ones."""

from __future__ import annotations

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import CoolSampling

from .base import Intervention
from .parts import KnobPart, Part

__all__ = ["CoolSamplingIntervention"]


class CoolSamplingIntervention(Intervention[CoolSampling]):
    """Right when latents are given codes that are not theirs. A repeated try goes on where it stands.

    What is hot depends on how far codes lie apart: finer levels of a residual want a lower temperature.
    """

    touches = frozenset({"sampling"})
    goes_further = True

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse where nothing is drawn, or not by that number alone."""
        return view.lacks.get("temperature", "this quantizer draws no codes at random") if cls.is_moot(view) else None

    @classmethod
    def is_moot(cls, view: CodebookView) -> bool:
        """Whether there is no temperature that could be too high."""
        return view.temperature is None

    def refusal(self) -> str | None:
        """Refuse a temperature of 0: the nearest code is taken."""
        temperature = self.site.view.temperature
        if (reason := super().refusal()) is not None or temperature is None:
            return reason
        return None if temperature.get() > 0 else "nothing is drawn: the temperature is 0"

    def parts(self) -> list[Part]:
        """Return the temperature."""
        temperature = self.site.view.temperature
        return [KnobPart("sampling_temperature", temperature)] if temperature is not None else []

    def apply(self) -> str:
        """Multiply the temperature."""
        temperature = self.site.view.temperature
        assert temperature is not None
        before = temperature.get()
        temperature.set(before * self.params.factor)
        return f"sampling temperature {before:.6g} -> {temperature.get():.6g}"

"""`ease_replacement`: a lower threshold for the quantizer's own replacement of codes, which then lets most be."""

from __future__ import annotations

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import EaseReplacement

from .base import Intervention
from .parts import Part, ThresholdPart

__all__ = ["EaseReplacementIntervention"]


class EaseReplacementIntervention(Intervention[EaseReplacement]):
    """Right when the quantizer replaces codes that are in use: tokens lose their meaning while perplexity looks well.

    The threshold is a count of tokens in a forward; what it comes to is known from the last reading.
    """

    touches = frozenset({"replacement"})
    goes_further = True

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse where nothing is replaced."""
        return view.lacks.get("threshold", "this quantizer replaces no codes by itself") if cls.is_moot(view) else None

    @classmethod
    def is_moot(cls, view: CodebookView) -> bool:
        """Whether there is no threshold that could be too high."""
        return view.threshold is None

    def refusal(self) -> str | None:
        """Refuse where nothing is replaced, or hardly anything."""
        if (reason := super().refusal()) is not None:
            return reason
        if (share := self._share()) is None:
            return "how many tokens a forward has is not known: no reading has counted them yet"
        if not share:
            return "its own replacement of codes is kept out already"
        if share <= self.params.to:
            return f"codes are replaced below {share:.3g} of their even use, already at or below {self.params.to:g}"
        return None

    def parts(self) -> list[Part]:
        """Return the threshold, and the count of replaced codes with it."""
        view = self.site.view
        return [ThresholdPart(view)] if view.threshold is not None else []

    def apply(self) -> str:
        """Lower the threshold by as much as the share is to be lower."""
        threshold, share = self.site.view.threshold, self._share()
        assert threshold is not None
        assert share
        before = threshold.get()
        threshold.set(before * self.params.to / share)
        told = f"replacement threshold {before:.6g} -> {threshold.get():.6g}"
        return f"{told}: {share:.3g} -> {self.params.to:g} of what even use gives a code"

    def _share(self) -> float | None:
        reading = self.site.reading
        return reading.replacement_share if reading is not None else None

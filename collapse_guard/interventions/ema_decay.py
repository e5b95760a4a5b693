"""`slow_ema` and `fast_ema`: another decay for the moving averages that move the codebook."""

from __future__ import annotations

from typing import TypeVar

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import FastEma, SlowEma

from .base import Intervention
from .parts import KnobPart, Part

__all__ = ["FastEmaIntervention", "SlowEmaIntervention"]


_Either = TypeVar("_Either", SlowEma, FastEma)


class _EmaDecay(Intervention[_Either]):
    """Set the decay that the quantizer reads at each update."""

    touches = frozenset({"decay"})

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse where no averages move the codebook, or where their decay is out of reach."""
        if view.decay is not None:
            return None
        if view.kind != "ema":
            return f"no moving averages move this codebook ({view.kind}): it has no decay"
        return "the decay of its moving averages is in no attribute that is known"

    def refusal(self) -> str | None:
        """Refuse where the quantizer's own updates do not reach the codebook: their decay would change nothing."""
        if (why := super().refusal()) is None and self.site.view.is_frozen:
            return "the quantizer's own updates are kept out, so that their decay has no effect"
        return why

    def parts(self) -> list[Part]:
        """Return the decay."""
        decay = self.site.view.decay
        return [KnobPart("decay", decay)] if decay is not None else []

    def apply(self) -> str:
        """Set the target."""
        decay = self.site.view.decay
        assert decay is not None
        before = decay.get()
        decay.set(self.params.target)
        return f"decay {before:.15g} -> {decay.get():.6g}: averages over {_span(before)} -> {_span(decay.get())} steps"


class SlowEmaIntervention(_EmaDecay[SlowEma]):
    """Right when the codebook jumps about: small batches, noisy counts, codes that die between two of their tokens."""

    def refusal(self) -> str | None:
        """Refuse a decay that is without effect, or at the target or above."""
        decay = self.site.view.decay
        if (why := super().refusal()) is not None or decay is None:
            return why
        if (now := decay.get()) >= self.params.target:
            return f"the decay is {now:.6g}, already at or above the target {self.params.target:g}"
        return None


class FastEmaIntervention(_EmaDecay[FastEma]):
    """Right when the latents move faster than the codebook follows."""

    def refusal(self) -> str | None:
        """Refuse a decay that is without effect, or at the target or below."""
        decay = self.site.view.decay
        if (why := super().refusal()) is not None or decay is None:
            return why
        if (now := decay.get()) <= self.params.target:
            return f"the decay is {now:.6g}, already at or below the target {self.params.target:g}"
        return None


def _span(decay: float) -> str:
    """Return over how many steps an average of this decay reaches, 1 / (1 - decay)."""
    return f"{1 / (1 - decay):.3g}" if decay < 1 else "infinitely many"

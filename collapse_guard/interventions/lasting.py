"""What lasts: interventions that hold something for so many steps, or from now on, and end by themselves."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from collapse_guard.policies import ClipGradients, FreezeEncoder, LowerLr, RaiseCodebookLr

from .base import Intervention
from .holds import Hold

__all__ = ["Lasting"]

_LOOK_EVERY = 20

Held = TypeVar("Held", bound="ClipGradients | FreezeEncoder | LowerLr | RaiseCodebookLr")


class Lasting(Intervention[Held]):
    """Stays in force for the time that its parameters say, whether or not its outcome is known before."""

    stays = True
    _hold: Hold  # made with the intervention, in from `apply` on

    def holds(self) -> tuple[Hold, ...]:
        """Return the hooks in the steps."""
        return (self._hold,)

    def apply(self) -> str:
        """Hold from the next step on."""
        self._hold.install()
        return f"{self.in_words()} {self.span}"

    def is_due(self, steps: int) -> bool:
        """Whether the time is over; now and then also whether a hook has failed."""
        span = self.params.for_
        return steps % _LOOK_EVERY == 0 or (span is not None and steps >= span.count)

    def tend(self, steps: int) -> str | None:
        """Let go when the time is over."""
        span = self.params.for_
        if span is None or steps < span.count:
            return None
        said = self.summing_up()
        self.release()
        self.is_over = True
        return f"released after {span}{said}"

    def summing_up(self) -> str:
        """Say what came of it, as the end of a sentence."""
        return ""

    @property
    def span(self) -> str:
        """How long it holds, in words."""
        return f"for {self.params.for_}" if self.params.for_ is not None else "from now on"

    @abstractmethod
    def in_words(self) -> str:
        """Say what stays in force."""

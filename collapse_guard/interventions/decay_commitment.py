"""`decay_commitment`: pull the encoder less towards its codes, step by step, down to a floor."""

from __future__ import annotations

from collapse_guard.policies import DecayCommitment

from .base import Intervention

__all__ = ["DecayCommitmentIntervention"]


class DecayCommitmentIntervention(Intervention[DecayCommitment]):
    """Right when a strong commitment drags the latents onto few codes. A repeated try goes on where it stands."""

    touches = frozenset({"commitment"})
    needs = ("commitment",)
    goes_further = True

    def refusal(self) -> str | None:
        """Refuse where there is no such weight, or where it is at its floor already."""
        if (reason := super().refusal()) is not None:
            return reason
        commitment = self.site.view.commitment
        assert commitment is not None
        if (weight := commitment.get()) <= self.params.floor:
            return f"the commitment weight is {weight:g}, already at or below the floor {self.params.floor:g}"
        return None

    def apply(self) -> str:
        """Multiply the weight by the factor, not below the floor."""
        commitment = self.site.view.commitment
        assert commitment is not None
        before = commitment.get()
        commitment.set(max(before * self.params.factor, self.params.floor))
        return f"commitment weight {before:g} -> {commitment.get():g}"

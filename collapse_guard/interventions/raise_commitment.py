"""`raise_commitment`: pull the encoder towards its codes where nothing does, so that latents do not outgrow them."""

from __future__ import annotations

from collections.abc import Mapping

from collapse_guard.adapters.commitment import AddedCommitment
from collapse_guard.adapters.refs import Knob
from collapse_guard.policies import RaiseCommitment

from .base import Intervention
from .parts import KnobPart, Part

__all__ = ["RaiseCommitmentIntervention"]


class RaiseCommitmentIntervention(Intervention[RaiseCommitment]):
    """Right when latents outgrow codes that only follow them. Of a residual, the weight of every level is raised.

    What a level's commitment pulls is the residual's input: no level is held by the pull of another one alone, and a
    finer level codes whatever the coarser ones let go.
    """

    touches = frozenset({"commitment"})
    needs = ("commitment",)

    def refusal(self) -> str | None:
        """Refuse where there is no such weight, or where it is as high already."""
        if (reason := super().refusal()) is not None:
            return reason
        commitment = self.site.view.commitment
        assert commitment is not None
        if (weight := commitment.get()) >= self.params.to:
            return f"the commitment weight is {weight:g}, already at or above {self.params.to:g}"
        return None

    def parts(self) -> list[Part]:
        """Return the weights of the codebook and of the residual's other levels, each one once."""
        own = self.site.view.name
        knobs = self._knobs()
        return [KnobPart("commitment_weight" + (f" of {name}" if name != own else ""), knobs[name]) for name in knobs]

    def apply(self) -> str:
        """Set each weight that is below."""
        told = []
        for name, knob in self._knobs().items():
            if (before := knob.get()) < self.params.to:
                knob.set(self.params.to)
                told.append(f"{before:g} -> {knob.get():g}" + (f" of {name}" if name != self.site.view.name else ""))
        return f"commitment weight {', '.join(told)}"

    def _knobs(self) -> Mapping[str, Knob | AddedCommitment]:
        """Return the weights by codebook, the own one first; one that several codebooks share is the first's."""
        view = self.site.view
        others = [each for each in self.site.views if view.group is not None and each.group == view.group]
        found: dict[tuple[int, str], tuple[str, Knob | AddedCommitment]] = {}
        for each in (view, *others):
            if each.commitment is not None:
                found.setdefault(each.commitment.place, (each.name, each.commitment))
        return dict(found.values())

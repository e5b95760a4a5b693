"""Which rungs of a policy a model supports, told before it trains: what is refused every time is no remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import Policy

from .catalogue import find_intervention

__all__ = ["LadderSupport", "RungSupport", "ladders_on"]


@dataclass(frozen=True, slots=True)
class RungSupport:
    """One rung on the codebooks of a model.

    Attributes:
        rung: the action, written as a call.
        acts: whether it changes a codebook; `alert` and what is asked of the training loop do not.
        refused: codebook -> why the rung is refused there whatever the codebook shows.
        moot: codebooks that cannot have the trouble that the rung is for.
    """

    rung: str
    acts: bool
    refused: dict[str, str]
    moot: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LadderSupport:
    """One rule on the codebooks of a model.

    Attributes:
        rule: its name.
        codebooks: those that the rule exists on.
        rungs: of its ladder, in order; none for a rule that only tells.
    """

    rule: str
    codebooks: tuple[str, ...]
    rungs: tuple[RungSupport, ...]

    @property
    def powerless_on(self) -> tuple[str, ...]:
        """Codebooks that no acting rung of the ladder can act on, though it has some that are of use there."""
        acting = [rung for rung in self.rungs if rung.acts]
        return tuple(
            book
            for book in self.codebooks
            if acting and all(book in rung.refused for rung in acting) and not all(book in rung.moot for rung in acting)
        )


def ladders_on(policy: Policy, views: Sequence[CodebookView]) -> list[LadderSupport]:
    """Return what each rule of a policy can do on the codebooks of a model."""
    found = []
    for rule in policy.rules:
        concerned = [view for view in views if rule.applies_to(view.name)]
        rungs = tuple(_rung(rung.action, rung.params.describe(), concerned) for rung in rule.ladder)
        found.append(LadderSupport(rule.name, tuple(view.name for view in concerned), rungs))
    return found


def _rung(action: str, description: str, views: Sequence[CodebookView]) -> RungSupport:
    intervention = find_intervention(action)
    refusals = {view.name: intervention.why_unsupported(view) for view in views}
    refused = {name: why for name, why in refusals.items() if why is not None}
    moot = frozenset(view.name for view in views if intervention.is_moot(view))
    return RungSupport(description, bool(intervention.touches), refused, moot)

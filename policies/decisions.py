"""Decisions: the frozen records that the engine returns, and the words they use.

Every candidate leaves one, also an action that was not taken, with the reason. A decision asks for an action; it never
performs one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .reading import Reading
from .vocabulary import Word

if TYPE_CHECKING:
    from .actions import Action

__all__ = ["Decision", "DecisionKind", "Health", "Outcome", "Skip", "Word"]


class DecisionKind(Word):
    """What a decision says."""

    PENDING = "pending", "the condition holds, not yet for long enough"
    ALERT = "alert", "the rule fires"
    ACT = "act", "apply this rung of the ladder now, then report what became of it"
    OUTCOME = "outcome", "an intervention has ended"
    SKIP = "skip", "something was left undone, for the stated reason"
    CLEARED = "cleared", "the rule that fired is over"
    WITHDRAWN = "withdrawn", "the rule would fire, and what was found to be the cause is no trouble"
    EXHAUSTED = "exhausted", "every rung of the ladder has failed on this codebook"


class Outcome(Word):
    """How an intervention ended."""

    RECOVERED = "recovered", "the codebook met the success condition in time"
    FAILED = "failed", "the codebook did not meet the success condition in time, or the action was refused"
    INCONCLUSIVE = "inconclusive", "no usable reading could tell"


class Skip(Word):
    """Why something was left undone; a streak of the same reason is recorded once."""

    WARMING_UP = "warming_up", "the run has only begun"
    FEW_TOKENS = "few_tokens", "too few tokens for a verdict"
    SETTLING = "settling", "the first readings after an intervention are no evidence"
    SILENCED = "silenced", "the rule is silent until a later step"
    INHIBITED = "inhibited", "a more telling rule is at work on this codebook"
    COOLING_DOWN = "cooling_down", "the last intervention ended only just now"
    OCCUPIED = "occupied", "another intervention on this codebook is still open"
    COARSER_LEVEL = "coarser_level", "an intervention on a coarser level of the same residual is still open"
    BUDGET_SPENT = "budget_spent", "the run, or the rule on this codebook, has had all its interventions"
    OTHER_CAUSE = "other_cause", "the rule fires for some causes only, and none of them was found"
    OBSERVING = "observing", "the policy only observes, or has come to do so on this codebook"


class Health(Word):
    """State of a codebook, ordered: unknown < healthy < degraded < collapsed."""

    UNKNOWN = "unknown", "no reading has given a verdict yet"
    HEALTHY = "healthy", "no rule of severity warning or critical is concerned"
    DEGRADED = "degraded", "a rule of severity warning is concerned"
    COLLAPSED = "collapsed", "a rule of severity critical is concerned"

    @property
    def rank(self) -> int:
        """Position in the order, from 0."""
        return list(Health).index(self)

    def __lt__(self, other: Health) -> bool:
        return self.rank < other.rank

    def __le__(self, other: Health) -> bool:
        return self.rank <= other.rank

    def __gt__(self, other: Health) -> bool:
        return self.rank > other.rank

    def __ge__(self, other: Health) -> bool:
        return self.rank >= other.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about one codebook, or about several levels of one group together.

    Attributes:
        kind: what it says.
        step: optimizer step of the reading, or of the end of the run.
        codebook: whom it concerns. rule: which rule decided; empty where the reading as a whole gave no verdict.
        severity: of the rule, `info`, `warning` or `critical`; `info` without a rule.
        reason: one plain sentence with numbers and thresholds.
        skip: SKIP: the kind of reason.
        action: ACT, OUTCOME and the SKIP of an action: its name. params: its parameters.
        rung: index of the action in the rule's ladder, from 0.
        attempt: ACT and OUTCOME: number of the intervention in this run, from 1.
        outcome: OUTCOME: how it ended.
        rollback: OUTCOME: undo what this rung has done to the codebook, earlier failed tries in the row included.
        kept: OUTCOME: what this rung has done failed and stays all the same, as the policy says.
        before: ALERT and WITHDRAWN: the reading that fired. ACT and OUTCOME: the last reading before the action.
        after: OUTCOME: the reading that decided, if one did.
        then: EXHAUSTED and the SKIP of a spent budget: what the rule asks for now that nothing more can be tried, its
            `on_exhausted`: `alert`, `save_checkpoint`, `stop_training` or `observe`.
        group: residual of which the codebook is a level, if it is one. level: which, from 0, the coarsest.
        members: the decisions about each level, coarse first, where several are concerned. `codebook`, `level`,
            `before` and `after` are then those of the coarsest; `outcome` is that of all together, and `rollback`
            whether any level is undone.
    """

    kind: DecisionKind
    step: int
    codebook: str
    rule: str
    severity: str
    reason: str
    skip: Skip | None = None
    action: str | None = None
    params: Action | None = None
    rung: int | None = None
    attempt: int | None = None
    outcome: Outcome | None = None
    rollback: bool = False
    kept: bool = False
    before: Reading | None = None
    after: Reading | None = None
    then: str | None = None
    group: str | None = None
    level: int | None = None
    members: tuple[Decision, ...] = ()

    @property
    def parts(self) -> tuple[Decision, ...]:
        """The decisions about one codebook each that this one consists of: itself, where there is only one."""
        return self.members or (self,)

    @property
    def codebooks(self) -> tuple[str, ...]:
        """Names of all codebooks that it concerns, coarse first."""
        return tuple(part.codebook for part in self.parts)

"""The parts of a policy that refer to nothing else: sampling, budget, clearing, cooldown and verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from .condition import ConditionField
from .duration import Duration, DurationField, PositiveDuration, PositiveSteps, StepsOrNever

__all__ = ["Budget", "Clear", "Cooldown", "Count", "LossBound", "Part", "Sample", "Verify"]

MOST = 10**18
"""The largest whole number in a policy; durations have no more digits either."""
Count = Annotated[int, Field(ge=1, le=MOST)]


class Part(BaseModel):
    """Common behaviour of every part of a policy: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sample(Part):
    """How often the guard takes a reading, and when a reading is evidence.

    Attributes:
        every: cadence while all is well. when_suspect: cadence while a rule is pending, firing or verifying.
        min_tokens: a reading of fewer tokens gives no verdict.
        settle: readings that pass after an intervention before one counts as evidence, 0 or more.
        dead_below: a code is dead if used less than this fraction of the uniform share, in (0, 1].
    """

    every: PositiveSteps = Duration(50, "steps")
    when_suspect: PositiveSteps = Duration(10, "steps")
    min_tokens: Count = 256
    settle: Annotated[int, Field(ge=0, le=MOST)] = 1
    dead_below: Annotated[float, Field(gt=0, le=1)] = 0.1

    @property
    def every_steps(self) -> int:
        """Optimizer steps between two readings while all is well."""
        return self.every.count

    @property
    def when_suspect_steps(self) -> int:
        """Optimizer steps between two readings while a codebook is suspect; never more than `every_steps`."""
        return min(self.when_suspect.count, self.every.count)


class Budget(Part):
    """How much may be done to a run.

    Attributes:
        interventions: actions in the run, 1 or more.
        refill_after: the budget is whole again after so many steps in which, on every codebook, no rule held or was at
            work, but for those of severity `info` without a ladder; `null`: never.
    """

    interventions: Count = 20
    refill_after: StepsOrNever = Duration(2000, "steps")


class Clear(Part):
    """When a rule that fired is over: its own threshold, apart from the one that fires (hysteresis).

    Attributes:
        when: what must hold; `None`: the opposite of the rule's `when`.
        for_: consecutive readings (YAML `for`); `None`: as many as the rule's `for`.
    """

    when: ConditionField | None = None
    for_: Annotated[Count | None, Field(alias="for")] = None


class Cooldown(Part):
    """The pause after an intervention; in YAML a duration alone, or `{for: 100 steps, growth: 2}`.

    Attributes:
        for_: the first pause on a codebook, counted from the end of an intervention (YAML `for`).
        growth: each further one is so many times the one before, 1 or more, until the budget is refilled.
    """

    for_: Annotated[DurationField, Field(alias="for", examples=["100 steps"])]
    growth: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        return value if isinstance(value, (Mapping, Cooldown)) else {"for": Duration.parse(value)}

    @model_serializer
    def _to_yaml(self) -> Any:
        return str(self.for_) if self.growth == 1 else {"for": str(self.for_), "growth": self.growth}


class LossBound(Part):
    """A bound on what a recovery may cost: utilisation is not quality.

    Attributes:
        loss_increase: how much higher the user's loss may be than before the intervention, as a fraction of what it was
            (0.1: a tenth), 0 or more.
    """

    loss_increase: Annotated[float, Field(ge=0, examples=[0.1])]


class Verify(Part):
    """How an intervention is judged.

    Attributes:
        within: how long it may take to succeed, counted from the step of the action.
        success: what must hold for as many readings as `clear` asks; `None`: that the rule clears.
        guard: what must hold beside it. A loss beyond the bound at the reading that would be the success puts the
            verdict off, since a loss often rises for a moment after an intervention; if it is still beyond the bound
            when `within` is over, the intervention has failed and is rolled back, whatever the codebook looks like. A
            loss of NaN is beyond every bound. Where no loss is known, before or after, the bound is not applied, and
            the outcome says so.
    """

    within: PositiveDuration = Duration(200, "steps")
    success: ConditionField | None = None
    guard: LossBound | None = None

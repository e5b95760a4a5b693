"""The parts of a policy that refer to no rule: sampling, budget, clearing, cooldown, verification and rungs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    Strict,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from .actions import Action, action_named, actions
from .causes import LEADING, Cause, Diagnosis, leads
from .condition import ConditionField
from .diagnosis import mismatches_of
from .duration import Duration, DurationField, PositiveDuration, PositiveSteps, StepsOrNever
from .errors import MismatchError, MismatchesError, no_text_key, quote, suggest

__all__ = ["Budget", "Clear", "Cooldown", "Count", "LossBound", "OfCause", "Part", "Rung", "Sample", "Verify"]

_OPTIONS = ("repeat", "within", "budget", "on")
"""What a rung says beside its action."""

MOST = 10**18
"""The largest whole number in a policy; durations have no more digits either."""
Count = Annotated[int, Field(ge=1, le=MOST)]


class Part(BaseModel):
    """Common behaviour of every part of a policy: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sample(Part):
    """How often the guard takes a reading, and when a reading is evidence.

    A reading pools the tokens since the one before it; while all is well, those of the last steps before it.

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


def _listed(value: object) -> object:
    """Take one name for a list of it."""
    return (value,) if isinstance(value, str) else value


_CAUSE: dict[str, Any] = {"type": "string", "enum": [cause.value for cause in Cause]}
_CAUSES = WithJsonSchema({"anyOf": [_CAUSE, {"type": "array", "minItems": 1, "items": _CAUSE}]})

Undo = Literal["always", "unless_better", "never"]


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
        undo: what becomes of an intervention that failed: `always` undone, undone `unless_better` (where the codebook
            came nearer to what the rule wants, and neither its error nor the loss has grown), or `never`.
    """

    within: PositiveDuration = Duration(200, "steps")
    success: ConditionField | None = None
    guard: LossBound | None = None
    undo: Undo = "always"


CauseName = Annotated[str, Field(max_length=100)]


class OfCause(Part):
    """A look at what was found to be the cause: `{cause: encoder_collapse}`, or with a list of causes.

    Attributes:
        cause: any of these; one needs no list.
        confidence: how sure the finding must be, above 0 and at most 1.
    """

    cause: Annotated[tuple[CauseName, ...], BeforeValidator(_listed), Strict(False), _CAUSES]
    confidence: Annotated[float, Field(gt=0, le=1)] = LEADING

    @field_validator("cause")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [cause.value for cause in Cause]
        if not names:
            raise MismatchError("at least one cause", "an empty list", f"Known: {', '.join(known)}.")
        wrong = [(index, name) for index, name in enumerate(names) if name not in known]
        if wrong:
            raise MismatchesError(MismatchError("a cause", quote(name), suggest(name, known)) for _, name in wrong)
        return names

    def among(self, causes: Iterable[Diagnosis]) -> Diagnosis | None:
        """Return the likeliest of these causes, if it was found with enough confidence."""
        return leads(causes, self.cause, self.confidence)

    def __str__(self) -> str:
        return " or ".join(self.cause)

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        sure = {} if self.confidence == LEADING else {"confidence": self.confidence}
        return {"cause": list(self.cause), **sure}


class Rung(Part):
    """One step of a ladder.

    In YAML a bare name (`reset_codes`), or the action with its parameters and, beside it, options:
    `{decay_commitment: {factor: 0.25}, repeat: 3, within: 300 steps}`.

    Attributes:
        action: name of the action. params: its validated parameters.
        repeat: how often it may fail in a row before it is undone and the next rung has its turn, 1 or more. A failed
            try is the last one, too, where a rule that is judged before this one, and is no milder, waits for its end.
        within: overrides the rule's `verify.within`.
        budget: how often it may be tried on one codebook until the budget of the run is refilled; then it is passed
            over. `None`: no bound of its own.
        on: the causes for which it is meant; where none of them was found it is passed over. `None`: any, also none.
    """

    action: str
    params: SerializeAsAny[Action]
    repeat: Count = 1
    within: PositiveDuration | None = None
    budget: Count | None = None
    on: OfCause | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        if isinstance(value, Mapping) and isinstance(value.get("params"), Action):
            return value
        written = {value: None} if isinstance(value, str) else value
        if not isinstance(written, Mapping) or not written:
            raise MismatchError("an action, such as `reset_codes` or `reset_codes: {scope: all}`", quote(value))
        action = _only_action(written)
        model = action_named(action)
        try:
            params = model.model_validate({} if written[action] is None else written[action])
        except ValidationError as error:
            raise MismatchesError(map(_beside_the_action, mismatches_of(error, model, (action,)))) from None
        return {"action": action, "params": params, **{key: written[key] for key in written if key != action}}

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        within = {"within": str(self.within)} if self.within else {}
        budget = {"budget": self.budget} if self.budget else {}
        on = {"on": self.on.model_dump(mode="json")} if self.on else {}
        return {self.action: self.params.plain(), "repeat": self.repeat, **within, **budget, **on}


def _beside_the_action(wrong: MismatchError) -> MismatchError:
    """Say of an option of a rung that stands among the parameters of its action where it belongs."""
    if not wrong.at_key or wrong.place[-1] not in _OPTIONS or len(wrong.place) != 2:
        return wrong
    hint = f"It stands beside `{wrong.place[0]}`, in the same column, and not inside."
    return MismatchError("a parameter of the action", wrong.got, hint, place=wrong.place, at_key=True)


def _only_action(rung: Mapping[str, Any]) -> str:
    """Return the one key of a rung that names an action.

    Raises:
        MismatchesError: for every key that is neither the action nor an option of a rung.
    """
    candidates = [key for key in rung if key not in _OPTIONS]
    if not candidates:
        raise MismatchError("an action beside its options", quote(rung), f"Known: {', '.join(actions())}.")
    action = next((key for key in candidates if key in actions()), None)

    def wrong(key: object) -> MismatchError:
        if not isinstance(key, str):
            return no_text_key(key)
        if action is None:
            expected, hint = "an action", suggest(key, actions())
        elif key in actions():
            expected, hint = "one action a rung", "Begin a new rung with `-`."
        else:
            expected, hint = "an option of a rung", suggest(key, _OPTIONS)
        return MismatchError(expected, quote(key), hint, place=(key,), at_key=True)

    if action is None or len(candidates) > 1:
        raise MismatchesError(wrong(key) for key in candidates if key != action)
    return action

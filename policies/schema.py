"""The policy language, version 1: what a file may hold, with types, ranges and defaults.

Pydantic models, frozen and strict: an unknown key, a number where a duration is needed or a rule that inhibits a
stranger is refused here, so the engine never meets one. Nothing in this module reads files or decides.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from .condition import Condition, ConditionField
from .duration import DURATION_SCHEMA, Duration, Steps
from .errors import MismatchError, MismatchesError, quote
from .parts import Budget, Clear, Cooldown, Count, LossBound, OfCause, Part, Rung, Sample, Verify
from .references import MOST_RULES, reference_mismatches

__all__ = [
    "Budget",
    "Clear",
    "Cooldown",
    "LossBound",
    "Mode",
    "Policy",
    "Rule",
    "Rung",
    "Sample",
    "Severity",
    "Stage",
    "Verify",
]

Mode = Literal["observe", "act"]
Severity = Literal["info", "warning", "critical"]
Stage = Literal["train", "eval"]
Unknown = Literal["keep", "fire", "clear"]
LastResort = Literal["alert", "save_checkpoint", "stop_training", "observe"]


def _listed(value: object) -> object:
    """Take one pattern for a list of it."""
    return (value,) if isinstance(value, str) else value


Pattern = Annotated[str, Field(min_length=1, max_length=200)]
_PATTERNS = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 200},
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1, "maxLength": 200}},
        ]
    }
)


def _overriding_rule(schema: dict[str, Any]) -> None:
    """Let the JSON schema allow what a rule may leave out, or say, where it overrides one of another policy."""
    schema["properties"]["remove"] = {"const": True, "description": "Drops the rule of this name that was extended."}
    schema["required"] = ["name"]


def _extending_policy(schema: dict[str, Any]) -> None:
    """Let the JSON schema allow a policy without rules that extends another."""
    schema["required"] = ["version"]
    schema["anyOf"] = [{"required": ["rules"]}, {"required": ["extends"]}]


_COOLDOWN = WithJsonSchema(
    {
        "anyOf": [
            DURATION_SCHEMA,
            {
                "type": "object",
                "properties": {"for": DURATION_SCHEMA, "growth": {"type": "number", "minimum": 1}},
                "required": ["for"],
                "additionalProperties": False,
            },
        ]
    }
)


class Rule(Part):
    """One rule: what is wrong, for how long, how loudly to say so, and what to do about it.

    Attributes:
        name: unique in the policy; letters, digits, `_` and `-`.
        codebooks: patterns of codebook names, such as `rvq.0`, `rvq.[1-3]` or `rvq.*` (as in `fnmatch`: a `*` stands
            for dots, too); the rule exists only where one matches the whole name. One pattern needs no list.
        stage: whose readings it looks at: those of `train`ing, or of `eval`uation, of which each is a whole validation.
        when: what is wrong. for_: consecutive readings before it fires (YAML `for`).
        clear: when it is over. severity: `critical` means collapsed, `warning` degraded, `info` neither.
        inhibits: rules that stay quiet on a codebook while this one is anything but armed there, its cooldown
            included. Once it fires they begin to count anew, and what they have open is ended as failed if it acts.
            When it is exhausted, only those stay quiet that have nothing to try either: no rung that is not spent and
            has not failed there, be it as a rung of this rule.
        cooldown: pause after an intervention has ended, before the rule may fire again.
        silence_until: before this step the rule neither counts, tells nor acts; what is being verified is finished.
        missing, nan: what a field that is not there, or is NaN, does to a comparison: `keep` leaves it open, which
            neither fires nor clears the rule; `fire` counts for the rule, and against its end and success; `clear`
            counts the other way round. A `trend` with too few readings is always open.
        verify: how interventions are judged. ladder: what to try, in order; empty: alert only.
        budget: interventions of this rule on one codebook until the budget of the run is refilled; `None`: no bound of
            its own.
        on_exhausted: what is asked for when nothing more can be tried: `alert` tells, which happens anyway;
            `save_checkpoint` and `stop_training` are asked of the training loop; `observe`: from then on nothing more
            is done to this codebook in this run.
        unless: causes that are no trouble: where one was found the rule does not fire but says so, once, and looks
            anew after its cooldown, 10 readings at the least.
        only: causes for which alone it fires: where none of them was found the log says so, and it looks anew after
            its cooldown.
    """

    model_config = ConfigDict(json_schema_extra=_overriding_rule)

    name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", examples=["collapsed"])]
    codebooks: Annotated[tuple[Pattern, ...], BeforeValidator(_listed), Strict(False), _PATTERNS] = ("*",)
    stage: Stage = "train"
    when: Annotated[ConditionField, Field(examples=["perplexity < 1.5"])]
    for_: Annotated[Count, Field(alias="for", examples=[2])] = 1
    clear: Clear = Clear()
    severity: Severity = "warning"
    inhibits: Annotated[tuple[str, ...], Strict(False)] = ()
    cooldown: Annotated[Cooldown, _COOLDOWN] = Cooldown.model_validate("0 steps")
    silence_until: Steps = Duration(0, "steps")
    missing: Unknown = "keep"
    nan: Unknown = "keep"
    verify: Verify = Verify()
    ladder: Annotated[tuple[Rung, ...], Strict(False)] = ()
    budget: Count | None = None
    on_exhausted: LastResort = "alert"
    unless: OfCause | None = None
    only: OfCause | None = None

    @property
    def clear_when(self) -> Condition:
        """The condition that ends the rule, given or derived."""
        return self.clear.when or self.when.negated()

    @property
    def clear_for(self) -> int:
        """Consecutive readings that `clear_when` must hold."""
        return self.clear.for_ or self.for_

    @field_validator("codebooks")
    @classmethod
    def _some_codebook(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not patterns:
            hint = "Leave the key out for all codebooks."
            raise MismatchError("at least one pattern of codebook names", "an empty list", hint)
        return patterns

    def applies_to(self, codebook: str) -> bool:
        """Whether the rule exists on a codebook of this name; upper and lower case differ."""
        return any(fnmatchcase(codebook, pattern) for pattern in self.codebooks)

    @model_validator(mode="after")
    def _no_rung_twice(self) -> Rule:
        seen: dict[str, bool] = {}  # whether it is meant for some causes only
        for index, rung in enumerate(self.ladder):
            described = rung.params.describe()
            if described in seen and not (seen[described] and rung.on is None):
                hint = "A failed rung is not tried again; for several tries in a row write `repeat: 2` beside it."
                hint = "Write one rung with all causes, as `on: {cause: [..., ...]}`." if rung.on else hint
                raise MismatchError("rungs that differ", described, hint, place=("ladder", index))
            seen[described] = rung.on is not None
        return self


class Policy(Part):
    """A whole policy file.

    Attributes:
        version: of the language; 1.
        name: for logs and reports.
        extends: preset, or path relative to this file, of a policy that this one changes; `load_policy` works it out,
            so that a loaded policy is whole and has `None` here.
        mode: `act`, or `observe`: decide and log, touch nothing.
        sample: see `Sample`. warmup: no verdict before this step. budget: see `Budget`.
        rules: at least one, judged in this order, except that a rule goes before those it inhibits.
    """

    model_config = ConfigDict(json_schema_extra=_extending_policy)

    version: Annotated[Literal[1], Field(examples=[1])]
    name: Annotated[str, Field(min_length=1, max_length=100)] = "custom"
    extends: Annotated[str | None, Field(exclude=True)] = None
    mode: Mode = "act"
    sample: Sample = Sample()
    warmup: Steps = Duration(0, "steps")
    budget: Budget = Budget()
    rules: Annotated[tuple[Rule, ...], Strict(False), Field(json_schema_extra={"minItems": 1, "maxItems": MOST_RULES})]

    _source: str = PrivateAttr(default="<mapping>")

    @field_validator("version", mode="before")
    @classmethod
    def _not_newer(cls, value: object) -> object:
        if isinstance(value, int) and value > 1:
            raise MismatchError("version 1", quote(value), "The file is for a newer collapse_guard: upgrade.")
        if isinstance(value, bool):  # which Python takes for 0 or 1
            raise MismatchError("version 1", quote(value), "Write `version: 1`.")
        return value

    @field_validator("extends")
    @classmethod
    def _worked_out(cls, value: str | None) -> str | None:
        if value is not None:
            raise MismatchError("a policy that is whole", quote(value), "`load_policy` works out what it extends.")
        return value

    @model_validator(mode="after")
    def _rules_fit_together(self) -> Policy:
        if not self.rules:
            raise MismatchError("at least one rule", "an empty list", place=("rules",))
        if wrong := reference_mismatches([(rule.name, rule.inhibits) for rule in self.rules]):
            raise MismatchesError(wrong)
        return self

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps before the first verdict."""
        return self.warmup.count

    @property
    def source(self) -> str:
        """Where the policy came from: path of its file, name of the preset, or `<mapping>`."""
        return self._source

    def with_source(self, source: str) -> Policy:
        """Return a copy that says it came from `source`."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def with_mode(self, mode: Mode) -> Policy:
        """Return a copy in another mode."""
        return self.model_copy(update={"mode": mode})

    def fingerprint(self) -> str:
        """Return 12 hex digits of the policy's meaning: equal for files that differ in layout or spelling only."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

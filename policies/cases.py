"""Cases: unit tests of a policy as data, in the spirit of Prometheus' `promtool test rules`.

A file names a policy and holds cases: what the readings are, what an intervention does to them, and what is expected to
be decided at which step. This module reads such files; `trial` carries them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, Strict, ValidationError

from .absence import absences_in
from .actions import actions
from .causes import Cause, Diagnosis
from .diagnosis import mismatches_of
from .document import Document, read_document
from .duration import PositiveSteps
from .errors import MismatchError, PolicyError, Problem, dotted, quote, suggest
from .loader import load_policy, preset_names
from .reading import NUMERIC_FIELDS
from .schema import Policy, Stage
from .series import Series, parse_series

__all__ = ["Case", "CaseFile", "load_cases"]

_FIXED = {"step", "K", "D", "tokens", "epoch"}
_FIELDS = tuple(name for name in NUMERIC_FIELDS if name not in _FIXED)


def _fields(value: object) -> dict[str, Series]:
    """Read series by field; a bare series is that of the perplexity."""
    if not isinstance(value, Mapping):
        return {"perplexity": parse_series(value)}
    found: dict[str, Series] = {}
    for name, text in value.items():
        if name not in _FIELDS:
            raise MismatchError("a field of a reading", quote(name), suggest(name, _FIELDS), place=(name,), at_key=True)
        try:
            found[name] = parse_series(text)
        except MismatchError as wrong:
            raise wrong.below((name,)) from None
    return found


def _after(value: object) -> dict[str, dict[str, Series]]:
    """Read what becomes of series after an action was applied, by action."""
    if not isinstance(value, Mapping):
        raise MismatchError("actions with what follows, such as `reset_codes: 90x20`", quote(value))
    found: dict[str, dict[str, Series]] = {}
    for name, fields in value.items():
        if name not in actions():
            raise MismatchError("an action", quote(name), suggest(name, actions()), place=(name,), at_key=True)
        try:
            found[name] = _fields(fields)
        except MismatchError as wrong:
            raise wrong.below((name,)) from None
    return found


def _expect(value: object) -> dict[int, tuple[str, ...]]:
    """Read expected decisions by step; nothing, or an empty list, is expected none."""
    if not isinstance(value, Mapping):
        raise MismatchError("steps with decisions, such as `20: [collapsed alert]`", quote(value))
    found: dict[int, tuple[str, ...]] = {}
    for step, decisions in value.items():
        if not re.fullmatch(r"\d{1,18}", str(step)):
            raise MismatchError("a step", quote(step), "Write a whole number.", place=(step,), at_key=True)
        listed = [] if decisions is None else [decisions] if isinstance(decisions, str) else decisions
        if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
            hint = "Write, say, `[collapsed alert, collapsed act reset_codes]`, or `[]` for none."
            raise MismatchError("a list of decisions", quote(decisions), hint, place=(step,))
        found[int(step)] = tuple(" ".join(each.split()) for each in listed)
    return found


def _refuses(value: object) -> tuple[str, ...]:
    """Read a list of actions."""
    if not isinstance(value, (list, tuple)):
        raise MismatchError("a list of actions", quote(value))
    for index, name in enumerate(value):
        if name not in actions():
            raise MismatchError("an action", quote(name), suggest(str(name), actions()), place=(index,))
    return tuple(value)


def _causes(value: object) -> tuple[Diagnosis, ...]:
    """Read causes: a name, a list of names, or names with confidences."""
    names = [value] if isinstance(value, str) else value
    sure = (
        names if isinstance(names, Mapping) else dict.fromkeys(names, 0.9) if isinstance(names, (list, tuple)) else {}
    )
    if not sure and value:
        raise MismatchError("a cause, or causes with confidences, such as `{few_modes: 0.9}`", quote(value))
    known = {cause.value: cause for cause in Cause}
    found = []
    for name, confidence in sure.items():
        if name not in known:
            raise MismatchError("a cause", quote(name), suggest(str(name), known), place=(name,), at_key=True)
        if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 <= confidence <= 1:
            raise MismatchError("a confidence from 0 to 1", quote(confidence), place=(name,))
        found.append(Diagnosis(cause=known[name], confidence=confidence, says="so the case says"))
    return tuple(sorted(found, key=lambda each: -each.confidence))


class Case(BaseModel):
    """One test of a policy on one codebook.

    Attributes:
        name: what is being tested, as a sentence.
        stage: of all its readings; with `eval` each of them stands for a validation.
        codes: K. tokens: of each reading. codebook: its name, for rules that look at some codebooks only.
        every: cadence of the readings; `None`: the policy's own, denser while the codebook is suspect.
        epoch: length of an epoch, for policies that count epochs; `None`: no epoch is said.
        series: fields of the readings; what is not named is unknown. `perplexity_ratio` follows from the perplexity
            where it is not given.
        after: by action, series that take over at the first reading after it was applied, until it is undone.
        refuses: actions that the quantizer does not take.
        causes: what is found to be the cause at every reading, as a name, a list of names, or names with confidences.
        expect: decisions by step, each `<rule> <kind> ...`, of which the first words are enough.
        elsewhere: whether alerts, actions and outcomes are allowed at steps that `expect` does not name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    name: Annotated[str, Field(min_length=1)]
    stage: Stage = "train"
    codes: Annotated[int, Field(ge=1, examples=[256])]
    tokens: Annotated[int, Field(ge=1)] = 2048
    codebook: Annotated[str, Field(min_length=1)] = "codebook"
    every: PositiveSteps | None = None
    epoch: Annotated[PositiveSteps | None, Field(examples=["100 steps"])] = None
    series: Annotated[dict[str, Series], PlainValidator(_fields), Field(examples=["120x10 60..2x8 1x20"])]
    after: Annotated[dict[str, dict[str, Series]], PlainValidator(_after)] = {}
    refuses: Annotated[tuple[str, ...], PlainValidator(_refuses)] = ()
    causes: Annotated[tuple[Diagnosis, ...], PlainValidator(_causes)] = ()
    expect: Annotated[dict[int, tuple[str, ...]], PlainValidator(_expect), Field(examples=["{20: [low alert]}"])]
    elsewhere: Literal["nothing", "anything"] = "nothing"


def _source(value: object) -> object:
    if not isinstance(value, (str, Mapping)):
        raise MismatchError("a preset, a path, or a policy", quote(value))
    return value


PolicySource: TypeAlias = Annotated[Any, PlainValidator(_source), Field(examples=["default"])]


class CaseFile(BaseModel):
    """A file of tests.

    Attributes:
        policy: what is tested: a preset, a path (from the folder of the file), or the policy itself.
        tests: the cases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    policy: PolicySource
    tests: Annotated[tuple[Case, ...], Strict(False), Field(min_length=1)]


def load_cases(path: Path) -> tuple[Policy, tuple[Case, ...]]:
    """Return the policy that a file tests, and its cases.

    Raises:
        PolicyError: with everything that is wrong with the file, or with the policy, or where the policy counts epochs
            and a case does not say how long one is.
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    document = read_document(path.read_text(encoding="utf-8-sig"), str(path))
    if document.problems:
        raise PolicyError(document.problems)
    if isinstance(document.data, Mapping) and "tests" not in document.data and "version" in document.data:
        hint = f"Write tests into a file of their own, with `policy: {path.name}` and `tests:`."
        mistaken = MismatchError("a file of policy tests", "a policy", hint, place=("version",), at_key=True)
        raise PolicyError([_placed(document, mistaken)])
    try:
        file = CaseFile.model_validate(document.data)
    except ValidationError as error:
        wrong = mismatches_of(error, CaseFile)
        raise PolicyError([_placed(document, mismatch) for mismatch in wrong]) from None
    source = file.policy
    if isinstance(source, str) and source not in preset_names():
        source = path.parent / source
    policy = load_policy(source)
    if any(absences_in(policy, lambda name: name != "epoch")):
        hint = "The policy counts epochs: say how long one is, as in `epoch: 100 steps`."
        silent = [index for index, case in enumerate(file.tests) if case.epoch is None]
        if silent:
            lacking = [MismatchError("an `epoch`", "nothing", hint, place=("tests", index)) for index in silent]
            raise PolicyError([_placed(document, each) for each in lacking])
    return policy, file.tests


def _placed(document: Document, mismatch: MismatchError) -> Problem:
    """Say where in a file of tests a mismatch is."""
    *_, line, column = document.position(mismatch.place, at_key=mismatch.at_key)
    return Problem(
        file=document.file,
        line=line,
        column=column,
        rule=None,
        message=dotted(mismatch.place) or "the file",
        expected=mismatch.expected,
        got=mismatch.got,
        hint=mismatch.hint,
    )

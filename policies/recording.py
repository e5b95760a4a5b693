"""Recordings: the readings of a run that is over, with what became of its interventions.

Built from the records of an event log; `table` builds them from rows. Opening files is left to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, TypeAlias

from .decisions import Decision
from .errors import MismatchError, quote
from .lineage import Lineage, Segment
from .reading import NUMERIC_FIELDS, Reading

__all__ = ["Recording", "recordings_of_events"]

_ALWAYS_THERE = tuple(each.name for each in fields(Reading) if each.default is MISSING)

Answer: TypeAlias = "tuple[str, str]"
"""What became of an intervention on a codebook: `applied`, `refused` or `postponed`, and what was done or why not."""


@dataclass(slots=True, kw_only=True)
class Recording:
    """One run.

    Attributes:
        readings: in the order in which they were taken.
        answers: what became of each intervention that the run asked for, by codebook, step, action and parameters.
        end: step at which the run was closed; `None` where the recording does not say.
        policy: name of the policy that was in force. mode: its mode. fingerprint: its meaning; empty if unknown.
    """

    readings: list[Reading] = field(default_factory=list)
    answers: dict[tuple[str, int, str, str], Answer] = field(default_factory=dict)
    end: int | None = None
    policy: str = ""
    mode: str = ""
    fingerprint: str = ""

    def answers_to(self, decision: Decision) -> tuple[dict[str, str], dict[str, str]]:
        """Return why the run refused this very ACT, and why it postponed it, by codebook.

        On codebooks in neither the run applied it, or never asked for it.
        """
        params = decision.params.plain() if decision.params is not None else {}
        found: dict[str, dict[str, str]] = {"refused": {}, "postponed": {}, "applied": {}}
        for codebook in decision.codebooks:
            key = _key(codebook, decision.step, decision.action or "", params)
            result, reason = self.answers.get(key, ("applied", ""))
            found[result][codebook] = reason
        return found["refused"], found["postponed"]

    def knows(self, name: str) -> bool:
        """Whether a field of the readings was recorded at all."""
        return any(getattr(reading, name) is not None for reading in self.readings)


def recordings_of_events(records: Iterable[Mapping[str, Any]]) -> list[Recording]:
    """Return the runs of an event log that have readings, in their order.

    Runs that write into one log at the same time are told apart by the name that each of their lines carries. A run
    that went on from a checkpoint is one run. What was recorded between the checkpoint and the interruption is left
    out: the run itself has forgotten it.

    Raises:
        MismatchError: for a reading that lacks a field, or holds what is no number.
    """
    lineage = Lineage()
    segments: dict[Segment, Recording] = {}
    for record in records:
        segment, event, step = lineage.note(record), record.get("event"), record.get("step", 0)
        run = segments.setdefault(segment, Recording())
        if event == "attached":
            run.policy, run.mode = record.get("policy", ""), record.get("mode", "")
            run.fingerprint = record.get("policy_fingerprint", "")
        elif event == "reading":
            run.readings.append(_reading_of(record))
        elif event == "intervention":
            for part in record.get("members") or (record,):
                key = _key(str(part.get("codebook")), step, str(record.get("action")), record.get("params", {}))
                run.answers[key] = _answer(part)
        elif event == "summary":
            run.end = step
    superseded = lineage.superseded()
    runs = [_with_past(segment, segments, lineage) for segment in segments if segment not in superseded]
    return [run for run in runs if run.readings]


def _answer(record: Mapping[str, Any]) -> Answer:
    result = record.get("result")
    return result if result in ("refused", "postponed") else "applied", record.get("summary", "")


def _with_past(segment: Segment, segments: Mapping[Segment, Recording], lineage: Lineage) -> Recording:
    """Return a recording with what its run remembers of the time before each checkpoint that it went on from."""
    run, (_, *past) = segments[segment], lineage.last_steps(segment).items()
    readings, answers = run.readings, run.answers
    for before, last in past:
        if before in segments:
            readings = [reading for reading in segments[before].readings if reading.step <= last] + readings
            earlier = {key: reason for key, reason in segments[before].answers.items() if key[1] <= last}
            answers = earlier | answers
    return replace(run, readings=readings, answers=answers)


def _reading_of(record: Mapping[str, Any]) -> Reading:
    """Return the reading of a record."""
    if lacking := [name for name in _ALWAYS_THERE if name not in record]:
        raise MismatchError("readings as collapse_guard writes them", f"one without {', '.join(lacking)}")
    reading = Reading.from_dict(dict(record))
    for name in NUMERIC_FIELDS:
        value = getattr(reading, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise MismatchError(f"a number for {name} in a reading", quote(value))
    return reading


def _key(codebook: str, step: int, action: str, params: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return codebook, step, action, json.dumps(params, sort_keys=True)

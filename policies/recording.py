"""Recordings: the readings of a run that is over, with what became of its interventions.

Built from the records of an event log; `table` builds them from rows. Opening files is left to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeAlias

from .decisions import Decision
from .errors import MismatchError, quote
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
    runs: list[Recording] = []
    latest: dict[str, Recording] = {}
    for record in records:
        event, step, name = record.get("event"), record.get("step", 0), str(record.get("run"))
        if event == "attached" or name not in latest:
            latest[name] = Recording(
                policy=record.get("policy", ""),
                mode=record.get("mode", ""),
                fingerprint=record.get("policy_fingerprint", ""),
            )
            runs.append(latest[name])
        run = latest[name]
        if event == "resumed" and (place := next(i for i, each in enumerate(runs) if each is run)):
            _go_on(runs.pop(place - 1), run, step)
        elif event == "reading":
            run.readings.append(_reading_of(record))
        elif event == "intervention":
            for part in record.get("members") or (record,):
                key = _key(str(part.get("codebook")), step, str(record.get("action")), record.get("params", {}))
                run.answers[key] = _answer(part)
        elif event == "summary":
            run.end = step
    return [run for run in runs if run.readings]


def _answer(record: Mapping[str, Any]) -> Answer:
    result = record.get("result")
    return result if result in ("refused", "postponed") else "applied", record.get("summary", "")


def _go_on(before: Recording, run: Recording, step: int) -> None:
    """Put what a run remembers of the time before its checkpoint in front of what came after."""
    run.readings[:0] = [reading for reading in before.readings if reading.step <= step]
    run.answers = {key: reason for key, reason in before.answers.items() if key[1] <= step} | run.answers


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

"""Recordings: the readings of a run that is over, with what became of its interventions.

Built from the records of an event log or from the rows of a table; opening files is left to the caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .decisions import Decision
from .errors import MismatchError, quote, suggest
from .reading import NUMERIC_FIELDS, Reading

__all__ = ["Recording", "recording_of_rows", "recordings_of_events"]

_MANY_TOKENS = 10**9
_GIVEN = {"step", "K", "D"}

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
        params = decision.params.model_dump(mode="json") if decision.params is not None else {}
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
    """
    runs: list[Recording] = []
    latest: dict[Any, Recording] = {}
    for record in records:
        event, step, name = record.get("event"), record.get("step", 0), record.get("run")
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
            run.readings.append(Reading.from_dict(dict(record)))
        elif event == "intervention":
            for part in record.get("members") or (record,):
                key = _key(part["codebook"], step, record["action"], record.get("params", {}))
                run.answers[key] = _answer(part)
        elif event == "summary":
            run.end = step
    return [run for run in runs if run.readings]


def recording_of_rows(
    rows: Iterable[Mapping[str, str | None]],
    columns: Mapping[str, str],
    *,
    K: int,
    D: int = 0,
    tokens: int | None = None,
    ceiling_of: Callable[[int, int], float] | None = None,
) -> Recording:
    """Return a run from a table, such as one exported from a logger.

    Args:
        rows: each a mapping of column to text. Empty cells are unknown; rows without any value are no readings.
        columns: field of a reading -> column; `step` and at least one more. `codebook` may be among them.
        K: number of codes. D: dimension of a code, 0 if that does not matter.
        tokens: tokens of each reading, where no column holds them; `None` takes them for as many as any policy asks.
        ceiling_of: the perplexity of uniform codes for so many tokens and codes; without tokens it is K.

    Raises:
        MismatchError: for a field or a column that does not exist, or text that is no number.
    """
    _check_fields(columns)
    count = _MANY_TOKENS if tokens is None else tokens
    ceilings: dict[int, float] = {_MANY_TOKENS: float(K)}
    readings = []
    for row in rows:
        if absent := next((column for column in columns.values() if column not in row), None):
            raise MismatchError("a column of the table", quote(absent), suggest(absent, map(str, row)))
        values = {name: _number(row[column], column) for name, column in columns.items() if name != "codebook"}
        step = values.pop("step")
        if step is None or all(value is None for value in values.values()):
            continue
        book = row[columns["codebook"]] if "codebook" in columns else "codebook"
        whole = {name: _whole(values.pop(name, None)) for name in ("tokens", "epoch")}
        seen = count if whole["tokens"] is None else whole["tokens"]
        if seen not in ceilings:
            ceilings[seen] = ceiling_of(seen, K) if ceiling_of and seen > 0 else float(K)
        fields: dict[str, Any] = dict.fromkeys(("perplexity", "usage", "dead_fraction", "top_share")) | values
        if fields.get("ceiling") is None:
            fields["ceiling"] = ceilings[seen]
        if fields.get("perplexity_ratio") is None and fields["perplexity"] is not None:
            fields["perplexity_ratio"] = fields["perplexity"] / fields["ceiling"]
        fields = {"perplexity_ratio": None} | fields
        readings.append(
            Reading(step=int(step), codebook=book or "codebook", K=K, D=D, tokens=seen, epoch=whole["epoch"], **fields)
        )
    return Recording(readings=sorted(readings, key=lambda reading: reading.step))


def _answer(record: Mapping[str, Any]) -> Answer:
    result = record.get("result")
    return result if result in ("refused", "postponed") else "applied", record.get("summary", "")


def _go_on(before: Recording, run: Recording, step: int) -> None:
    """Put what a run remembers of the time before its checkpoint in front of what came after."""
    run.readings[:0] = [reading for reading in before.readings if reading.step <= step]
    run.answers = {key: reason for key, reason in before.answers.items() if key[1] <= step} | run.answers


def _check_fields(columns: Mapping[str, str]) -> None:
    known = ["codebook", *(name for name in NUMERIC_FIELDS if name not in _GIVEN)]
    for name in columns:
        if name not in known and name != "step":
            raise MismatchError("a field of a reading", quote(name), suggest(name, known))


def _number(text: str | None, column: str) -> float | None:
    """Return a cell as a number; `None` for an empty one, and for NaN and the infinities, as in an event log."""
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise MismatchError(f"a number in column {quote(column)}", quote(text)) from None
    return value if math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _key(codebook: str, step: int, action: str, params: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return codebook, step, action, json.dumps(params, sort_keys=True)

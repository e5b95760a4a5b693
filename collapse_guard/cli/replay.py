"""`collapse-guard replay`: a policy on yesterday's log, before it may touch today's run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from collapse_guard.policies import (
    REPLAY_LIMITS,
    Decision,
    Recording,
    Replay,
    compare_replays,
    recording_of_rows,
    recordings_of_events,
)
from collapse_guard.policies import replay as replay_policy

from .console import Format, complain, policy_from, say, say_json

__all__ = ["replay"]


def replay(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="YAML file or preset name.")],
    log: Annotated[Path, typer.Argument(metavar="LOG", help="events.jsonl, the directory of a run, or a CSV file.")],
    against: Annotated[str | None, typer.Option(metavar="POLICY", help="An older policy to compare with.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="CSV: which column holds a field; may be repeated."),
    ] = None,
    codes: Annotated[int | None, typer.Option(min=1, metavar="K", help="CSV: number of codes.")] = None,
    dim: Annotated[int, typer.Option(min=0, metavar="D", help="CSV: dimension of a code.")] = 0,
    tokens: Annotated[int | None, typer.Option(min=1, help="CSV: tokens of a reading; default: plenty.")] = None,
    output: Annotated[Format, typer.Option("--format", help="text, or json for other programs.")] = Format.text,
) -> None:
    """Say what a policy would have decided on a recorded run, and how that differs from another policy."""
    new = policy_from(policy)
    old = policy_from(against) if against is not None else None
    try:
        if log.suffix.lower() == ".csv":
            recording, notes = _from_csv(log, column or [], codes, dim, tokens), list[str]()
        else:
            recording, notes = _from_events(log)
    except (OSError, ValueError) as error:
        complain(f"{log}: {error}")
    after = replay_policy(new, recording)
    before = replay_policy(old, recording) if old is not None else None
    notes += _notes(recording, after)
    if output is Format.json:
        say_json(_as_json(after, before, notes))
    else:
        say(_as_text(policy, after, against, before, notes))


def _from_events(log: Path) -> tuple[Recording, list[str]]:
    """Read the latest run of an event log."""
    from collapse_guard import read_events

    runs = recordings_of_events(read_events(log))
    if not runs:
        raise ValueError("expected an event log with readings, got none. A CSV file needs the ending .csv.")
    notes = [f"The log holds {len(runs)} runs; this is the latest."] if len(runs) > 1 else []
    return runs[-1], notes


def _from_csv(log: Path, pairs: list[str], codes: int | None, dim: int, tokens: int | None) -> Recording:
    """Read a table whose columns the command line names."""
    from collapse_guard.statistics import perplexity_ceiling

    if codes is None:
        raise ValueError("a CSV file does not say the number of codes. Add `--codes K`.")
    columns = {"step": "step"}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals:
            raise ValueError(f"expected FIELD=COLUMN after --column, got {pair!r}.")
        columns[name] = column
    if len(columns) == 1:
        raise ValueError("nothing says which column holds what. Add, say, `--column perplexity=train/perplexity`.")
    with log.open(encoding="utf-8-sig", newline="") as file:
        recording = recording_of_rows(
            csv.DictReader(file), columns, K=codes, D=dim, tokens=tokens, ceiling_of=perplexity_ceiling
        )
    if not recording.readings:
        raise ValueError("expected rows with a step and a value, got none.")
    return recording


def _notes(recording: Recording, after: Replay) -> list[str]:
    """What the reader has to know beside the numbers."""
    notes = [
        f"Not in the recording: {', '.join(fields)}; rule {name} can neither fire nor clear by it."
        for name, fields in after.unknown.items()
    ]
    if recording.policy:
        same = recording.fingerprint == after.policy.fingerprint()
        notes.append(f"Recorded under policy {recording.policy}, mode {recording.mode}{', the same' if same else ''}.")
    if count := after.still_open():
        notes.append(f"{count} intervention{'s' if count > 1 else ''} still being judged where the recording ends.")
    return [*notes, REPLAY_LIMITS]


def _as_text(source: str, after: Replay, against: str | None, before: Replay | None, notes: list[str]) -> str:
    books = ", ".join(after.codebooks)
    lines = [f"{after.policy.name} ({source}) on {after.readings} readings of {books}", ""]
    lines += [_line(decision) for decision in after.decisions] or ["no decisions"]
    lines.append("")
    if before is None:
        counts = after.counts()
        lines += [f"  {label:<28} {count}" for label, count in counts.items()] or ["  no alert, no intervention"]
    else:
        lines += _difference(source, after, against or "", before)
    return "\n".join([*lines, "", *notes])


def _difference(source: str, after: Replay, against: str, before: Replay) -> list[str]:
    """Say what two policies count, and where they part."""
    lines = [f"old: {before.policy.name} ({against}); new: {after.policy.name} ({source})"]
    counts = compare_replays(before, after)
    lines += [f"  {label:<28} old: {old}; new: {new}" for label, old, new in counts] or ["  neither alerts nor acts"]
    olds, news = [_line(each) for each in before.decisions], [_line(each) for each in after.decisions]
    pairs = zip([*olds, ""], [*news, ""], strict=False)
    first = next(((old, new) for old, new in pairs if old != new), None)
    if first is None:
        return [*lines, "They decide the same, step by step."]
    return [*lines, "They part here:", f"  old: {first[0] or 'nothing more'}", f"  new: {first[1] or 'nothing more'}"]


def _line(decision: Decision) -> str:
    """One decision on one line, as the console of a run would tell it."""
    who = f"{decision.codebook}: {decision.rule}" if decision.rule else decision.codebook
    what = f" {decision.action} #{decision.attempt}" if decision.attempt is not None else ""
    end = decision.outcome.value if decision.outcome is not None else decision.kind.value
    undone = "; undone" if decision.rollback else ""
    return f"step {decision.step:>6}  {end:<12}  {who}{what}: {decision.reason}{undone}"


def _as_json(after: Replay, before: Replay | None, notes: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"new": _replay_as_json(after)}
    if before is not None:
        result["old"] = _replay_as_json(before)
    return result | {"notes": notes}


def _replay_as_json(one: Replay) -> dict[str, Any]:
    return {
        "policy": one.policy.name,
        "source": one.policy.source,
        "fingerprint": one.policy.fingerprint(),
        "readings": one.readings,
        "codebooks": list(one.codebooks),
        "counts": one.counts(),
        "unknown": {name: list(fields) for name, fields in one.unknown.items()},
        "decisions": [_decision_as_json(decision) for decision in one.decisions],
    }


def _decision_as_json(decision: Decision) -> dict[str, Any]:
    """Return what a decision says, without the readings that it carries."""
    words = {
        "step": decision.step,
        "codebook": decision.codebook,
        "rule": decision.rule,
        "kind": decision.kind.value,
        "severity": decision.severity,
        "action": decision.action,
        "params": decision.params.model_dump(mode="json") if decision.params is not None else None,
        "attempt": decision.attempt,
        "outcome": decision.outcome.value if decision.outcome is not None else None,
        "skip": decision.skip.value if decision.skip is not None else None,
        "rollback": decision.rollback or None,
        "reason": decision.reason,
    }
    return {key: value for key, value in words.items() if value is not None}

"""`collapse-guard replay`: a policy on yesterday's log, before it may touch today's run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from collapse_guard.policies import (
    REPLAY_LIMITS,
    Decision,
    Recording,
    Replay,
    compare_replays,
)
from collapse_guard.policies import replay as replay_policy

from .console import Format, complain, folded, policy_from, say, say_json
from .logs import Given, read_log

__all__ = ["replay"]

_HANGING = 27  # where the codebook stands in the line of a decision


def replay(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="YAML file or preset name.")],
    log: Annotated[
        Path,
        typer.Argument(metavar="LOG", help="Directory of a run, its events.jsonl, TensorBoard files, or a CSV file."),
    ],
    against: Annotated[str | None, typer.Option(metavar="POLICY", help="An older policy to compare with.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="TensorBoard, CSV: which tag or column holds a field; {codebook} in it for several. May be repeated.",
        ),
    ] = None,
    codes: Annotated[int | None, typer.Option(min=1, metavar="K", help="TensorBoard, CSV: number of codes.")] = None,
    dim: Annotated[int, typer.Option(min=0, metavar="D", help="TensorBoard, CSV: dimension of a code.")] = 0,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="TensorBoard, CSV: tokens that a value was computed from.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="text, or json for other programs.")] = Format.text,
) -> None:
    """Say what a policy would have decided on a recorded run, and how that differs from another policy."""
    new = policy_from(policy)
    old = policy_from(against) if against is not None else None
    try:
        read = read_log(log, Given.of(column or [], codes=codes, dim=dim, tokens=tokens))
    except (OSError, ValueError) as error:
        complain(f"{log}: {error.strerror if isinstance(error, OSError) else error}")
    after = replay_policy(new, read.recording)
    before = replay_policy(old, read.recording) if old is not None else None
    notes = [*read.notes, *_notes(read.recording, after)]
    if output is Format.json:
        say_json(_as_json(after, before, notes))
    else:
        say(_as_text(policy, after, against, before, notes))


def _notes(recording: Recording, after: Replay) -> list[str]:
    """What the reader has to know beside the numbers."""
    notes = []
    if absent := sorted({name for absence in after.absences for name in absence.fields}):
        notes.append(f"Not in the log, though the policy looks at it: {', '.join(absent)}. What follows for each rule:")
        notes += [f"  {absence}." for absence in after.absences]
    notes += [f"{sentence}." for sentence in after.idle()]
    if recording.policy:
        same = recording.fingerprint == after.policy.fingerprint()
        notes.append(f"Recorded under policy {recording.policy}, mode {recording.mode}{', the same' if same else ''}.")
    if count := after.still_open():
        notes.append(f"{count} intervention{'s' if count > 1 else ''} still being judged where the recording ends.")
    return [*notes, REPLAY_LIMITS]


def _as_text(source: str, after: Replay, against: str | None, before: Replay | None, notes: list[str]) -> str:
    books = ", ".join(after.codebooks)
    lines = [folded(f"{after.policy.name} ({source}) on {after.readings} readings of {books}"), ""]
    lines += [_told(decision) for decision in after.decisions] or ["no decisions"]
    lines.append("")
    if before is None:
        counts = after.counts()
        lines += [f"  {label:<28} {count}" for label, count in counts.items()] or ["  no alert, no intervention"]
    else:
        lines += _difference(source, after, against or "", before)
    return "\n".join([*lines, "", *(folded(note, hanging=4 if note.startswith(" ") else 2) for note in notes)])


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
    parted = [f"  {name}: {line or 'nothing more'}" for name, line in zip(("old", "new"), first, strict=True)]
    return [*lines, "They part here:", *(folded(line, hanging=_HANGING + 7) for line in parted)]


def _told(decision: Decision) -> str:
    return folded(_line(decision), hanging=_HANGING)


def _line(decision: Decision) -> str:
    """One decision on one line, as the console of a run would tell it."""
    who = f"{decision.codebook}: {decision.rule}" if decision.rule else decision.codebook
    what = f" {decision.action} #{decision.attempt}" if decision.attempt is not None else ""
    end = decision.outcome.value if decision.outcome is not None else decision.kind.value
    undone = "; undone" if decision.rollback else "; kept" if decision.kept else ""
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
        "absent": {
            each.rule: {"fields": list(each.fields), "missing": each.missing, "consequences": list(each.consequences)}
            for each in one.absences
        },
        "idle": list(one.idle()),
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
        "params": decision.params.plain() if decision.params is not None else None,
        "attempt": decision.attempt,
        "outcome": decision.outcome.value if decision.outcome is not None else None,
        "skip": decision.skip.value if decision.skip is not None else None,
        "rollback": decision.rollback or None,
        "kept": decision.kept or None,
        "reason": decision.reason,
    }
    return {key: value for key, value in words.items() if value is not None}

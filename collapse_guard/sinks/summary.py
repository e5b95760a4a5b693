"""The end of a run in words: what became of each codebook, what happened and why, and a paragraph for a paper.

The console keeps the few facts that the summary event does not repeat: the first `_MOST_TOLD` alerts with their
reasons, as many outcomes with their numbers, and the lowest perplexity of each codebook.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from collapse_guard.events import Event

from .lines import Entry, Grid, Line, causes_told, who

__all__ = ["Chronicle", "share_of_time"]

_MOST_TOLD = 12
"""Alerts and interventions that the summary tells one by one."""

_MOST_CAUSES = 3
"""Different likely causes that it says what to do about."""

_MOST_BOOKS = 4
"""Codebooks whose numbers the paragraph gives one by one."""

_MEANS = {
    "reset_codes": "codes placed anew on recent latents",
    "decay_commitment": "the commitment weight lowered",
    "raise_commitment": "the commitment weight raised",
    "ease_replacement": "the quantizer's own replacement of codes eased",
    "cool_sampling": "the temperature at which training draws codes lowered",
    "bridge_gradient": "the gradient of what is decoded handed on to the encoder",
    "fallback_tokenizer": "a k-means codebook put in the place of the quantizer's own",
    "upkeep": "idle codes moved to where the error is",
    "alert": "a human asked to look",
    "save_checkpoint": "a checkpoint asked for",
    "stop_training": "the end of training asked for",
}
_BECAME = {
    "recovered": "it held",
    "failed": "it did not hold",
    "inconclusive": "whether it held is not known",
    "applied": "the run ended before it was judged",
    "refused": "refused, nothing was touched",
}
_GLOSS = (
    "perplexity: how many of the K codes are in use, in effect; 1 means that every input gets the same code. error: of "
    "the codes, relative to the latents' variance; above 1, one code for everything would do better."
)


@dataclass(slots=True)
class _Lowest:
    """The lowest perplexity of a codebook, when it was read, and how many readings there were."""

    perplexity: float
    step: int
    readings: int = 0


@dataclass(slots=True)
class Chronicle:
    """What a summary needs to know of the events before it.

    Attributes:
        attached: fields of the latest `attached`. resumed_at: step of the latest `resumed`.
        alerts: the first of them. alert_count: of all. outcomes: of the first interventions, by their number.
        lowest: by codebook.
    """

    attached: Mapping[str, Any] = field(default_factory=dict)
    resumed_at: int | None = None
    alerts: list[Event] = field(default_factory=list)
    alert_count: int = 0
    outcomes: dict[Any, Event] = field(default_factory=dict)
    lowest: dict[str, _Lowest] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Take an event in."""
        if event.event == "reading":
            self._read(event)
        elif event.event == "alert":
            self.alert_count += 1
            self.alerts += [event] if len(self.alerts) < _MOST_TOLD else []
        elif event.event == "outcome" and len(self.outcomes) < _MOST_TOLD:
            self.outcomes[event.fields.get("attempt")] = event
        elif event.event == "attached":
            self.attached, self.alerts, self.alert_count = event.fields, [], 0
            self.resumed_at, self.lowest, self.outcomes = None, {}, {}
        elif event.event == "resumed":
            self.resumed_at = event.step

    def _read(self, event: Event) -> None:
        value, name = event.fields.get("perplexity"), str(event.fields.get("codebook"))
        if event.fields.get("stage") == "eval" or not isinstance(value, (int, float)) or value != value:
            return
        known = self.lowest.setdefault(name, _Lowest(value, event.step))
        known.readings += 1
        if value < known.perplexity:
            known.perplexity, known.step = value, event.step

    def summary(self, event: Event) -> list[Line]:
        """Return the summary: a table, what happened in order, what stays in force, and the paragraph."""
        fields = event.fields
        lines: list[Line] = [self._table(event), *self._happened(fields), *self._causes()]
        lines += [Entry("in force", _standing(alike)) for alike in _alike(fields["in_force"])]
        lines += _beside(fields)
        return [*lines, Entry("words", _GLOSS), Entry("for a paper", " ".join(self._paragraph(event)))]

    def _table(self, event: Event) -> Grid:
        fields = event.fields
        held = {each["codebook"] for each in fields["in_force"] if not each.get("meaning")}
        rows = []
        for book in fields["codebooks"]:
            health = book["health"] if book["is_watched"] else "not watched"
            name = str(book["name"])
            low = self.lowest.get(name)
            first, last = (f"{book[when]['perplexity']:.1f}" if book[when] else "-" for when in ("first", "last"))
            lowest = (f"{low.perplexity:.1f}", str(low.step)) if low is not None else ("-", "-")
            usage = f"{book['last']['usage']:.1%}" if book["last"] else "-"
            rows.append(
                (name, str(book["K"]), health + (" (fallback)" if name in held else ""), first, *lowest, last, usage)
            )
        ended = f", ended by {fields['ended_by']}" if fields["ended_by"] else ""
        ended += f", resumed at step {self.resumed_at}" if self.resumed_at is not None else ""
        heads = ("codebook", "K", "health", "perplexity first", "lowest", "at step", "last", "codes used")
        return Grid(f"collapse_guard: summary after {event.step} steps{ended}", heads, tuple(rows), toned=2)

    def _happened(self, fields: Mapping[str, Any]) -> Iterator[Entry]:
        """Tell alerts and interventions in the order of their steps, each alert with its cause."""
        acts = _together(fields["interventions"])
        told = [(each.step, 0, each.step, _alerted(each)) for each in self.alerts]
        told += [(act[0]["step"], 1, act[0]["attempt"], self._acted(act)) for act in acts]
        told.sort(key=lambda each: each[:3])
        for index, (step, _, _, text) in enumerate(told[:_MOST_TOLD]):
            yield Entry("" if index else "happened", f"step {step}: {text}")
        more = len(acts) + self.alert_count - min(len(told), _MOST_TOLD)
        if more:
            yield Entry("", f"and {more} more alerts and interventions: see the event log")
        if not told and not more:
            yield Entry("happened", "nothing: no rule fired")

    def _causes(self) -> Iterator[Entry]:
        """Say what to do about what the alerts were likely caused by, each cause once."""
        likeliest: dict[str, Sequence[Mapping[str, Any]]] = {}
        for alert in self.alerts:
            if causes := alert.fields.get("causes"):
                likeliest.setdefault(causes[0]["cause"], causes)
        for causes in [*likeliest.values()][:_MOST_CAUSES]:
            yield from causes_told(causes[:1])

    def _acted(self, levels: Sequence[Mapping[str, Any]]) -> str:
        """Tell one intervention, on one codebook or on several levels, and what became of it."""
        action = str(levels[0]["action"])
        meaning = f" ({_MEANS[action]})" if action in _MEANS else ""
        names = ", ".join(str(each["codebook"]) for each in levels[:_MOST_BOOKS])
        names += f" and {len(levels) - _MOST_BOOKS} more" if len(levels) > _MOST_BOOKS else ""
        ends: dict[str, int] = {}
        for each in levels:
            became = _BECAME.get(each["result"], str(each["result"])) + (", and was undone" if each["undone"] else "")
            ends[became] = ends.get(became, 0) + 1
        parts = [became + (f" on {count} of {len(levels)}" if len(ends) > 1 else "") for became, count in ends.items()]
        judged = _judged(self.outcomes.get(levels[0]["attempt"]))
        return f"{names}: {action}{meaning}. {judged}{'; '.join(parts)}"

    def _paragraph(self, event: Event) -> Iterator[str]:
        """Yield sentences that stand by themselves, for the appendix of a paper."""
        fields, books = event.fields, event.fields["codebooks"]
        version = self.attached.get("environment", {}).get("collapse_guard", "")
        print_ = self.attached.get("policy_fingerprint")
        policy = f"policy {self.attached.get('policy', 'unknown')}" + (f" ({print_})" if print_ else "")
        readings = sum(each.readings for each in self.lowest.values())
        since = f" from step {self.resumed_at}" if self.resumed_at is not None else ""
        yield (
            f"{_count(len(books), 'codebook')} guarded by collapse_guard {version} under {policy} in mode "
            f"{self.attached.get('mode', 'unknown')}{since} to step {event.step}: {_count(readings, 'reading')}, "
            f"{_count(self.alert_count, 'alert')}, {_results(_together(fields['interventions']))}."
        )
        seen = [book for book in books if book["last"]]
        for book in seen[:_MOST_BOOKS] if len(seen) <= _MOST_BOOKS else ():
            low, last = self.lowest.get(str(book["name"])), book["last"]
            lowest = f"{low.perplexity:.1f} at the lowest (step {low.step}), " if low is not None else ""
            ceiling = f" (uniform codes would show {last['ceiling']:.0f})" if "ceiling" in last else ""
            yield (
                f"{book['name']} ({book['K']} codes): perplexity {book['first']['perplexity']:.1f} at first, {lowest}"
                f"{last['perplexity']:.1f} at the end{ceiling}, {last['usage']:.1%} of codes in use."
            )
        if len(seen) > _MOST_BOOKS:
            ends = [book["last"]["perplexity"] for book in seen]
            yield f"Perplexity at the end: {min(ends):.1f} to {max(ends):.1f}, median {statistics.median(ends):.1f}."
        yield share_of_time(fields)


def _beside(fields: Mapping[str, Any]) -> Iterator[Entry]:
    """Tell of evaluation, of saved tokenizers and of alerts that were withdrawn, where there is something to tell."""
    for book in fields["codebooks"]:
        if (evaluated := book.get("evaluated")) is not None:
            share = evaluated["eval_to_train"]
            beside = f", {share:.0%} of training" if share is not None else ""
            yield Entry("evaluation", f"{book['name']}: perplexity {evaluated['perplexity']:.1f}{beside}")
    for book, place in fields.get("tokenizers", {}).items():
        yield Entry("tokenizer", f"{book}: saved in {place}")
    for name, count in fields.get("withdrawn", {}).items():
        yield Entry("withdrawn", f"{name}: {count} alert{'s' if count > 1 else ''}: nothing was wrong")


def share_of_time(fields: Mapping[str, Any]) -> str:
    """Say what the guard cost."""
    share = f"{fields['guard_seconds']:.2f} s of {fields['run_seconds']:.2f} s"
    return f"The guard took {share} ({fields['guard_share']:.1%})."


def _alerted(event: Event) -> str:
    why = event.fields.get("why")
    cause = f". Likely cause: {why}" if why else ""
    fields = event.fields
    return f"rule {fields['rule']} fired on {who(fields)} ({fields['severity']}): {fields['reason']}{cause}"


def _judged(outcome: Event | None) -> str:
    """Say when an intervention was judged, and by which numbers; of several levels by those of the coarsest."""
    if outcome is None:
        return ""
    parts = [outcome.fields, *outcome.fields.get("members", ())]
    after: Mapping[str, Any] = next((part["after"] for part in parts if part.get("after")), {})
    known = [(name, after.get(key)) for name, key in (("perplexity", "perplexity"), ("error", "relative_error"))]
    numbers = " and ".join(f"{name} {value:.4g}" for name, value in known if isinstance(value, (int, float)))
    return f"At step {outcome.step}{f', with {numbers}' if numbers else ''}, "


def _together(entries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Gather the levels that one intervention acted on."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for index, each in enumerate(entries):
        found.setdefault(each.get("attempt", f"no number {index}"), []).append({"attempt": index} | dict(each))
    return list(found.values())


def _results(acts: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    counts: dict[str, int] = {}
    for act in acts:
        result = act[0]["result"] if len({each["result"] for each in act}) == 1 else "mixed"
        counts[result] = counts.get(result, 0) + 1
    how = ", ".join(f"{count} {result}" for result, count in counts.items())
    return _count(len(acts), "intervention") + (f" ({how})" if how else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _alike(in_force: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Gather what stays in force by the intervention that several levels share."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for item in in_force:
        found.setdefault(item["attempt"], []).append(item)
    return list(found.values())


def _standing(items: Sequence[Mapping[str, Any]]) -> str:
    names, first = ", ".join(str(item["codebook"]) for item in items), items[0]
    if first.get("meaning"):
        return f"{first['action']} for {names} since step {first['step']}: {first['meaning']}"
    stands, book, its = ("stands", "codebook", "its") if len(items) == 1 else ("stand", "codebooks", "their")
    return (
        f"{names} {stands} on the {book} of {first['action']} since step {first['step']}; {its} own update was "
        "kept out. Evaluate freely; to train on, keep the guard or repair the update, or it will collapse again."
    )

"""Runs as their events tell them: per codebook the course of its perplexity, its latest numbers, marks and rules.

Records come in the order of the log and are folded one by one, in memory that does not grow with their number. A record
that lacks something says what it can; one that makes no sense is counted.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from collapse_guard.policies import Phase

from .rules import Bound, PolicyFacts, Standing, after_event, after_reading, facts_of, number, stated_bound
from .series import Series

__all__ = ["Book", "Happening", "Mark", "Run", "Runs"]

_MOST_RUNS = 8
_MOST_BOOKS = 1000
_MOST_HAPPENINGS = 200
_MOST_MARKS = 400
_MOST_STANDINGS = 64  # of the rules of one codebook, for a resume that goes back to an earlier step
_LONGEST_TEXT = 600
_QUIET = {"reading", "pending", "attached", "summary"}
_LATEST = ("tokens", "perplexity", "ceiling", "usage", "norm_ratio", "relative_error", "top_share", "dead_fraction")


@dataclass(frozen=True, slots=True)
class Happening:
    """One event that people read.

    Attributes:
        step: of it. event: its kind. codebooks: whom it concerns; empty for the run as a whole.
        label: severity, result or outcome, or else the kind. who, text: what it says.
        closing: whether the run wrote it in order to close; a run that goes on from its checkpoint takes it back.
    """

    step: int
    event: str
    codebooks: tuple[str, ...]
    label: str
    who: str
    text: str
    closing: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to a codebook, at a step: `alert`, `applied`, `refused`, `recovered`, `failed`..."""

    step: int
    kind: str
    closing: bool = False


@dataclass(slots=True)
class Book:
    """One codebook.

    Attributes:
        name: of it. K, D: codes and dimension; 0 where unknown. kind, group: as the adapter says.
        series: of perplexity. raw: what the latest reading says, and what of it is not finite, as it stands there.
        health: at the latest reading. step: of it. marks: what happened to it. rules: where each rule stands.
        bounds: that alerts have stated. resets: how often its token ids were permuted.
        evaluated: step and perplexity of the latest reading in evaluation, and its share of that in training.
    """

    name: str
    K: int = 0
    D: int = 0
    kind: str = ""
    group: str = ""
    series: Series = field(default_factory=Series)
    raw: tuple[tuple[object, ...], object] = ((), None)
    health: str = "unknown"
    step: int | None = None
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=_MOST_MARKS))
    rules: dict[str, Standing] = field(default_factory=dict)
    bounds: set[Bound] = field(default_factory=set)
    evaluated: tuple[int, float, float | None] | None = None
    past: deque[tuple[int, str, Standing, bool]] = field(default_factory=lambda: deque(maxlen=_MOST_STANDINGS))

    @property
    def latest(self) -> dict[str, float | str]:
        """The numbers of the latest reading by field; text for what is not finite, nothing for what is no number."""
        named = self.raw[1] if isinstance(self.raw[1], Mapping) else {}
        found: dict[str, float | str] = {}
        for key, raw in zip(_LATEST, self.raw[0], strict=False):
            value = number(raw)
            if value is not None:
                found[key] = value
            elif key in named:
                found[key] = str(named[key])[:8]
        return found

    def stand(self, step: int, rule: str, standing: Standing, *, closing: bool = False) -> None:
        """Note where a rule stands from a step on."""
        self.rules[rule] = standing
        self.past.append((step, rule, standing, closing))

    def forget_after(self, step: int) -> None:
        """Go back to what was known at a step."""
        self.series.forget_after(step)
        marks = (mark for mark in self.marks if mark.step <= step and not mark.closing)
        self.marks = deque(marks, maxlen=_MOST_MARKS)
        kept = [each for each in self.past if each[0] <= step and not each[3]]
        self.past = deque(kept, maxlen=_MOST_STANDINGS)
        self.rules = {rule: standing for rule, standing in self.rules.items() if standing.since <= step}
        for _, rule, standing, _ in kept:
            self.rules[rule] = standing


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        name: what its lines carry. policy, mode: in force. facts: what is known of the policy.
        step: latest. began, latest: times of the first and the latest line, ISO 8601.
        books: by name. happenings: the latest that people read. is_over: whether it has told its summary.
        ended_by: exception that ended it. resumed_at: step from which it goes on after a checkpoint.
        interventions: applied so far. alerts: so far. unshown: codebooks beyond the most that are kept.
        continues: name of the run that it went on from.
    """

    name: str
    policy: str = ""
    mode: str = ""
    facts: PolicyFacts = field(default_factory=PolicyFacts)
    step: int = 0
    began: str = ""
    latest: str = ""
    books: dict[str, Book] = field(default_factory=dict)
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=_MOST_HAPPENINGS))
    is_over: bool = False
    ended_by: str = ""
    resumed_at: int | None = None
    interventions: int = 0
    alerts: int = 0
    unshown: set[str] = field(default_factory=set)
    continues: str | None = None

    def bounds(self, book: Book) -> list[Bound]:
        """Return the perplexities that rules compare a codebook with: the policy's, or what alerts stated."""
        return self.facts.bounds(book.name) if self.facts.rules else sorted(book.bounds)

    def armed(self, book: Book) -> list[str]:
        """Return the rules of a codebook that are at rest, where the policy is known."""
        at_rest = (name for name in self.facts.names(book.name) if name not in book.rules)
        return [*at_rest, *(name for name, each in book.rules.items() if each.phase is Phase.ARMED)]

    def book(self, name: str) -> Book | None:
        """Return a codebook, new if need be; `None` beyond the most that are kept."""
        if name not in self.books:
            if len(self.books) >= _MOST_BOOKS:
                self.unshown |= {name} if len(self.unshown) < _MOST_BOOKS else set()
                return None
            self.books[name] = Book(name)
        return self.books[name]


class Runs:
    """The latest runs of a log.

    Attributes:
        runs: at most a few, in the order in which they began. begun: how many there have been.
        odd: records that made no sense.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.runs: list[Run] = []
        self.begun = 0
        self.odd = 0
        self._known: dict[str, Run] = {}  # by name, those too that others went on from

    @property
    def latest(self) -> Run | None:
        """The run that began last."""
        return self.runs[-1] if self.runs else None

    def fold(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take records in."""
        for record in records:
            try:
                self._fold(record)
            except (TypeError, ValueError, KeyError, AttributeError):  # foreign or damaged; the others still count
                self.odd += 1

    def _fold(self, record: Mapping[str, Any]) -> None:
        event = record.get("event")
        if not isinstance(event, str):
            self.odd += 1
            return
        run = self._run_of(record, event)
        step = number(record.get("step"))
        run.step = run.step if step is None else int(step)
        run.latest = str(record.get("time") or run.latest)
        run.began = run.began or run.latest
        if event == "reading":
            _reading(run, record)
        elif event == "attached":
            _attached(run, record)
        elif event == "resumed":
            self._go_on(run, record)
        elif event == "summary":
            run.is_over, run.ended_by = True, str(record.get("ended_by") or "")
            _summary(run, record)
        elif event not in _QUIET:
            _decided(run, record, event)
        else:
            _stand(run, record)
        # What a rule merely waits for stands beside the rule; an action that was not taken is news.
        if event not in _QUIET and (event != "skip" or "action" in record):
            happening, before = _happening(run.step, event, record), run.happenings[-1] if run.happenings else None
            if event == "tended" and before and (before.event, before.codebooks) == (event, happening.codebooks):
                run.happenings.pop()  # routine: the latest of several in a row says it all
            run.happenings.append(happening)

    def _run_of(self, record: Mapping[str, Any], event: str) -> Run:
        name = str(record.get("run") or "")
        is_new = event == "attached" and not (record.get("repeated") and name in self._known)
        run = self.runs[-1] if self.runs else None
        if run is not None and run.name != name:
            run = next((each for each in reversed(self.runs) if each.name == name), None)
        if run is None or is_new:
            run = self._known[name] = Run(name)
            self.runs.append(run)
            self.begun += 1
            del self.runs[:-_MOST_RUNS]
            for old in list(self._known)[: -2 * _MOST_RUNS]:
                del self._known[old]
        return run

    def _go_on(self, run: Run, record: Mapping[str, Any]) -> None:
        """Put what the run that it continues knew at the checkpoint in front; what that did later is superseded."""
        if record.get("repeated") and run.resumed_at is not None:
            return
        run.resumed_at = run.step
        place = next(index for index, each in enumerate(self.runs) if each is run)
        named = record.get("continues")
        before = self._known.get(str(named)) if named is not None else self.runs[place - 1] if place else None
        if before is None or before is run:
            return
        for each in [each for each in self.runs if each is before or each.continues == before.name]:
            if each is not run:  # another that went on from there was given up
                self.runs.remove(each)
                self.begun -= 1
        run.continues = before.name
        for name, book in copy.deepcopy(before.books).items():
            book.forget_after(run.step)
            fresh = run.books.get(name)
            if fresh is not None:
                book.K, book.D, book.kind = fresh.K or book.K, fresh.D or book.D, fresh.kind or book.kind
            run.books[name] = book
        kept = [each for each in before.happenings if each.step <= run.step and not each.closing]
        run.happenings.extendleft(reversed(kept))
        run.interventions += sum(each.event == "intervention" and each.label == "applied" for each in kept)
        run.alerts += sum(each.event == "alert" for each in kept)
        run.began = before.began or run.began


def _attached(run: Run, record: Mapping[str, Any]) -> None:
    run.policy, run.mode = str(record.get("policy") or ""), str(record.get("mode") or "")
    run.facts = facts_of(record)
    for view in record.get("codebooks") or ():
        book = run.book(str(view["name"])[:_LONGEST_TEXT]) if isinstance(view, Mapping) and "name" in view else None
        if book is not None and isinstance(view, Mapping):
            book.K, book.D = int(number(view.get("K")) or 0), int(number(view.get("D")) or 0)
            book.kind = ", ".join(str(view[key]) for key in ("adapter", "kind", "metric") if view.get(key))
            book.group = str(view.get("group") or "")


def _reading(run: Run, record: Mapping[str, Any]) -> None:
    book = run.book(str(record["codebook"])[:_LONGEST_TEXT])
    if book is None:
        return
    book.health = str(record.get("health") or "unknown")
    stage = "eval" if record.get("stage") == "eval" else "train"
    if stage == "eval":
        if (shown := number(record.get("perplexity"))) is not None:
            book.evaluated = run.step, shown, number(record.get("eval_to_train"))
        _move_rules(run, book, record, stage)
        return
    book.step = run.step
    book.raw = tuple(map(record.get, _LATEST)), record.get("not_finite")
    perplexity = number(record.get("perplexity"))
    if perplexity is not None:
        book.series.add(run.step, perplexity)
    if not book.K:  # a log whose beginning is lost
        book.K, book.D = int(number(record.get("K")) or 0), int(number(record.get("D")) or 0)
    _move_rules(run, book, record, stage)


def _move_rules(run: Run, book: Book, record: Mapping[str, Any], stage: str) -> None:
    """Move the rules that look at readings of this stage."""
    for name, standing in book.rules.items():
        rule = run.facts.rules.get(name)
        if (rule.stage if rule is not None else "train") != stage:
            continue
        after = after_reading(standing, record, run.step, rule)
        if after is not standing:
            book.stand(run.step, name, after)


def _stand(run: Run, record: Mapping[str, Any]) -> None:
    """Move the rule that an event names, on each codebook that it concerns."""
    rule = record.get("rule")
    for book, member in _concerned(run, record):
        if isinstance(rule, str) and rule:
            after = after_event(book.rules.get(rule), record, member, run.step, run.facts.rules.get(rule))
            if after is not None:
                book.stand(run.step, rule, after, closing=bool(record.get("closing")))
        if record.get("event") in ("pending", "alert") and len(book.bounds) < _MOST_STANDINGS:
            stated = stated_bound(record)
            book.bounds |= {stated} if stated else set()


def _decided(run: Run, record: Mapping[str, Any], event: str) -> None:
    _stand(run, record)
    run.alerts += event == "alert"
    run.interventions += event == "intervention" and record.get("result") == "applied"
    for book, member in _concerned(run, record):
        key = {"intervention": "result", "outcome": "outcome"}.get(event)
        kind = str(member.get(key, record.get(key))) if key else event
        if event in ("alert", "intervention", "outcome", "exhausted", "cleared"):
            book.marks.append(Mark(run.step, kind, bool(record.get("closing"))))


def _concerned(run: Run, record: Mapping[str, Any]) -> list[tuple[Book, Mapping[str, Any]]]:
    """Return the codebooks of an event, each with what the event says of it alone."""
    members = record.get("members")
    parts = [each for each in members if isinstance(each, Mapping)] if isinstance(members, list) else []
    found = []
    for part in parts or [record]:
        name = part.get("codebook")
        book = run.book(name[:_LONGEST_TEXT]) if isinstance(name, str) else None
        if book is not None:
            found.append((book, part))
    return found


def _summary(run: Run, record: Mapping[str, Any]) -> None:
    """Take the health that a codebook ended in."""
    for each in record.get("codebooks") or ():
        name, health = (each.get("name"), each.get("health")) if isinstance(each, Mapping) else (None, None)
        if name in run.books and isinstance(health, str):
            run.books[name].health = health if each.get("is_watched", True) else "not watched"


def _happening(step: int, event: str, record: Mapping[str, Any]) -> Happening:
    """Say in one line what an event says."""
    label = record.get({"alert": "severity", "intervention": "result", "outcome": "outcome"}.get(event, "")) or event
    action = record.get("action")
    attempt = f" #{record['attempt']}" if record.get("attempt") is not None else ""
    what = f"{action}{attempt}" if action and event in ("intervention", "outcome", "tended") else record.get("rule")
    text = record.get("reason") or record.get("summary") or ""
    if event == "resumed":
        text = f"policy {record.get('policy')}" + (", changed since" if record.get("policy_changed") else "")
    told = f"{what}: {text}" if what else str(text)
    books = record.get("codebooks") if isinstance(record.get("codebooks"), list) else None
    names = tuple(str(each)[:_LONGEST_TEXT] for each in books or (record.get("codebook"),) if isinstance(each, str))
    levels = record.get("levels")
    who = f"{record.get('group')} ({len(levels)} levels)" if isinstance(levels, list) else "".join(names[:1])
    who = who or str(record.get("where") or "")
    label, who, told = str(label)[:40], who[:_LONGEST_TEXT], told[:_LONGEST_TEXT]
    return Happening(step, event, names, label, who, told, bool(record.get("closing")))

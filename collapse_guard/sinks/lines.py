"""What the console says of each event, as entries and grids: words only. It prints nothing and knows no width.

Names and reasons come from a model and from a policy; they are kept as they are here, and made harmless where they are
printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from collapse_guard.events import Event
from collapse_guard.policies import LEADING, levels_text

__all__ = ["Entry", "Grid", "Line", "causes_told", "lines_of", "local_time", "who"]

_CLOSE = 0.2  # a second cause that is so much less sure is told, too
_MOST_NAMED = 3
_MOST_LEVELS = 4
"""Levels of a residual whose numbers stand beside an alert."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log.

    Attributes:
        label: what kind of thing happened; of a further line, what it adds.
        text: what it was.
        tone: how it is coloured: a severity, a result, an outcome or a health; empty for a further line.
        step, time: when, where the entry begins something; a further line has no step.
    """

    label: str
    text: str
    tone: str = ""
    step: int | None = None
    time: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        title: the line above it.
        heads: of its columns. rows: its cells, one text for each column.
        toned: column whose text may be coloured by its first word; `None`: no column.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    toned: int | None = None


Line = Entry | Grid


def lines_of(event: Event) -> list[Line]:
    """Return what there is to say of an event; nothing of one that is for the log alone."""
    render = _RENDER.get(event.event)
    return list(render(event)) if render is not None else []


def local_time(time: str) -> str:
    """Return an event's time where the reader is, `2026-11-25 14:02:11`; empty for what is no time."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return ""


def who(fields: Mapping[str, Any]) -> str:
    """Name the codebook, or the residual and those of its levels that are concerned."""
    if "levels" not in fields:
        return str(fields["codebook"])
    return f"{fields['group']}: {levels_text(fields['levels'])} of {fields['levels_watched']}"


def _at(event: Event, label: str, tone: str, text: str) -> Entry:
    return Entry(label, text, tone, event.step, event.time)


def _attached(event: Event) -> list[Line]:
    fields = event.fields
    rows = [
        (
            str(view["name"]),
            str(view["K"]),
            str(view["D"]),
            f"{view['adapter']} ({view['kind']}, {view['metric']}) {view['confidence']}",
            ", ".join(view["supports"]),
        )
        for view in fields["codebooks"]
    ]
    began = f", {local_time(event.time)}" if event.time else ""
    title = f"collapse_guard: policy {fields['policy']}, mode {fields['mode']}{began}"
    return [Grid(title, ("codebook", "K", "D", "adapter", "supports"), tuple(rows)), *_beside(fields)]


def _beside(fields: Mapping[str, Any]) -> Iterator[Entry]:
    """Say what is worth knowing of what was attached: where the log is, and what cannot be done."""
    if fields.get("log"):
        yield Entry("event log", str(fields["log"]))
    lacking: dict[tuple[str, str], list[str]] = {}
    for view in fields["codebooks"]:
        for why in dict.fromkeys(view["lacks"].values()):
            what = ", ".join(name for name, reason in view["lacks"].items() if reason == why)
            lacking.setdefault((what, why), []).append(str(view["name"]))
    for (what, why), names in lacking.items():
        yield Entry("cannot", f"{_some(names)}: {what}: {why}")
    for item in fields["unrecognised"]:
        yield Entry("not watched", f"{item['name']}: {item['reason']}")
        if item["advice"]:
            yield Entry("", item["advice"])
    for idle in fields.get("idle_rules", ()):
        which = " or ".join(idle["codebooks"])
        yield Entry("idle", f"{idle['rule']}: exists on no codebook here: none is called {which}")
    powerless = fields.get("powerless", {})
    for book in dict.fromkeys(book for books in powerless.values() for book in books):
        rules = ", ".join(rule for rule, books in powerless.items() if book in books)
        yield Entry("only told", f"{book}: nothing in the ladders of {rules} can repair it")


def _some(names: Sequence[str]) -> str:
    """Name a few, and count the rest."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _resumed(event: Event) -> list[Line]:
    changed = "; the policy has changed since, the new one counts" if event.fields["policy_changed"] else ""
    told = [f"; {each['action']} on {each['codebook']} stays in force" for each in event.fields["in_force"]]
    return [_at(event, "RESUMED", "info", f"policy {event.fields['policy']}{changed}{''.join(told)}")]


def _alert(event: Event) -> list[Line]:
    fields = event.fields
    severity = str(fields["severity"])
    lines: list[Line] = [_at(event, severity.upper(), severity, f"{who(fields)}: {fields['rule']}: {fields['reason']}")]
    lines += [Entry("seen", text) for text in _seen(fields)]
    if "why" in fields:
        whose = f"level {fields['levels'][0]}: " if "levels" in fields else ""
        lines.append(Entry("why", whose + fields["why"]))
    return [*lines, *causes_told(fields.get("causes", ()))]


def causes_told(causes: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    """Say what to do about the likeliest cause, with the line to change, and name a second one that is close."""
    if not causes or causes[0]["confidence"] < LEADING:
        return
    first, *others = causes
    yield Entry("cause", f"{first['cause']} ({first['confidence']:.0%} sure): {first['advice']}")
    if first["line"]:
        yield Entry("change", first["line"])
    if others and others[0]["confidence"] >= max(LEADING, first["confidence"] - _CLOSE):
        yield Entry("or", f"{others[0]['cause']} ({others[0]['confidence']:.0%} sure): {others[0]['says']}")


def _seen(fields: Mapping[str, Any]) -> Iterator[str]:
    """Say what the reading behind an alert showed; of several levels each its own numbers, on one line."""
    members = [each for each in fields.get("members", ()) if each.get("reading")]
    if len(members) > 1:
        shown = [f"level {each['level']}: {_numbers(each['reading'])}" for each in members[:_MOST_LEVELS]]
        more = f"; and {len(members) - _MOST_LEVELS} levels more" if len(members) > _MOST_LEVELS else ""
        yield "; ".join(shown) + more
    elif (reading := fields.get("reading")) is not None:
        used = f"{reading['tokens']} tokens used {reading['usage']:.1%} of {reading['K']} codes"
        yield f"{used}; uniform codes would show perplexity {reading['ceiling']:.0f}"


def _numbers(reading: Mapping[str, Any]) -> str:
    return f"perplexity {reading['perplexity']:.1f} of at most {reading['ceiling']:.0f}, usage {reading['usage']:.1%}"


def _intervention(event: Event) -> list[Line]:
    fields = event.fields
    label = "ACT" if fields["result"] == "applied" else str(fields["result"]).upper()
    text = f"{who(fields)}: {fields['action']} #{fields['attempt']}: {fields['summary']}"
    return [_at(event, label, fields["result"], text)]


def _outcome(event: Event) -> list[Line]:
    fields = event.fields
    undone = f"; undone: #{', #'.join(str(number) for number in fields['undone'])}" if fields["undone"] else ""
    undone += "; kept" if fields.get("kept") else ""
    text = f"{who(fields)}: {fields['action']} #{fields['attempt']}: {fields['reason']}{undone}"
    return [_at(event, fields["outcome"].upper(), fields["outcome"], text)]


def _ruling(tone: str) -> Callable[[Event], list[Line]]:
    """Return a renderer of what a rule came to."""

    def render(event: Event) -> list[Line]:
        fields = event.fields
        return [_at(event, event.event.upper(), tone, f"{who(fields)}: {fields['rule']}: {fields['reason']}")]

    return render


def _skip(event: Event) -> list[Line]:
    label = "SKIPPED" if "action" in event.fields else "WAITS"
    told = (who(event.fields), str(event.fields.get("rule") or ""), str(event.fields["reason"]))
    return [_at(event, label, "info", ": ".join(part for part in told if part))]


def _carried_out(event: Event) -> list[Line]:
    fields = event.fields
    return [_at(event, "CARRIED OUT", "info", f"{fields['codebook']}: {fields['request']}: {fields['summary']}")]


def _tended(event: Event) -> list[Line]:
    fields = event.fields
    text = f"{fields.get('codebook', '')}: {fields.get('action', '')}: {fields.get('summary', '')}"
    return [_at(event, "TENDED", "info", text)]


def _fault(event: Event) -> list[Line]:
    return [_at(event, "FAULT", "fault", f"{event.fields['where']}: {event.fields['reason']}")]


def _reading(event: Event) -> list[Line]:
    fields = event.fields
    known = [("norm ratio", fields.get("norm_ratio")), ("error", fields.get("relative_error"))]
    more = "".join(f", {name} {value:.3g}" for name, value in known if isinstance(value, (int, float)))
    where = " in evaluation" if fields.get("stage") == "eval" else ""
    return [
        _at(event, "READING", "", f"{fields['codebook']}{where}: {_numbers(fields)}{more}; {fields.get('health', '')}")
    ]


_RENDER: Mapping[str, Callable[[Event], Sequence[Line]]] = {
    "attached": _attached,
    "resumed": _resumed,
    "reading": _reading,
    "pending": _ruling("info"),
    "alert": _alert,
    "intervention": _intervention,
    "outcome": _outcome,
    "cleared": _ruling("recovered"),
    "exhausted": _ruling("failed"),
    "withdrawn": _ruling("info"),
    "carried_out": _carried_out,
    "skip": _skip,
    "tended": _tended,
    "fault": _fault,
}

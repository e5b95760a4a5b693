"""The console alert log: tables at the start and the end, one line for each thing that happened in between.

Printed through rich's shared console, which Lightning's RichProgressBar uses too, and between the bars of tqdm, so that
live bars survive. On a terminal long texts wrap beside their label; elsewhere every entry is one plain line, so that a
log file can be searched. Names from the model are printed as text, never as markup or terminal control.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import box, get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collapse_guard.events import Event
from collapse_guard.policies import LEADING, levels_text

__all__ = ["ConsoleSink", "plain"]

_STYLES = {
    "info": "cyan",
    "warning": "bold yellow",
    "critical": "bold red",
    "recovered": "bold green",
    "failed": "bold red",
    "refused": "yellow",
    "postponed": "yellow",
    "inconclusive": "yellow",
    "applied": "cyan",
    "healthy": "green",
    "degraded": "yellow",
    "collapsed": "bold red",
}
_STEP_WIDTH, _LABEL_WIDTH = 11, 12
_CLOSE = 0.2  # a second cause that is so much less sure is told, too


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the log: what happened at a step, and further lines that belong to it."""

    step: str
    label: str
    style: str
    text: str


_Line = _Entry | Table | Text


class ConsoleSink:
    """Prints events as a log that a person reads.

    Args:
        console: where to print; rich's shared console where not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Store the console."""
        self._given = console
        self._render: Mapping[str, Callable[[Event], list[_Line]]] = {
            "attached": _attached,
            "resumed": _resumed,
            "alert": _alert,
            "withdrawn": _withdrawn,
            "intervention": _intervention,
            "outcome": _outcome,
            "cleared": _ruling("green"),
            "exhausted": _ruling("bold red"),
            "carried_out": _carried_out,
            "skip": _skip,
            "fault": _fault,
            "summary": _summary,
        }

    def write(self, event: Event) -> None:
        """Print one event, if it is one that people read."""
        render = self._render.get(event.event)
        lines = render(event) if render is not None else []
        if not lines:
            return
        console = self._given or get_console()
        with _between_bars():
            for line in lines:
                if isinstance(line, _Entry):
                    _print_entry(console, line)
                else:
                    console.print(line)

    def close(self) -> None:
        """Nothing is held."""


def plain(value: object) -> str:
    """Return text that cannot steer a terminal: control characters become a replacement character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


@contextmanager
def _between_bars() -> Iterator[None]:
    """Take tqdm's bars off the screen while printing, if tqdm is in use at all."""
    module = sys.modules.get("tqdm")
    if module is None:
        yield
        return
    with module.tqdm.external_write_mode(file=sys.stdout):
        yield


def _print_entry(console: Console, entry: _Entry) -> None:
    step = Text(entry.step.ljust(_STEP_WIDTH), style="dim")
    label, text = Text(entry.label.ljust(_LABEL_WIDTH), style=entry.style), Text(plain(entry.text))
    if not console.is_terminal:
        console.print(Text("  ").join([step, label, text]), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_STEP_WIDTH)
    grid.add_column(width=_LABEL_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(step, label, text)
    console.print(grid)


def _at(event: Event, label: str, style: str, text: str) -> _Entry:
    return _Entry(f"step {event.step:>6}", label, style, text)


def _more(label: str, text: str) -> _Entry:
    return _Entry("", label, "dim", text)


def _who(fields: Mapping[str, Any]) -> str:
    """Name the codebook, or the residual and those of its levels that are concerned."""
    if "levels" not in fields:
        return str(fields["codebook"])
    return f"{fields['group']}: {levels_text(fields['levels'])} of {fields['levels_watched']}"


def _attached(event: Event) -> list[_Line]:
    fields = event.fields
    table = Table(title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.title = Text(f"collapse_guard: policy {plain(fields['policy'])}, mode {fields['mode']}")
    for column in ("codebook", "K", "D", "adapter", "supports"):
        table.add_column(column, overflow="fold")
    for view in fields["codebooks"]:
        adapter = plain(f"{view['adapter']} ({view['kind']}, {view['metric']})")
        cells = [Text(plain(cell)) for cell in (view["name"], view["K"], view["D"], ", ".join(view["supports"]))]
        cells.insert(3, Text.assemble(adapter, "\n", (plain(view["confidence"]), "dim")))
        table.add_row(*cells)
    lines: list[_Line] = [table]
    if fields.get("log"):
        lines.append(_more("event log", fields["log"]))
    for view in fields["codebooks"]:
        for why in dict.fromkeys(view["lacks"].values()):
            lacking = ", ".join(name for name, reason in view["lacks"].items() if reason == why)
            lines.append(_more("cannot", f"{view['name']}: {lacking}: {why}"))
    for item in fields["unrecognised"]:
        lines.append(_more("not watched", f"{item['name']}: {item['reason']}"))
        lines += [_more("", item["advice"])] if item["advice"] else []
    for idle in fields.get("idle_rules", ()):
        which = " or ".join(idle["codebooks"])
        lines.append(_more("idle", f"{idle['rule']}: exists on no codebook here: none is called {which}"))
    for book in dict.fromkeys(book for books in fields.get("powerless", {}).values() for book in books):
        rules = ", ".join(rule for rule, books in fields["powerless"].items() if book in books)
        lines.append(_more("only told", f"{book}: nothing in the ladders of {rules} can repair it"))
    return lines


def _resumed(event: Event) -> list[_Line]:
    changed = "; the policy has changed since, the new one counts" if event.fields["policy_changed"] else ""
    told = [f"; {each['action']} on {each['codebook']} stays in force" for each in event.fields["in_force"]]
    return [_at(event, "RESUMED", "bold cyan", f"policy {event.fields['policy']}{changed}{''.join(told)}")]


def _alert(event: Event) -> list[_Line]:
    fields = event.fields
    text = f"{_who(fields)}: {fields['rule']}: {fields['reason']}"
    lines: list[_Line] = [_at(event, fields["severity"].upper(), _STYLES.get(fields["severity"], "bold"), text)]
    reading = fields.get("reading")
    if reading is not None:
        used = f"{reading['tokens']} tokens used {reading['usage']:.1%} of {reading['K']} codes"
        lines.append(_more("seen", f"{used}; uniform codes would show perplexity {reading['ceiling']:.0f}"))
    if "why" in fields:
        whose = f"level {fields['levels'][0]}: " if "levels" in fields else ""
        lines.append(_more("why", whose + fields["why"]))
    return lines + _causes(fields.get("causes", ()))


def _causes(causes: Sequence[Mapping[str, Any]]) -> list[_Line]:
    """Say what to do about the likeliest cause, with the line to change, and name a second one that is close."""
    lines: list[_Line] = []
    if not causes or causes[0]["confidence"] < LEADING:
        return lines
    first, *others = causes
    lines.append(_more("cause", f"{first['cause']} ({first['confidence']:.0%} sure): {first['advice']}"))
    if first["line"]:
        lines.append(_more("change", first["line"]))
    if others and others[0]["confidence"] >= max(LEADING, first["confidence"] - _CLOSE):
        lines.append(_more("or", f"{others[0]['cause']} ({others[0]['confidence']:.0%} sure): {others[0]['says']}"))
    return lines


def _withdrawn(event: Event) -> list[_Line]:
    fields = event.fields
    return [_at(event, "WITHDRAWN", "cyan", f"{_who(fields)}: {fields['rule']}: {fields['reason']}")]


def _intervention(event: Event) -> list[_Line]:
    fields = event.fields
    label = "ACT" if fields["result"] == "applied" else "REFUSED"
    text = f"{_who(fields)}: {fields['action']} #{fields['attempt']}: {fields['summary']}"
    return [_at(event, label, _STYLES[fields["result"]], text)]


def _outcome(event: Event) -> list[_Line]:
    fields = event.fields
    undone = f"; undone: #{', #'.join(str(number) for number in fields['undone'])}" if fields["undone"] else ""
    undone += "; kept" if fields.get("kept") else ""
    text = f"{_who(fields)}: {fields['action']} #{fields['attempt']}: {fields['reason']}{undone}"
    return [_at(event, fields["outcome"].upper(), _STYLES[fields["outcome"]], text)]


def _ruling(style: str) -> Callable[[Event], list[_Line]]:
    """Return a renderer of what a rule came to."""

    def render(event: Event) -> list[_Line]:
        fields = event.fields
        return [_at(event, event.event.upper(), style, f"{_who(fields)}: {fields['rule']}: {fields['reason']}")]

    return render


def _skip(event: Event) -> list[_Line]:
    if "action" not in event.fields:  # a skipped candidate is for the log; an action that was not taken is for people
        return []
    fields = event.fields
    return [_at(event, "SKIPPED", "cyan", f"{_who(fields)}: {fields['rule']}: {fields['reason']}")]


def _carried_out(event: Event) -> list[_Line]:
    fields = event.fields
    return [_at(event, "CARRIED OUT", "bold cyan", f"{fields['codebook']}: {fields['request']}: {fields['summary']}")]


def _fault(event: Event) -> list[_Line]:
    return [_at(event, "FAULT", "bold magenta", f"{event.fields['where']}: {event.fields['reason']}")]


def _summary(event: Event) -> list[_Line]:
    fields = event.fields
    table = Table(title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    ended = f", ended by {plain(fields['ended_by'])}" if fields["ended_by"] else ""
    table.title = Text(f"collapse_guard: summary after {event.step} steps{ended}")
    for column in ("codebook", "health", "perplexity\nfirst > last", "usage\nlast", "interventions"):
        table.add_column(column, overflow="fold")
    held = {each["codebook"] for each in fields["in_force"] if not each.get("meaning")}
    for book in fields["codebooks"]:
        done = [item for item in fields["interventions"] if item["codebook"] == book["name"]]
        first, last = book["first"], book["last"]
        seen = f"{first['perplexity']:.1f} > {last['perplexity']:.1f} of {book['K']}" if last else "no tokens seen"
        if (evaluated := book.get("evaluated")) is not None:
            share = evaluated["eval_to_train"]
            beside = f", {share:.0%} of training" if share is not None else ""
            seen += f"\nin evaluation {evaluated['perplexity']:.1f}{beside}"
        health = book["health"] if book["is_watched"] else "not watched"
        table.add_row(
            Text(plain(book["name"])),
            Text(health + (" (fallback)" if book["name"] in held else ""), _STYLES.get(health, "")),
            seen,
            f"{last['usage']:.1%}" if last else "-",
            Text("\n").join(_told(item) for item in done) if done else Text("none", "dim"),
        )
    share = f"the guard took {fields['guard_seconds']:.2f} s of {fields['run_seconds']:.2f} s"
    lines: list[_Line] = [table]
    lines += [_more("in force", _standing(alike)) for alike in _alike(fields["in_force"])]
    lines += [_more("tokenizer", f"{book}: saved in {place}") for book, place in fields.get("tokenizers", {}).items()]
    lines += [
        _more("withdrawn", f"{name}: {count} alert{'s' if count > 1 else ''}: nothing was wrong")
        for name, count in fields.get("withdrawn", {}).items()
    ]
    return [*lines, Text(f"{share} ({fields['guard_share']:.1%})", style="dim")]


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


def _told(item: Mapping[str, Any]) -> Text:
    result = item["result"] + (", undone" if item["undone"] else "")
    return Text.assemble(f"step {item['step']} {plain(item['action'])} ", (result, _STYLES.get(item["result"], "")))

"""The console alert log: tables at the start and the end, one line for each thing that happened in between.

Printed through rich's shared console, which Lightning's RichProgressBar uses too, and between the bars of tqdm, so
that live bars survive. Where the output is no terminal, plain lines. Names from the model are printed as text, never
as markup.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich import get_console
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from collapse_guard.events import Event

__all__ = ["ConsoleSink"]

_SEVERITY_STYLES = {"info": "cyan", "warning": "bold yellow", "critical": "bold red"}
_RESULT_STYLES = {
    "recovered": "bold green",
    "failed": "bold red",
    "refused": "yellow",
    "inconclusive": "yellow",
    "applied": "cyan",
    "healthy": "green",
    "degraded": "yellow",
    "collapsed": "bold red",
}
_INDENT = " " * 14


class ConsoleSink:
    """Prints events as a log that a person reads.

    Args:
        console: where to print; rich's shared console where not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Store the console."""
        self._given = console
        self._render: Mapping[str, Callable[[Event], list[RenderableType]]] = {
            "attached": _attached,
            "resumed": _resumed,
            "alert": _alert,
            "intervention": _intervention,
            "outcome": _outcome,
            "cleared": _cleared,
            "exhausted": _exhausted,
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
                console.print(line, soft_wrap=isinstance(line, Text) and not console.is_terminal)

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _between_bars() -> Iterator[None]:
    """Take tqdm's bars off the screen while printing, if tqdm is in use at all."""
    module = sys.modules.get("tqdm")
    if module is None:
        yield
        return
    with module.tqdm.external_write_mode(file=sys.stdout):
        yield


def plain(value: object) -> str:
    """Return text that cannot steer a terminal: control characters become a replacement character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def _line(event: Event, label: str, style: str, text: str) -> Text:
    head = Text(f"step {event.step:>6}  ", style="dim")
    return Text.assemble(head, (f"{label:<9} ", style), Text(plain(text)), overflow="fold")


def _more(label: str, text: str) -> Text:
    return Text.assemble((f"{_INDENT}{label}: ", "dim"), Text(plain(text)), overflow="fold")


def _attached(event: Event) -> list[RenderableType]:
    fields = event.fields
    table = Table(
        title_justify="left",
        title=Text(f"collapse_guard: policy {plain(fields['policy'])}, mode {fields['mode']}", style="bold"),
    )
    columns: tuple[tuple[str, JustifyMethod], ...] = (
        ("codebook", "left"),
        ("K", "right"),
        ("D", "right"),
        ("adapter", "left"),
        ("supports", "left"),
    )
    for column, justify in columns:
        table.add_column(column, justify=justify, overflow="fold")
    for view in fields["codebooks"]:
        adapter = f"{view['adapter']} ({view['kind']}, {view['metric']})"
        supports = ", ".join(view["supports"])
        table.add_row(*(Text(plain(cell)) for cell in (view["name"], view["K"], view["D"], adapter, supports)))
    lines: list[RenderableType] = [table]
    for view in fields["codebooks"]:
        lines += [_more(f"{plain(view['name'])} cannot {capability}", why) for capability, why in view["lacks"].items()]
    lines += [_more(f"not watched {plain(item['name'])}", item["reason"]) for item in fields["unrecognised"]]
    return lines


def _resumed(event: Event) -> list[RenderableType]:
    changed = "; the policy has changed since, the new one counts" if event.fields["policy_changed"] else ""
    return [_line(event, "RESUMED", "bold cyan", f"policy {event.fields['policy']}{changed}")]


def _alert(event: Event) -> list[RenderableType]:
    fields = event.fields
    style = _SEVERITY_STYLES.get(fields["severity"], "bold")
    lines: list[RenderableType] = [
        _line(event, fields["severity"].upper(), style, f"{fields['codebook']}: {fields['rule']}: {fields['reason']}")
    ]
    reading = fields.get("reading")
    if reading is not None:
        numbers = (
            f"{reading['usage']:.1%} of {reading['K']} codes used by {reading['tokens']} tokens "
            f"(uniform codes would show perplexity {reading['ceiling']:.0f})"
        )
        lines.append(_more("seen", numbers))
    if "why" in fields:
        lines.append(_more("why", fields["why"]))
    return lines


def _intervention(event: Event) -> list[RenderableType]:
    fields = event.fields
    label = "ACT" if fields["result"] == "applied" else "REFUSED"
    style = _RESULT_STYLES[fields["result"]]
    return [
        _line(
            event, label, style, f"{fields['codebook']}: {fields['action']} #{fields['attempt']}: {fields['summary']}"
        )
    ]


def _outcome(event: Event) -> list[RenderableType]:
    fields = event.fields
    undone = f"; undone: #{', #'.join(str(number) for number in fields['undone'])}" if fields["undone"] else ""
    text = f"{fields['codebook']}: {fields['action']} #{fields['attempt']}: {fields['reason']}{undone}"
    return [_line(event, fields["outcome"].upper(), _RESULT_STYLES[fields["outcome"]], text)]


def _cleared(event: Event) -> list[RenderableType]:
    text = f"{event.fields['codebook']}: {event.fields['rule']}: {event.fields['reason']}"
    return [_line(event, "CLEARED", "green", text)]


def _exhausted(event: Event) -> list[RenderableType]:
    text = f"{event.fields['codebook']}: {event.fields['rule']}: {event.fields['reason']}"
    return [_line(event, "EXHAUSTED", "bold red", text)]


def _skip(event: Event) -> list[RenderableType]:
    if "action" not in event.fields:  # a skipped candidate is for the log; an action that was not taken is for people
        return []
    text = f"{event.fields['codebook']}: {event.fields['rule']}: {event.fields['reason']}"
    return [_line(event, "SKIPPED", "cyan", text)]


def _fault(event: Event) -> list[RenderableType]:
    return [_line(event, "FAULT", "bold magenta", f"{event.fields['where']}: {event.fields['reason']}")]


def _summary(event: Event) -> list[RenderableType]:
    fields = event.fields
    table = Table(title=Text(f"collapse_guard: summary after {event.step} steps", style="bold"), title_justify="left")
    for column in ("codebook", "health", "perplexity first > last", "usage", "interventions"):
        table.add_column(column, overflow="fold")
    for book in fields["codebooks"]:
        first, last = book["first"] or book["last"], book["last"]
        done = [item for item in fields["interventions"] if item["codebook"] == book["name"]]
        told = Text("\n").join(
            Text.assemble(
                f"#{item['attempt']} step {item['step']} {plain(item['action'])} ",
                (item["result"] + (", undone" if item["undone"] else ""), _RESULT_STYLES.get(item["result"], "")),
            )
            for item in done
        )
        table.add_row(
            Text(plain(book["name"])),
            Text(book["health"], _RESULT_STYLES.get(book["health"], "")),
            f"{first['perplexity']:.2f} > {last['perplexity']:.2f} of {book['K']}",
            f"{last['usage']:.1%}",
            told if done else Text("none", "dim"),
        )
    share = (
        f"the guard took {fields['guard_seconds']:.2f} s of {fields['run_seconds']:.2f} s ({fields['guard_share']:.1%})"
    )
    return [table, Text(share, style="dim")]

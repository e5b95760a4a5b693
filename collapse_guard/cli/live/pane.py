"""One run as lines: what it is, a table of its codebooks, and everything about the selected one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from collapse_guard.history.runs import Book, Happening, Run
from collapse_guard.history.view import LogView
from collapse_guard.policies import Phase
from collapse_guard.sinks.console import plain

from .chart import chart, marks_line, sparkline
from .words import STYLES, Glyphs, ago, compact, ended, fit, folded, row

__all__ = ["Pane", "natural_height"]

_DETAIL = 9  # least lines of the part about the selected codebook
_NUMBERS = 38  # columns of the numbers at the right of the table
_RULES = 34  # columns of the rules there, where the line is long enough
_WITH_RULES = 130  # columns from which it is
_CHART = 30  # most lines of a chart
_HANGING = 21  # columns before the text of an event
_MOST_LINES = 3  # of one event
_AT_REST = "at rest"
_EVENTS = 60  # most lines of events where there is room for everything
_BUSIEST_FIRST = (Phase.VERIFYING, Phase.FIRING, Phase.EXHAUSTED, Phase.PENDING, Phase.COOLING, Phase.ARMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """What is to be drawn, and how.

    Attributes:
        view: of the log. title: of the run. chosen: index of the selected codebook.
        is_active: whether keys go to it. now: the time, with its zone. glyphs: what the terminal can show.
    """

    view: LogView
    title: str
    chosen: int
    is_active: bool
    now: datetime
    glyphs: Glyphs

    def lines(self, width: int, height: int) -> list[Text]:
        """Return exactly `height` lines of `width` columns."""
        lines = self._head(width)
        run = self.view.run
        if run is not None:
            lines += self._body(run, width, height - len(lines))
        return [fit(line, width, self.glyphs) for line in [*lines, *[Text()] * height][: max(0, height)]]

    def _head(self, width: int) -> list[Text]:
        """Say which run this is, how it stands, and what there is to know about the log."""
        run = self.view.run
        title = Text(ended(self.title, max(8, width - 34), self.glyphs), "bold reverse" if self.is_active else "bold")
        lines = [row(title, self._status(run), width, self.glyphs)]
        if run is not None:
            lines.append(Text(self._facts(run), "dim"))
        if notes := self._notes(run):
            lines.append(Text("; ".join(notes), "yellow"))
        return lines

    def _status(self, run: Run | None) -> Text:
        if run is None:
            return Text("waiting" if self.view.exists else "no event log yet", "yellow")
        if run.is_over:
            how = f"ended by {plain(run.ended_by)[:20]}" if run.ended_by else "finished"
            return Text(f"{how} at step {run.step}", "bold red" if run.ended_by else "bold green")
        when = ago(run.latest, self.now)
        is_quiet = bool(when) and not when.endswith("s ago")  # without its end told, it may have been killed
        status = Text(f"step {run.step}", "bold")
        return status.append(f" {self.glyphs.dot} {when}" if when else "", "yellow" if is_quiet else "dim")

    def _facts(self, run: Run) -> str:
        facts = [f"policy {plain(run.policy)}, mode {plain(run.mode)}"] if run.policy else ["policy unknown"]
        if self.view.is_whole:  # what came before the end of a long log is not counted yet
            facts += [_counted(run.alerts, "alert"), _counted(run.interventions, "intervention")]
        if self.view.begun > 1:
            facts.append(f"run {self.view.begun} in this log")
        if run.resumed_at is not None:
            facts.append(f"resumed at step {run.resumed_at}")
        return f" {self.glyphs.dot} ".join(facts)

    def _notes(self, run: Run | None) -> list[str]:
        """Say what keeps the picture from being whole."""
        lost, notes = self.view.lost, []
        if not self.view.is_whole:
            notes.append(f"the end of a long log; of the whole {self.view.share_read:.0%} read so far")
        if lost.newer:
            notes.append(f"{_counted(lost.newer, 'line')} of a newer version left out: upgrade collapse_guard")
        if count := lost.malformed + self.view.odd:
            notes.append(f"{_counted(count, 'line')} unreadable")
        if run is not None and run.unshown:
            notes.append(f"only the first {len(run.books)} codebooks are shown")
        return notes

    def _body(self, run: Run, width: int, room: int) -> list[Text]:
        books = list(run.books.values())
        if not books:
            return [Text("no codebook and no reading yet", "dim")]
        chosen = min(max(self.chosen, 0), len(books) - 1)
        with_detail = room >= _DETAIL + 2
        most = room - 1 if not with_detail else max(1, room - 1 - max(_DETAIL, room // 2))
        has_marks = with_detail and len(books) > 1 and any(book.marks for book in books)
        each = 2 if has_marks and len(books) * 2 <= most else 1
        shown = min(len(books), max(1, most // each))
        first = min(max(0, chosen - shown // 2), len(books) - shown)
        lines = [self._table_head(first, shown, len(books), width)]
        for index in range(first, first + shown):
            lines += self._table_row(run, books[index], index == chosen, width)[:each]
        if with_detail:
            lines += self._detail(run, books[chosen], width, room - len(lines))
        elif room - len(lines) > 1:
            lines += self._happenings(run, None, width, room - len(lines))
        return lines

    def _table_head(self, first: int, shown: int, count: int, width: int) -> Text:
        name, spark, has_rules = _columns(width)
        # The count stands for the word where there is no room for both.
        label = f"{first + 1}-{first + shown} of {count}" if shown < count else "codebook"
        line = Text("  " + label.ljust(name)[:name] + " " + "perplexity".ljust(spark)[:spark])
        line.append(f" {'now/K':>12} {'usage':>5} {'norm':>6} health".ljust(_NUMBERS))
        line.append(" rules" if has_rules else "")
        line.stylize("dim")
        return line

    def _table_row(self, run: Run, book: Book, is_chosen: bool, width: int) -> list[Text]:
        name, spark, has_rules = _columns(width)
        sign = self.glyphs.chosen if is_chosen else " "
        label = fit(Text(ended(book.name, name, self.glyphs), "bold" if is_chosen else ""), name, self.glyphs)
        line = Text.assemble((f"{sign} ", "bold"), label, " ")
        line.append_text(fit(sparkline(book, run.bounds(book), spark, self.glyphs), spark, self.glyphs))
        usage = book.latest.get("usage")
        used = f"{usage:.0%}" if isinstance(usage, float) else compact(usage)
        perplexity = f"{compact(book.latest.get('perplexity'))}/{book.K or '?'}"
        line.append(f" {perplexity:>12} {used[:5]:>5} {compact(book.latest.get('norm_ratio')):>6} ")
        line.append(f"{plain(book.health)[:11]:<11}", STYLES.get(book.health, ""))
        if has_rules:
            line.append(" ").append_text(self._busy(run, book, ", "))
        if not book.marks:
            return [line]
        return [line, Text.assemble(" " * (name + 3), marks_line(book, spark, self.glyphs))]

    def _busy(self, run: Run, book: Book, link: str) -> Text:
        """Say where the rules stand that are not at rest."""
        found = []
        for name, standing in sorted(book.rules.items(), key=lambda item: _BUSIEST_FIRST.index(item[1].phase)):
            if standing.phase is not Phase.ARMED:
                severity = run.facts.rules[name].severity if name in run.facts.rules else ""
                style = STYLES.get(severity, "") if standing.phase is not Phase.COOLING else "cyan"
                waits = f" ({plain(standing.waits)})" if standing.waits else ""
                told = standing.text(max(book.step or 0, standing.since))
                found.append(Text.assemble((f"{plain(name)[:40]}: ", ""), (told + waits, style)))
        return Text(link).join(found) if found else Text(_AT_REST, "dim")

    def _detail(self, run: Run, book: Book, width: int, room: int) -> list[Text]:
        """Draw everything about one codebook."""
        size = f"K {book.K}, D {book.D}" if book.D else f"K {book.K or '?'}"
        parts = [size, plain(book.kind)[:60], f"level of {plain(book.group)[:30]}" if book.group else ""]
        told = ", ".join(part for part in parts if part)
        name = ended(book.name, max(10, width - len(told) - 8), self.glyphs)
        heading = Text.assemble((f"{self.glyphs.line * 2} {name} ", "bold"), (f"{told} ", "dim"))
        heading.append(self.glyphs.line * max(0, width - heading.cell_len), "dim")
        lines = [heading]
        rules = folded(self._rules(run, book), width, max(1, room // 6))
        left = room - len(lines) - len(rules)
        numbers = [Text.assemble(("numbers ", "dim"), _numbers(book))] if left >= 10 else []
        events = self._happenings(run, book, width, max(2, left * 2 // 5 - len(numbers)))
        bars = max(2, min(_CHART, left - 2 - len(numbers) - len(events)))
        if len(book.series):
            lines += chart(book, run.bounds(book), width, bars, self.glyphs)
        else:
            lines.append(Text("no reading yet", "dim"))
        return [*lines, *rules, *numbers, *events]

    def _rules(self, run: Run, book: Book) -> Text:
        """Say where every rule stands, those first that are at work."""
        busy = self._busy(run, book, "; ")
        parts = [busy] if busy.plain != _AT_REST else []
        if armed := run.armed(book):
            parts.append(Text(f"armed: {', '.join(map(plain, armed))}", "dim"))
        if not run.facts.rules:
            parts.append(Text("others unknown: the log does not hold the policy", "dim"))
        return Text.assemble(("rules   ", "dim"), Text("; ").join(parts) if parts else Text(_AT_REST, "dim"))

    def _happenings(self, run: Run, book: Book | None, width: int, room: int) -> list[Text]:
        """Return the latest events, newest last: of one codebook and of the run as a whole, or all."""
        if room <= 0:
            return []
        those = [each for each in run.happenings if book is None or not each.codebooks or book.name in each.codebooks]
        most = _MOST_LINES if room > 2 * _MOST_LINES else 1
        lines: list[Text] = []
        for each in reversed(those):
            told = self._happening(each, book is None, width, most)
            if len(lines) + len(told) > room:
                break
            lines = [*told, *lines]
        return lines or [Text("no events yet", "dim")]

    def _happening(self, what: Happening, with_who: bool, width: int, most: int) -> list[Text]:
        """Say what happened at a step, in at most so many lines, indented below one another."""
        who = f"{ended(what.who, 24, self.glyphs)}: " if what.who and (with_who or not what.codebooks) else ""
        label = plain(what.label).upper()[:12]
        head = Text.assemble((f"{what.step:>7} ", "dim"), (f"{label:<12} ", STYLES.get(what.label, "")))
        lines = folded(Text(who + plain(what.text)), max(20, width - _HANGING), most)
        return [Text.assemble(head if not index else " " * _HANGING, part) for index, part in enumerate(lines)]


def natural_height(view: LogView) -> int:
    """Return how many lines a run takes when there is room for everything."""
    run = view.run
    if run is None or not run.books:
        return 4
    return 32 + len(run.books) * 3 + min(_EVENTS, len(run.happenings) * _MOST_LINES)


def _columns(width: int) -> tuple[int, int, bool]:
    """Return how wide the name and the sparkline are, and whether the rules have room."""
    has_rules = width >= _WITH_RULES
    room = width - _NUMBERS - 3 - (_RULES if has_rules else 0)
    name = max(6, min(32, room * 2 // 5))
    return name, max(4, room - name), has_rules


def _numbers(book: Book) -> str:
    told = {"tokens": "tokens", "ceiling": "ceiling", "relative_error": "error", "top_share": "top share"}
    parts = [f"{label} {compact(book.latest[key])}" for key, label in told.items() if key in book.latest]
    thinned = f"{len(book.series)} readings" + (
        ", thinned to their lowest and highest" if book.series.is_thinned else ""
    )
    if book.evaluated is not None:
        step, perplexity, share = book.evaluated
        beside = f", {share:.0%} of training" if share is not None else ""
        parts.append(f"in evaluation {compact(perplexity)} at step {step}{beside}")
    return ", ".join([*parts, thinned])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

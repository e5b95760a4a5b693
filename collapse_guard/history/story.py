"""The story of one run: an event log, folded into what a report shows. Plain data; it draws nothing.

Memory: four numbers for each reading (about 40 bytes), at most `MOST_COLUMNS` histograms of a codebook, and the first
`MOST_KEPT` interventions and faults; what is left out is counted.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collapse_guard.events import SCHEMA
from collapse_guard.policies import Lineage, counts
from collapse_guard.sinks import locate_log, older_parts

from .follow import Lost, parsed
from .rules import number as finite
from .shapes import Shapes

__all__ = ["FIELDS", "MOST_KEPT", "Series", "Story", "read_story", "thinned", "visible"]

FIELDS = ("perplexity", "usage", "norm_ratio")
"""What is kept of each reading."""

MOST_KEPT = 500
"""Interventions, outcomes and faults that are kept of a run, of each kind."""

MOST_COLUMNS = 256
"""Histograms of code usage that are kept of a codebook; of more, every second goes."""

_MOST_BINS = 64

_HIDDEN = {
    *range(0x20),
    *range(0x7F, 0xA0),
    *range(0xD800, 0xE000),
    0x200E,
    0x200F,
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
}


def visible(value: Any) -> str:
    """Return a text with its control characters written out, so that no reader's terminal or browser obeys them."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if text.isprintable():  # nearly always; a log may hold a million names
        return text
    return "".join(f"\\u{ord(each):04x}" if ord(each) in _HIDDEN else each for each in text)


@dataclass(slots=True)
class Uses:
    """Histograms of one codebook's usage over time, thinned evenly.

    Attributes:
        kept: step and tokens by neighbouring codes, in order. codes: K. seen: how many came.
    """

    kept: list[tuple[float, list[int]]] = field(default_factory=list)
    codes: int = 0
    seen: int = 0
    _every: int = 1

    def add(self, step: float, uses: Any, codes: Any) -> None:
        """Take a histogram; what is none, or does not fit those before it, is left out."""
        if not isinstance(uses, list) or not 0 < len(uses) <= _MOST_BINS or math.isnan(step):
            return
        if not all(isinstance(each, int) and 0 <= each < 1 << 53 for each in uses):
            return
        if self.kept and len(self.kept[0][1]) != len(uses):
            return
        self.seen += 1
        if (self.seen - 1) % self._every:
            return
        self.codes = codes if isinstance(codes, int) and codes > 0 else len(uses)
        self.kept.append((step, uses))
        if len(self.kept) > MOST_COLUMNS:
            self.kept, self._every = self.kept[::2], self._every * 2

    def columns(self) -> tuple[list[float], list[list[int]]]:
        """Return the steps and the histograms."""
        return [step for step, _ in self.kept], [uses for _, uses in self.kept]


@dataclass(slots=True)
class Series:
    """The readings of one codebook; a value that is missing or not finite is NaN."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in FIELDS})
    health: str = ""
    uses: Uses = field(default_factory=Uses)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one reading."""
        self.steps.append(number(record.get("step")))
        for name, kept in self.values.items():
            kept.append(number(record.get(name)))
        self.health = visible(record.get("health"))
        if "uses" in record:
            self.uses.add(self.steps[-1], record["uses"], record.get("K"))


@dataclass(slots=True)
class Story:
    """What one run's log says.

    Attributes:
        run: its name in the log. runs: how many the log holds. skipped: lines of the file that are no events.
        series: readings in training by codebook. evaluated: those in evaluation. counts: events by kind.
        dropped: interventions, outcomes and faults beyond `MOST_KEPT` of each kind.
    """

    run: str
    runs: int = 1
    skipped: int = 0
    series: dict[str, Series] = field(default_factory=dict)
    evaluated: dict[str, Series] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    dropped: int = 0
    attached: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Take one event; what this version does not know is counted only."""
        kind = visible(record.get("event")) or "(no event)"
        self.counts[kind] += 1
        if kind == "reading":
            self.series_of(record.get("codebook"), record.get("stage")).add(record)
        elif kind == "attached":
            self.attached = record
        elif kind == "summary":
            self.summary = record
        elif kind in ("alert", "intervention", "outcome", "fault", "exhausted"):
            those = self.kept.setdefault(kind, [])
            if len(those) < MOST_KEPT:
                those.append(record)
            else:
                self.dropped += 1

    def series_of(self, codebook: Any, stage: Any) -> Series:
        """Return the readings of a codebook in training or evaluation, which may just begin."""
        those = self.evaluated if stage == "eval" else self.series
        name = visible(codebook) or "(no name)"
        if name not in those:
            those[name] = Series()
        return those[name]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the kept events of a kind."""
        return self.kept.get(kind, [])


def read_story(path: Path) -> Story:
    """Read the latest run of an event log, without what it took back when it went on from a checkpoint.

    Lines that are no events are counted and skipped.

    Args:
        path: an `events.jsonl`, the folder that holds it, or the log directory of a run.

    Raises:
        FileNotFoundError: there is no event log.
        ValueError: a record has a newer schema than this version reads.
    """
    log, lost = locate_log(path), Lost()
    telling = _Telling(_lineage_of(log))
    shapes = Shapes(texts=("codebook", "stage", "health", "run"), numbers=("step", *FIELDS))
    for line in _lines(log):
        if (known := shapes.take(line)) is not None:
            telling.add_alike(known)
            continue
        for record in parsed([line], lost):
            telling.add(record)
            shapes.learn(record)
    if lost.newer:
        raise ValueError(f"expected schema {SCHEMA} or older, got {lost.newer} newer lines; upgrade collapse_guard.")
    telling.story.skipped = lost.malformed
    return telling.story


class _Telling:
    """Folds the records that count into the story of the latest run.

    Args:
        lineage: of the whole log.
    """

    def __init__(self, lineage: Lineage) -> None:
        self.story = Story(lineage.latest[0] if lineage.latest else "", max(1, lineage.runs_count))
        self._last_steps = lineage.last_steps(lineage.latest) if lineage.latest is not None else {}
        self._reading = Lineage()
        self._seen: set[str] = set()
        self._places: dict[tuple[bytes, ...], tuple[Series, str, float] | None] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Take one record."""
        name = str(record.get("run"))
        segment = self._reading.note(record)
        is_told_again = bool(record.get("repeated")) and name in self._seen
        self._seen.add(name)
        if segment in self._last_steps and not is_told_again and counts(record, self._last_steps[segment]):
            self.story.add(record)
        if record.get("event") != "reading":  # from here on, a run may have begun anew
            self._places.clear()

    def add_alike(self, known: tuple[bytes, ...]) -> None:
        """Take a reading as `Shapes` takes it apart: codebook, stage, health, run, then step and `FIELDS`."""
        texts = known[:4]
        if texts not in self._places:
            self._places[texts] = self._place(*(json.loads(each.decode("utf-8", "replace")) for each in texts))
        if (place := self._places[texts]) is None:
            return
        series, health, last = place
        try:
            step, *values = map(float, known[4:])
        except ValueError:
            step, *values = (math.nan if each == b"null" else float(each) for each in known[4:])
        if last == math.inf or step <= last:
            series.steps.append(step)
            for kept, value in zip(series.values.values(), values, strict=True):
                kept.append(value)
            series.health = health
            self.story.counts["reading"] += 1

    def _place(self, codebook: str, stage: str, health: str, run: str) -> tuple[Series, str, float] | None:
        """Return where such readings go, their health, and the last step that counts; `None` where none counts."""
        self._seen.add(run)
        segment = self._reading.note({"run": run, "event": "reading"})
        if segment not in self._last_steps:
            return None
        return self.story.series_of(codebook, stage), visible(health), self._last_steps[segment]


def _lines(log: Path) -> Iterator[bytes]:
    """Yield the lines of a log, older parts first."""
    for part in [*(part for _, part in older_parts(log)), log]:
        with part.open("rb") as lines:
            yield from lines


def _lineage_of(log: Path) -> Lineage:
    """Read through a log for which runs it holds; of most lines no more than the name of their run is looked at."""
    lineage, lost = Lineage(), Lost()
    known: set[bytes] = set()
    for line in _lines(log):
        name = line[line.rfind(b'"run"') :]
        if name not in known or b'"attached"' in line or b'"resumed"' in line:
            known.add(name)
            for record in parsed([line], lost):
                lineage.note(record)
    return lineage


def thinned(steps: array[float], values: array[float], most: int) -> tuple[list[float | None], list[float | None]]:
    """Return at most about `most` points: of each stretch of readings its lowest and highest, in their order.

    A stretch without a number leaves a gap (`None`).
    """
    size = len(steps)
    if size <= most:
        return [_or_none(each) for each in steps], [_or_none(each) for each in values]
    picked: list[int] = []
    width = -(-size // max(1, most // 2))
    for start in range(0, size, width):
        stretch = values[start : start + width]
        known = stretch if math.isfinite(sum(stretch)) else [each for each in stretch if math.isfinite(each)]
        ends = {start + stretch.index(min(known)), start + stretch.index(max(known))} if known else {start}
        picked += sorted(ends)
    return [_or_none(steps[at]) for at in picked], [_or_none(values[at]) for at in picked]


def number(value: Any) -> float:
    """Return a finite number of the log, NaN for what is none."""
    known = finite(value)
    return math.nan if known is None else known


def _or_none(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) and value % 1 else value if math.isfinite(value) else None

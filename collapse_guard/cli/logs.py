"""Logs that a policy can be replayed on: an event log of the guard, TensorBoard event files, or a CSV file.

Opens them, and asks for what they do not say. What their numbers mean as readings is decided in `policies`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collapse_guard.policies import (
    NUMERIC_FIELDS,
    Columns,
    Recording,
    columns_of,
    listed,
    recording_of_rows,
    recordings_of_events,
)
from collapse_guard.sinks import find_log

from .tensorboard_log import event_files, folders_with_event_files, scalars_in

__all__ = ["Given", "Log", "read_log"]

_STEP = "step"
_LOOKED_AT = 20  # lines of a text before it is said to be no event log
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line says of a table.

    Attributes:
        columns: field -> column or tag, `{codebook}` in it or not.
        codes: K. dim: D, or 0. tokens: of each reading.
    """

    columns: Mapping[str, str]
    codes: int | None = None
    dim: int = 0
    tokens: int | None = None

    @classmethod
    def of(cls, pairs: Iterable[str], *, codes: int | None, dim: int, tokens: int | None) -> Given:
        """Take `FIELD=COLUMN` pairs apart.

        Raises:
            ValueError: for a pair without `=`, or a field given twice.
        """
        columns: dict[str, str] = {}
        for pair in pairs:
            name, equals, column = pair.partition("=")
            if not equals or not name or not column:
                raise ValueError(f"expected FIELD=COLUMN after --column, got {pair!r}.")
            if name in columns:
                raise ValueError(f"expected each field once after --column, got {name} twice. Leave one out.")
            columns[name] = column
        return cls(columns=columns, codes=codes, dim=dim, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Log:
    """A recording, and what there is to say about how it was read, in whole sentences."""

    recording: Recording
    notes: list[str] = field(default_factory=list)


def read_log(path: Path, given: Given) -> Log:
    """Read a log of whatever kind it is.

    Args:
        path: a file, or the directory of a run. In a directory that holds both, the event log is read, since it says
            more, unless columns are given.
        given: what the log itself may not say.

    Raises:
        OSError, ValueError: it cannot be used; the message says what was expected, what is there and the next move.
    """
    if not path.exists():
        raise ValueError("there is no such file or directory.")
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return _from_csv(path, given)
        return _from_tensorboard([path], given) if "tfevents" in path.name else _from_events(path)
    event_log = find_log(path)
    files = event_files(path)
    if event_log is not None and not (given.columns and files):
        return _from_events(event_log)
    if files:
        return _from_tensorboard(files, given)
    folders = sorted({*folders_with_event_files(path), *_folders_with_event_logs(path)})
    if len(folders) == 1:
        return read_log(folders[0], given)
    if folders:
        names = listed([str(folder) for folder in folders])
        raise ValueError(
            f"expected one run, got a directory with the logs of {len(folders)}. Give one of them: {names}."
        )
    inside = sorted(each.name for each in path.iterdir())[:_MOST_NAMED]
    raise ValueError(
        f"expected a directory with an event log or TensorBoard files, got {', '.join(inside) or 'an empty one'}."
    )


def _folders_with_event_logs(path: Path) -> list[Path]:
    """Return the log directories below a directory, without those that hold TensorBoard files and no event log."""
    found = [each.parent for each in path.rglob("events.jsonl") if each.is_file()]
    return [each.parent if each.name in ("collapse_guard", "collapse_guard_log") else each for each in found]


def _from_events(path: Path) -> Log:
    """Read the latest run of an event log."""
    from collapse_guard import read_events

    _refuse_what_is_no_event_log(path)
    runs = recordings_of_events(read_events(path))
    if not runs:
        raise ValueError("expected an event log with readings, got none. A CSV file needs the ending .csv.")
    notes = [f"Read: event log {path}."]
    notes += [f"The log holds {len(runs)} runs; this is the latest."] if len(runs) > 1 else []
    return Log(runs[-1], notes)


def _refuse_what_is_no_event_log(path: Path) -> None:
    """Say so at once, rather than of every line, where a file is something else altogether."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = [line for _, line in zip(range(_LOOKED_AT), lines, strict=False) if line.strip()]
    if first and not any(map(_is_object, first)):
        kinds = "an event log (JSON lines), TensorBoard event files, or a CSV file that ends in .csv"
        raise ValueError(f"expected {kinds}, got something else.")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _from_csv(path: Path, given: Given) -> Log:
    """Read a table with a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = [name for name in reader.fieldnames or [] if name]
            if not names:
                raise ValueError("expected a header with the names of the columns, got an empty file.")
            if _STEP not in names and _STEP not in given.columns:
                hint = "Separate columns by commas." if len(names) == 1 else "Name it: `--column step=NAME`."
                raise ValueError(f"expected a column that counts the steps, got {listed(names)}. {hint}")
            recording, notes = _recording(names, reader, given, "columns")
    except UnicodeDecodeError:
        raise ValueError("expected text in UTF-8, got something else. Save it as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"expected a CSV file, got what is none: {error}.") from None
    return Log(recording, [f"Read: CSV file {path}.", *notes])


def _from_tensorboard(files: Sequence[Path], given: Given) -> Log:
    """Read the event files of one run."""
    scalars = scalars_in(list(files))
    several = f"{len(files)} TensorBoard event files, merged by step, in {files[0].parent}"
    read = [f"Read: {several if len(files) > 1 else f'TensorBoard event file {files[0]}'}.", *scalars.notes]
    if not scalars.tags:
        raise ValueError(f"expected scalars, got none. {' '.join(read)}")
    if given.columns.get(_STEP, _STEP) != _STEP:
        raise ValueError("TensorBoard files carry their steps with them. Leave `--column step=...` out.")
    recording, notes = _recording(scalars.tags, scalars.rows, given, "tags")
    return Log(recording, [*read, *notes])


def _recording(
    names: Sequence[str], rows: Iterable[Mapping[str, Any]], given: Given, noun: str
) -> tuple[Recording, list[str]]:
    """Turn rows into readings, once it is clear what they hold and what has been given beside them."""
    from collapse_guard.ceiling import perplexity_ceiling

    columns = {_STEP: _STEP, **given.columns}
    found = columns_of([*names, _STEP] if noun == "tags" else names, columns)
    if wanting := _wanting(names, found, given):
        raise ValueError(f"it lacks what a reading needs. Its {noun}: {listed(names)}. {' '.join(wanting)}")
    assert given.codes is not None, "told above"
    recording = recording_of_rows(
        rows, columns, K=given.codes, D=given.dim, tokens=given.tokens, ceiling_of=perplexity_ceiling
    )
    if not recording.readings:
        raise ValueError(f"expected a step with a value of {listed(sorted(found.used()))}, got none.")
    return recording, [_what_was_read(found), *_doubts(recording, given.codes)]


def _wanting(names: Sequence[str], found: Columns, given: Given) -> list[str]:
    """Say what neither the log nor the command line says, each with the option that says it."""
    wanting = []
    if not found.books:
        likely = next((name for name in names if re.search("perplex|ppl", name, re.IGNORECASE)), "train/perplexity")
        wanting.append(f"Say which of them holds what: `--column perplexity={likely}`.")
    if given.codes is None:
        wanting.append("The number of codes is missing: add `--codes K`.")
    if given.tokens is None and "tokens" not in found.fields():
        wanting.append("The number of tokens that a value was computed from is missing: add `--tokens N`.")
    return wanting


def _what_was_read(found: Columns) -> str:
    """Say which column was taken for what, of the first codebook where there are several."""
    books = list(found.books)
    fields = ", ".join(f"{name} from {column}" for name, column in found.books[books[0]].items() if name != _STEP)
    return f"Taken: {fields}{'; likewise for ' + listed(books[1:]) if books[1:] else ''}."


def _doubts(recording: Recording, codes: int) -> list[str]:
    """Say what looks as if a wrong column or a wrong K had been given."""
    doubts = []
    perplexities = _known(recording, "perplexity")
    if perplexities and (highest := max(perplexities)) > codes:
        more = f"Perplexity reaches {highest:.6g}, more than {codes} codes allow."
        doubts.append(f"{more} Is K another, or is this the perplexity of something else?")
    total = len(recording.readings)
    counts = {name: len(_known(recording, name)) for name in NUMERIC_FIELDS}
    doubts += [f"{name} is in {count} of {total} readings only." for name, count in counts.items() if 0 < count < total]
    return doubts


def _known(recording: Recording, name: str) -> list[float]:
    return [value for reading in recording.readings if (value := getattr(reading, name)) is not None]

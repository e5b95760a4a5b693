"""A log followed while it grows, is cut, moved away and copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from collapse_guard.history.follow import Follower, Lost
from collapse_guard.history.view import LogView
from collapse_guard.sinks import find_log
from tests.history.records import attached, lines, reading, write

ALL = 1 << 20
Closed = TypeVar("Closed", Follower, LogView)


def steps(follower: Follower) -> list[int]:
    return [record["step"] for record in follower.read(ALL)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


class Opened(Protocol):
    """Closes at the end of a test what it was given."""

    def __call__(self, it: Closed) -> Closed:
        """Return what is given."""
        ...


@pytest.fixture
def opened() -> Iterator[Opened]:
    with ExitStack() as stack:

        def enter(it: Closed) -> Closed:
            stack.callback(it.close)
            return it

        yield enter


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_only_what_is_new_is_read(path: Path, opened: Opened) -> None:
    follower = opened(Follower(path))
    assert steps(follower) == []
    append(path, lines([reading(10, 2.0)]))
    assert steps(follower) == [10]
    append(path, lines([reading(20, 2.0), reading(30, 2.0)]))
    assert steps(follower) == [20, 30]
    assert steps(follower) == []


def test_a_torn_last_line_waits_for_its_end(path: Path, opened: Opened) -> None:
    text = lines([reading(10, 2.0), reading(20, 2.0)])
    append(path, text[:-50])
    follower = opened(Follower(path))
    assert steps(follower) == [10]
    append(path, text[-50:])
    assert steps(follower) == [20]
    assert follower.lost == Lost()


def test_pieces_of_any_size_give_the_same_records(path: Path, opened: Opened) -> None:
    append(path, lines(reading(step, 2.0, codebook="kod-\N{SNOWMAN}") for step in range(50)))
    for limit in (1, 7, 100, 4096):
        follower, found = opened(Follower(path)), []
        while follower.unread:
            found += follower.read(limit)
        assert [record["step"] for record in found] == list(range(50))


def test_what_is_no_event_is_counted_and_the_rest_is_read(path: Path, opened: Opened) -> None:
    newer = json.dumps({"schema": 99, "event": "reading"})
    deep = "[" * 100_000
    append(path, f'{{"torn": \n\n[1, 2]\n"text"\n{newer}\n\x00\x01\n{deep}\n{lines([reading(10, 2.0)])}')
    with path.open("ab") as file:
        file.write(b'\xff\xfe{"step"\n')
    follower = opened(Follower(path))
    assert steps(follower) == [10]
    assert follower.lost == Lost(malformed=6, newer=1)


def test_a_log_that_is_truncated_in_place_goes_on_from_its_start(path: Path, opened: Opened) -> None:
    """What `logrotate` does with `copytruncate`."""
    append(path, lines(reading(step, 2.0) for step in (10, 20)))
    follower = opened(Follower(path))
    assert steps(follower) == [10, 20]
    path.write_text("")
    assert steps(follower) == []
    append(path, lines([reading(30, 2.0)]))
    assert steps(follower) == [30]
    assert follower.restarted == 0


def test_a_log_that_is_moved_away_is_read_to_its_end_before_its_successor(path: Path, opened: Opened) -> None:
    append(path, lines([reading(10, 2.0)]))
    follower = opened(Follower(path))
    assert steps(follower) == [10]
    moved = path.rename(path.with_suffix(".1"))
    append(moved, lines([reading(20, 2.0)]))
    assert steps(follower) == [20]
    assert steps(follower) == []
    append(path, lines([reading(30, 2.0)]))
    assert steps(follower) == [30]


def test_a_log_replaced_by_a_longer_copy_of_itself_is_read_on(path: Path, opened: Opened) -> None:
    """What `rsync` from the machine that trains does."""
    append(path, lines([attached("vq"), reading(10, 2.0)]))
    follower = opened(Follower(path))
    assert steps(follower) == [0, 10]
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    append(copy, lines([reading(20, 2.0)]))
    copy.replace(path)
    assert steps(follower) == [20]
    assert follower.restarted == 0


def test_the_same_log_written_anew_and_shorter_is_told_apart(path: Path, opened: Opened) -> None:
    append(path, lines([attached("vq"), *(reading(step, 2.0) for step in (10, 20, 30))]))
    view = opened(LogView(path))
    view.read_all()
    path.write_text(lines([attached("vq"), reading(10, 2.0)]))
    view.read_all()
    assert view.run is not None
    assert [len(book.series) for book in view.run.books.values()] == [1]


def test_the_log_of_a_run_is_found_where_a_run_keeps_it(tmp_path: Path) -> None:
    assert find_log(tmp_path) is None
    path = write(tmp_path, [attached("vq")])
    assert find_log(tmp_path) == find_log(path.parent) == find_log(path) == path


def test_a_long_log_shows_its_end_first_and_the_whole_later(tmp_path: Path, opened: Opened) -> None:
    many = 12_000
    path = write(tmp_path, [attached("vq"), *(reading(step, 2.0 + step % 7) for step in range(1, many))])
    assert path.stat().st_size > 4_000_000
    view = opened(LogView(path))
    view.advance(0.0)
    assert not view.is_whole
    assert view.run is not None
    assert view.run.step == many - 1
    assert view.run.policy == "default"
    assert 0 < len(view.run.books["vq"].series) < many - 1
    append(path, lines([reading(many, 2.0)]))
    view.read_all()
    assert view.is_whole
    assert view.run.step == many
    assert len(view.run.books["vq"].series) == many


def test_a_time_budget_is_kept_while_a_long_log_is_read(tmp_path: Path, opened: Opened) -> None:
    """Counted by a clock that moves one second at each look, so that no test depends on the machine."""
    path = write(tmp_path, [attached("vq"), *(reading(step, 2.0) for step in range(1, 12_000))])
    seconds = iter(range(1_000_000))
    view = opened(LogView(path, clock=lambda: float(next(seconds))))
    turns = 0
    while not view.is_whole:
        view.advance(2.0)
        turns += 1
    assert turns > 3

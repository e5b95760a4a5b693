"""The event log on disk: plain JSON, lines that survive a crash, and what a reader makes of foreign ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from collapse_guard import Event, JsonLinesSink, read_events


def test_what_json_cannot_hold_becomes_plain_data(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path)
    sink.write(
        Event("reading", 3, {"nan": float("nan"), "inf": [float("inf"), 1.5], "path": tmp_path, "ok": {1: True}})
    )
    sink.close()
    (line,) = sink.path.read_text().splitlines()
    record = json.loads(line)
    assert (record["nan"], record["inf"], record["ok"]) == (None, [None, 1.5], {"1": True})
    assert record["path"] == str(tmp_path)


def test_nothing_is_created_before_the_first_event(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "run")
    sink.close()
    assert not (tmp_path / "run").exists()


def test_foreign_lines_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"schema": 1, "event": "reading"}\n\n[1, 2]\nnot json\n{"schema": 1, "event": "summary"}\n')
    with caplog.at_level(logging.WARNING):
        assert [record["event"] for record in read_events(path)] == ["reading", "summary"]
    assert "events.jsonl:3 is not an event" in caplog.text
    assert "events.jsonl:4 is not a whole JSON line" in caplog.text


def test_a_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"schema": 99, "event": "reading"}\n')
    with pytest.raises(ValueError, match="expected schema 1 or older, got 99"):
        list(read_events(path))


def test_a_missing_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_events(tmp_path))

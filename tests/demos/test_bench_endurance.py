"""The endurance bench in brief: it counts what the log holds, and its page tells what it measured."""

from __future__ import annotations

import tracemalloc
from importlib import import_module
from pathlib import Path

from collapse_guard import read_events

run = import_module("collapse_guard.demos.bench_endurance").run
endurance_as_markdown = import_module("collapse_guard.demos.endurance_report").endurance_as_markdown


def test_a_run_tells_its_log_its_cost_and_what_it_leaves_behind(tmp_path: Path) -> None:
    endured = run("observe", 640, tmp_path)
    assert not tracemalloc.is_tracing()
    log = tmp_path / "collapse_guard" / "events.jsonl"
    readings = [record for record in read_events(tmp_path) if record["event"] == "reading"]
    (last,) = endured.stretches
    assert (last.steps, endured.readings) == (640, len(readings))
    assert 0 < endured.reading_bytes < last.log <= log.stat().st_size  # the summary comes at the end
    assert last.cost > 0
    assert endured.left_early > 0
    page = endurance_as_markdown([endured])
    mean = f"{endured.reading_bytes / endured.readings:.0f} bytes"
    assert "640 guarded steps" in page
    assert f"| `observe` | {len(readings)} | {mean} | {last.log / 1e3:.0f} kB |" in page

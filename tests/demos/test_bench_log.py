"""The bench of long logs, on a short one: what it writes is a log, and every command shows it."""

from __future__ import annotations

from pathlib import Path

from collapse_guard.demos import LogCost, log_costs_as_markdown, measure_log, write_long_log
from collapse_guard.history.story import read_story


def test_the_log_has_as_many_events_as_were_asked_for_and_a_collapse(tmp_path: Path) -> None:
    write_long_log(tmp_path, 1000, collapse_every=50)
    story = read_story(tmp_path)
    assert sum(story.counts.values()) == 1000
    assert [each["codebook"] for each in story.of("alert")] == ["quantizer.layers.0", "quantizer.layers.1"]
    assert [each["attempt"] for each in story.of("outcome")] == [1, 2]
    assert len(story.series) == 8
    assert min(story.series["quantizer.layers.0"].values["perplexity"]) == 1.0


def test_each_command_is_measured_and_told(tmp_path: Path) -> None:
    path = write_long_log(tmp_path, 500)
    costs = measure_log(tmp_path)
    assert [each.command for each in costs] == ["watch --once", "watch --whole", "report"]
    assert all(each.cpu > 0 and each.size > 1000 for each in costs)
    assert (tmp_path / "report.html").stat().st_size == costs[-1].size
    text = log_costs_as_markdown(500, path.stat().st_size, [LogCost("report", 1.25, 2.5, 6_300_000)])
    assert "| `report` | 1.2 s | 2.5 s | 6.3 MB |" in text

"""What a guard keeps in memory for a notebook."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import pytest

from collapse_guard import Event, Guard
from collapse_guard.history.kept import MOST_EVENTS, MOST_READINGS, Kept
from collapse_guard.report import MissingExtraError, figure_of_history
from tests.loops import digits_model, train


def reading(step: int, perplexity: float | None = 20.0, codebook: str = "vq") -> Event:
    numbers = {"perplexity": perplexity, "usage": 0.5, "norm_ratio": 1.0, "tokens": 640, "K": 256}
    return Event("reading", step, {"codebook": codebook, "health": "healthy", **numbers})


def test_the_history_of_a_run_is_flat_and_every_record_has_the_same_keys() -> None:
    guard = Guard("default", console=False)
    train(digits_model(), 90, guard)
    records = guard.history
    assert {tuple(record) for record in records} == {Kept.columns}
    assert all(isinstance(value, (str, int, float, type(None))) for record in records for value in record.values())
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    kinds = [
        (record["event"], record["action"], record["outcome"]) for record in records if record["event"] != "reading"
    ]
    assert kinds[:3] == [
        ("alert", None, None),
        ("intervention", "reset_codes", None),
        ("outcome", "reset_codes", "failed"),
    ]
    figure = guard.plot_history()
    assert list(figure.data[0].x) == [record["step"] for record in records if record["event"] == "reading"]
    assert {1.5, 5} <= {shape.y0 for shape in figure.layout.shapes}
    assert {30, 80} <= {shape.x0 for shape in figure.layout.shapes}


def test_levels_that_act_together_have_a_record_each() -> None:
    kept = Kept()
    members = [{"codebook": "q.0", "outcome": "failed"}, {"codebook": "q.1", "outcome": "recovered"}]
    kept.write(Event("outcome", 5, {"codebook": "q.0", "attempt": 1, "outcome": "failed", "members": members}))
    found = [(record["codebook"], record["outcome"], record["attempt"]) for record in kept.records()]
    assert found == [("q.0", "failed", 1), ("q.1", "recovered", 1)]


def test_memory_is_bounded_and_no_dip_is_lost() -> None:
    kept = Kept(most_readings=100, most_events=10)
    for step in range(5000):
        kept.write(reading(step, 1.0 if step == 3210 else 20.0))
        kept.write(Event("fault", step, {"where": "vq", "reason": "odd"}))
    records = kept.records()
    readings = [record for record in records if record["event"] == "reading"]
    assert len(readings) <= 100
    assert [record["step"] for record in readings if record["perplexity"] == 1.0] == [3210]
    faults = [record["step"] for record in records if record["event"] == "fault"]
    assert (len(faults), faults[0], faults[-1]) == (10, 0, 4999)


def test_the_most_that_is_kept_takes_what_is_stated() -> None:
    tracemalloc.start()
    kept = Kept()
    for step in range(MOST_READINGS):
        kept.write(reading(step, step * 0.5 + 0.25))
    for step in range(MOST_EVENTS):
        kept.write(Event("fault", step, {"where": "vq", "reason": f"odd {step}"}))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 16e6


def test_a_missing_plotly_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    guard = Guard("default", console=False)
    with pytest.raises(MissingExtraError, match=r'pip install "collapse_guard\[report\]"'):
        guard.plot_history()


def test_an_empty_history_gives_an_empty_figure() -> None:
    figure: Any = figure_of_history([], Guard("default", console=False).policy)
    assert len(figure.data) == 0

"""Lines that are taken apart by a pattern say the same as the parser says; and few of a long log are parsed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from collapse_guard.history import follow
from collapse_guard.history.shapes import Shapes
from collapse_guard.history.story import Story, read_story
from tests.history import records
from tests.history.records import act, alert, attached, lines, outcome


def reading(step: int, perplexity: float | None, codebook: str = "vq", **fields: Any) -> dict[str, Any]:
    """A reading as a guard of today writes it, with its stage."""
    return records.reading(step, perplexity, codebook, **{"stage": "train", **fields})


ODD = [
    reading(20, None),  # null where a number was
    reading(30, 2.5e-7),
    reading(40, 3.0, 'v{q}, "usage": 7'),  # braces, and a key inside a name
    reading(50, 3.0, "v\\q"),
    reading(60, 3.0, "vé\u2028q"),
    reading(70, 3.0, health="collapsed"),
    reading(80, 3.0, stage="eval"),
    reading(90, 3.0, non_finite={"usage": "nan"}),
    reading(100, 3.0, uses=[1, 2, 3]),
    reading(110, 3.0, closing=True),
    reading(120, 3.0, K=None),
    reading(130, 3.0, usage="many"),
    reading(140, 3.0, usage=True),
    reading(150, 3, norm_ratio=-1),
    {**reading(160, 3.0), "schema": 0},
    {key: value for key, value in reading(170, 3.0).items() if key != "usage"},
    {**reading(180, 3.0), "further": "field"},
    {**reading(190, 3.0), "step": None},
    {**reading(200, 3.0), "step": 2**70},
]
PLAIN = json.dumps(reading(300, 3.0))
TORN = [
    PLAIN[:200],
    PLAIN[:200] + PLAIN,
    PLAIN.replace("3.0", "1e999", 1),
    PLAIN.replace("3.0", "NaN", 1),
    PLAIN.replace("3.0", "03.0", 1),
    PLAIN.replace("640", "6.4.0", 1),
    PLAIN.replace('"vq"', '"v\x00q"', 1),
    PLAIN.replace(", ", ","),
    PLAIN + "}",
    f" {PLAIN} ",
    f"{PLAIN}\r",
    PLAIN.replace('"vq"', '"v\udcffq"', 1),  # a byte that is no UTF-8
]


def told(story: Story) -> dict[str, Any]:
    """All that a story says, with None for NaN, so that two can be compared."""
    found: dict[str, Any] = {name: getattr(story, name) for name in ("run", "runs", "skipped", "counts", "kept")}
    for kind in ("series", "evaluated"):
        for name, series in getattr(story, kind).items():
            columns = {"step": series.steps, **series.values}
            numbers = {key: [None if math.isnan(each) else each for each in column] for key, column in columns.items()}
            found[f"{kind} {name}"] = (numbers, series.health, series.uses.columns())
    return found


def assert_alike(path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    take = Shapes.take
    taken: list[bytes] = []

    def counting(self: Shapes, line: bytes) -> object:
        if (found := take(self, line)) is not None:
            taken.append(line)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "take", counting)
        by_pattern = read_story(path)
    assert len(taken) > path.read_bytes().count(b"\n") / 2
    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "take", lambda *_: None)
        assert told(by_pattern) == told(read_story(path))
    return by_pattern


def written(tmp_path: Path, *parts: str) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(parts), encoding="utf-8", errors="surrogateescape", newline="")
    return path


def test_a_pattern_says_of_every_line_what_the_parser_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between = lines([reading(15, 4.0), reading(15, 5.0, "rvq.1")])
    parts = [f"{line}\n{between}" for line in [*map(json.dumps, ODD), *TORN]]
    raw = [f"{json.dumps(each, ensure_ascii=False)}\n{between}" for each in ODD]
    story = assert_alike(written(tmp_path, lines([attached("vq")]), between, *parts, *raw), monkeypatch)
    assert len(story.series["vq"].steps) > len(parts)
    assert story.skipped == 6  # NaN and 1e999 are read as no number


def test_of_runs_and_resumes_a_pattern_keeps_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stretch(run: str, first: int, last: int) -> str:
        return lines(reading(step, float(step), run=run) for step in range(first, last, 10))

    resumed = {"schema": 1, "step": 50, "event": "resumed", "continues": "b", "run": "c"}
    parts = [
        lines([attached("vq")]) + stretch("a", 10, 90),
        lines([attached("vq", run="b")]) + stretch("b", 10, 90),
        lines([alert(90, run="b"), act(90, run="b"), outcome(95, "recovered", run="b")]),
        lines([attached("vq", run="c"), resumed]) + stretch("c", 60, 80) + stretch("a", 90, 95),
    ]
    story = assert_alike(written(tmp_path, *parts), monkeypatch)
    assert list(story.series["vq"].steps) == [10, 20, 30, 40, 50, 60, 70]
    assert (story.runs, story.counts["alert"]) == (2, 0)


def test_of_a_long_log_few_lines_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, since how long it takes depends on the machine."""
    many = lines(reading(step, float(step % 7), f"q.{step % 8}") for step in range(2000))
    path = written(tmp_path, lines([attached("q.0")]), many)
    parses: list[str] = []

    class Counting:
        @staticmethod
        def loads(text: str) -> Any:
            parses.append(text)
            return json.loads(text)

    monkeypatch.setattr(follow, "json", Counting)
    story = read_story(path)
    assert len(parses) < 10
    assert sum(len(series.steps) for series in story.series.values()) == 2000


def test_no_more_shapes_are_kept_than_a_few() -> None:
    shapes = Shapes(texts=("codebook",), numbers=("step",))
    for number in range(50):
        shapes.learn({**reading(1, 2.0), f"field {number}": 1})
    assert len(shapes._known) == 8
    assert shapes.take(lines([{**reading(7, 2.0), "field 49": 1}]).encode()) == (b'"vq"', b"7")

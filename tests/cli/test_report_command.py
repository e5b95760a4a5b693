"""`collapse-guard report`: pages from records, and the page in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from collapse_guard.cli import app
from collapse_guard.history.story import MOST_COLUMNS, read_story, thinned
from tests.history import records
from tests.programs import needs

HOSTILE = "<script>alert(1)</script><b>x</b>[red]\x1b[31m|`*" + "n" * 200


def reading(step: int, codebook: str = "quantizer", **more: Any) -> dict[str, Any]:
    base = {"schema": 1, "run": "a", "event": "reading", "health": "healthy", "perplexity": 20.5, "usage": 0.5}
    return base | {"step": step, "codebook": codebook, "norm_ratio": 1.5} | more


def act(codebook: str = "quantizer") -> list[dict[str, Any]]:
    base = {"schema": 1, "run": "a", "codebook": codebook, "rule": "collapsed", "attempt": 1, "action": "reset_codes"}
    alert = {"event": "alert", "step": 20, "reason": "perplexity 1.00 < 1.5", "why": "the norms grow"}
    done = {"event": "intervention", "step": 20, "result": "applied", "summary": "all codes placed"}
    end = {"event": "outcome", "step": 60, "outcome": "failed", "undone": [1], "reason": "perplexity 2.00"}
    numbers = {"before": {"perplexity": 1.0}, "after": {"perplexity": 2.0}}
    return [base | alert, base | done, base | end | numbers]


def attached() -> dict[str, Any]:
    return records.attached("quantizer")


def log(tmp_path: Path, *records: Any) -> Path:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def page(tmp_path: Path, *paths: Path) -> str:
    target = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", *map(str, paths or (tmp_path,)), "-o", str(target)])
    assert result.exit_code == 0, result.output
    return target.read_text(encoding="utf-8")


def without_scripts(text: str) -> str:
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def figures(text: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json" class="figure">(.*?)</script>', text, re.DOTALL)
    return [json.loads(each) for each in found]


def as_json(path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["report", str(path), "--format", "json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return next(iter(data.values()))


def test_the_story_says_what_why_what_was_done_whether_it_held_and_the_cost(tmp_path: Path) -> None:
    end = {"run": "a", "event": "summary", "step": 90, "guard_share": 0.25, "guard_seconds": 3.0}
    story = as_json(log(tmp_path, reading(10), *act(), reading(80, perplexity=2.0, health="collapsed"), end))["story"]
    assert story["what"] == "quantizer at step 20: collapsed, perplexity 1.00 < 1.5."
    assert story["why"] == "the norms grow"
    assert story["done"] == "reset_codes at step 20 (failed, undone)."
    assert story["held"] == "quantizer collapsed at step 80 (perplexity 2, usage 0.5)."
    assert story["cost"] == "25.0% of the run's time in the guard (3.0 s); 0 faults."


def test_the_story_says_what_a_healthy_codebook_stands_on(tmp_path: Path) -> None:
    standing = [{"codebook": f"q.{n}", "action": "fallback_tokenizer", "attempt": 2, "step": 80} for n in range(4)]
    standing[1]["meaning"] = "its updates are kept out"
    end = {"run": "a", "event": "summary", "step": 90, "guard_share": 0.25, "guard_seconds": 3.0, "in_force": standing}
    held = as_json(log(tmp_path, reading(10), end))["story"]["held"]
    assert held.endswith(
        " In force: q.0 stands on the codebook of fallback_tokenizer since step 80; "
        "fallback_tokenizer for q.1 since step 80: its updates are kept out; "
        "q.2 stands on the codebook of fallback_tokenizer since step 80; and 1 more."
    )


def test_of_many_codebooks_those_in_trouble_are_named_first(tmp_path: Path) -> None:
    health = {5: "collapsed", 7: "degraded"}
    where = log(tmp_path, *(reading(10, f"q.{n}", health=health.get(n, "healthy")) for n in range(9)))
    held = as_json(where)["story"]["held"]
    assert [part.partition(" at ")[0] for part in held.split("; ")] == [
        "q.5 collapsed",
        "q.7 degraded",
        "q.0 healthy",
        "7 of 9 codebooks healthy.",
    ]


def test_a_plot_holds_the_readings_the_threshold_and_the_intervention(tmp_path: Path) -> None:
    text = page(tmp_path, log(tmp_path, attached(), reading(10), *act(), reading(80, perplexity=None)))
    (figure,) = figures(text)
    assert figure["data"][0]["x"] == [10, 80]
    assert figure["data"][0]["y"] == [20.5, None]
    shapes = {(shape["x0"], shape["y0"]) for shape in figure["layout"]["shapes"]}
    assert {(0, 1.5), (0, 5)} <= shapes  # what the rules compare with, and not what clears them
    assert (0, 10) not in shapes
    assert any(x == 20 for x, _ in shapes)


def test_names_with_markup_html_and_escapes_are_shown_as_text(tmp_path: Path) -> None:
    where = log(tmp_path, reading(10, HOSTILE), *act(HOSTILE), {"event": "fault", "where": HOSTILE, "reason": HOSTILE})
    text = page(tmp_path, where)
    assert "<script>alert(1)" not in text
    assert "<b>x</b>" not in without_scripts(text)
    assert "\x1b" not in without_scripts(text)
    assert "&lt;b&gt;x&lt;/b&gt;[red]\\u001b[31m|" in text
    assert "n" * 200 in text
    md = CliRunner().invoke(app, ["report", str(where), "--format", "md"]).stdout
    assert "<b>" not in md
    assert "\x1b" not in md
    assert all(
        line.count("|") - line.count("\\|") == 6 for line in md.splitlines() if line.startswith("| ") and "200" in line
    )


@pytest.mark.parametrize("kind", ["html", "md", "json"])
def test_torn_foreign_old_and_empty_lines_and_missing_fields_are_survived(tmp_path: Path, kind: str) -> None:
    odd = [
        {"event": name, "members": 3, "before": "x", "manifest": [1]} for name in ("alert", "intervention", "outcome")
    ]
    bare = [
        {"event": "reading"},
        {"event": "attached", "codebooks": [1, {}], "environment": []},
        {"x": 1},
        {"schema": "?"},
    ]
    lines = ['{"event": "rea', "[1]", "", "nonsense", *odd, *bare, {"schema": 0, "event": "reading", "step": "x"}]
    target = tmp_path / "out"
    command = ["report", str(log(tmp_path, *lines)), "--format", kind, "-o", str(target)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    story = read_story(tmp_path)
    assert story.skipped == 3
    assert story.counts["reading"] == 2


def test_no_event_and_one_reading_each_give_a_page(tmp_path: Path) -> None:
    assert "No reading in this log." in page(tmp_path, log(tmp_path, ""))
    assert "1 reading." in page(tmp_path, log(tmp_path, reading(10)))


def test_sixty_four_codebooks_have_a_plot_each_and_the_library_is_there_once(tmp_path: Path) -> None:
    text = page(tmp_path, log(tmp_path, *(reading(step, f"q.{n}") for step in (10, 20) for n in range(64))))
    assert len(figures(text)) == 64
    assert text.count("plotly.js v") == 1
    assert len(text) < 15e6


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    text = page(tmp_path, log(tmp_path / "a", reading(10)), log(tmp_path / "b", reading(20, perplexity=3.0)))
    assert [figure["data"][0]["x"] for figure in figures(text)] == [[10], [20]]
    assert len(re.findall(r'<section class="card"><h2>(a|b)</h2>', text)) == 2


SKETCH = {"latents": [[0.1, 0.2], [-0.3, 0.1], [0.2, 0]], "before": [[90, 1]], "after": [[0.1, 0.1]], "share": 0.75}


def test_use_of_the_codes_over_time_and_their_places_are_drawn(tmp_path: Path) -> None:
    alert, done, end = act()
    uses = [reading(step, K=4, uses=[step, 0, 0, 10]) for step in (10, 30)]
    text = page(tmp_path, log(tmp_path, attached(), uses[0], alert, done | {"sketch": SKETCH}, end, uses[1]))
    _, heat, places = figures(text)
    assert heat["data"][0]["x"] == [10, 30]
    assert heat["data"][0]["z"][3] == [0.707, 0.5]  # the roots of 10 in 20 and of 10 in 40 tokens
    assert [len(trace["x"]) for trace in places["data"]] == [3, 1, 1]
    assert "The axes show 0.75 of the variance. Beyond the frame: 1 codes before, 0 after." in text


@pytest.mark.parametrize("odd", [{"latents": 3}, {"latents": [[1], "x", [None, "y"]], "after": [[1e999, 2]]}, {}])
def test_a_sketch_or_a_histogram_that_makes_no_sense_is_left_out(tmp_path: Path, odd: dict[str, Any]) -> None:
    alert, done, end = act()
    strange = [reading(step, uses=value) for step, value in enumerate(([1, -1], "x", [], [1] * 65, [0.5], None))]
    assert len(figures(page(tmp_path, log(tmp_path, alert, done | {"sketch": odd}, end, *strange)))) <= 2
    assert read_story(tmp_path).series["quantizer"].uses.seen == 0


def test_of_many_histograms_some_are_kept_evenly(tmp_path: Path) -> None:
    where = log(tmp_path, *(reading(step, uses=[step, 1]) for step in range(3000)))
    steps, _ = read_story(where).series["quantizer"].uses.columns()
    assert len(steps) <= MOST_COLUMNS
    assert {later - before for before, later in pairwise(steps)} == {16}


def test_compare_says_what_differs_between_two_runs(tmp_path: Path) -> None:
    for name, last in (("a", 20.5), ("b", 3.0)):
        (tmp_path / name).mkdir()
        log(tmp_path / name, attached(), reading(10), *(act() if name == "b" else []), reading(80, perplexity=last))
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert "| interventions | 0 | 1 | differs |" in rows
    assert "| mode | act | act |  |" in rows
    assert "| quantizer: last perplexity | 20.5 | 3 | differs |" in rows
    text = page(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "<td>quantizer: last perplexity</td><td>20.5</td><td>3</td><td>differs</td>" in text


def test_a_long_series_keeps_its_lowest_and_highest_value_and_the_page_says_that_it_is_thinned(tmp_path: Path) -> None:
    records = [reading(n, perplexity=1.0 if n == 4321 else 99.0 if n == 777 else 20.0) for n in range(9000)]
    text = page(tmp_path, log(tmp_path, *records))
    (figure,) = figures(text)
    trace = dict(zip(figure["data"][0]["x"], figure["data"][0]["y"], strict=True))
    assert len(trace) <= 2000
    assert trace[4321] == 1.0
    assert trace[777] == 99.0
    assert "Thinned to about 2000 points" in text


def test_a_stretch_without_numbers_stays_a_gap() -> None:
    nan = float("nan")
    _, y = thinned(array("d", range(100)), array("d", [1.0] * 50 + [nan] * 50), 20)
    assert y[-1] is None


def test_a_newer_schema_and_a_missing_log_are_refused_with_the_next_move(tmp_path: Path) -> None:
    newer = CliRunner().invoke(app, ["report", str(log(tmp_path, {"schema": 99}))])
    assert newer.exit_code == 2
    assert "upgrade collapse_guard" in newer.stderr
    absent = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert absent.exit_code == 2
    assert "Give the log directory of a run" in absent.stderr


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    result = CliRunner().invoke(app, ["report", str(log(tmp_path, reading(10)))])
    assert result.exit_code == 2
    assert 'pip install "collapse_guard[report]"' in result.stderr


def test_every_link_resolves_and_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text = without_scripts(page(tmp_path, log(tmp_path, attached(), reading(10), *act())))
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    ids = set(re.findall(r' id="([^"]*)"', text))
    assert {link[1:] for link in links if link.startswith("#")} <= ids


@needs("chromium")
def test_a_browser_draws_every_plot_without_a_console_error_and_the_text_reads_without_scripts(tmp_path: Path) -> None:
    uses: dict[str, Any] = {"uses": [3, 0, 1], "K": 3}
    alert, done, end = act()
    story = [attached(), reading(10, **uses), alert, done | {"sketch": SKETCH}, end, reading(80, **uses)]
    text = page(tmp_path, log(tmp_path, *story, reading(80, HOSTILE)))
    errors, dom = browsed(tmp_path / "report.html")
    assert errors == []
    assert dom.count('class="main-svg"') >= 4
    assert dom.count('data-drawn="1"') == 4
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"</?noscript>", "", without_scripts(text)), encoding="utf-8")
    errors, dom = browsed(bare)
    assert errors == []
    assert "the norms grow" in dom
    assert "<td>20.5</td>" in dom


def browsed(path: Path) -> tuple[list[str], str]:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line], result.stdout

"""What `watch` draws, at both widths, compared with screens that were looked at and with what the records say.

The screens lie in `screens/`; `python -m tests.cli.test_watch_drawing` writes them anew, to be looked at again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from collapse_guard.cli import app
from collapse_guard.cli.live.frame import Screen, draw
from collapse_guard.cli.live.words import ASCII, UNICODE, Glyphs
from collapse_guard.history.view import LogView
from tests.cli.test_cli import run
from tests.history.records import act, alert, attached, outcome, pending, reading, write

SCREENS = Path(__file__).parent / "screens"
NOW = datetime(2026, 1, 1, 0, 0, 7, tzinfo=timezone.utc)
SIZES = [(80, 24), (200, 50)]
Records = Sequence[dict[str, Any]]


def story(health: str = "collapsed") -> list[dict[str, Any]]:
    """A collapse of the second of three codebooks, a reset in vain, and a second one that is still being judged."""
    names = ("rvq.0", "rvq.1", "rvq.2")
    records = [attached(*names)]
    for step in range(50, 2000, 50):
        for index, name in enumerate(names):
            sick = name == "rvq.1" and 900 <= step < 1200
            value = 1.0 if sick else 60.0 + 10 * index + (step // 50) % 5
            records.append(reading(step, value, name, health=health if sick else "healthy"))
        records += [alert(950, "rvq.1"), act(950, "rvq.1")] if step == 950 else []
        records += [outcome(1000, "failed", "rvq.1"), act(1000, "rvq.1", attempt=2)] if step == 1000 else []
        records += [outcome(1200, "recovered", "rvq.1", attempt=2)] if step == 1200 else []
    return [*records, alert(1950, "rvq.1"), act(1950, "rvq.1", attempt=3)]


@contextmanager
def screen(*logs: Path, glyphs: Glyphs = UNICODE) -> Iterator[Screen]:
    views = [LogView(log) for log in logs]
    for view in views:
        view.read_all()
    try:
        yield Screen(views, [f"runs/{index}" for index in range(len(views))], glyphs=glyphs)
    finally:
        for view in views:
            view.close()


def plain_lines(it: Screen, size: tuple[int, int]) -> list[str]:
    """Draw, and check what holds of every screen: it fills the terminal and leaves nothing over."""
    lines = draw(it, *size, NOW)
    assert len(lines) == size[1]
    assert max(line.cell_len for line in lines) <= size[0]
    return [line.plain.rstrip() for line in lines]


def text_of(folder: Path, records: Records, size: tuple[int, int], chosen: int = 0) -> str:
    with screen(write(folder, records)) as it:
        it.chosen = [chosen]
        return "\n".join(plain_lines(it, size))


def fixtures(folder: Path) -> dict[str, str]:
    found = {}
    for width, height in SIZES:
        found[f"one-{width}x{height}"] = text_of(folder / "one", story(), (width, height), chosen=1)
        with screen(write(folder / "two", story()), write(folder / "new", [attached("vq")])) as it:
            found[f"two-{width}x{height}"] = "\n".join(plain_lines(it, (width, height)))
    return found


@pytest.mark.parametrize("name", ["one-80x24", "one-200x50", "two-80x24", "two-200x50"])
def test_the_screens_are_those_that_were_looked_at(name: str, tmp_path: Path) -> None:
    assert fixtures(tmp_path)[name] == (SCREENS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("size", SIZES)
def test_the_selected_codebook_shows_thresholds_marks_rules_numbers_and_events(
    size: tuple[int, int], tmp_path: Path
) -> None:
    text = text_of(tmp_path, story(), size, chosen=1)
    for expected in ("K 256, D 64", "   5 │", " 1.5 │", "▲", "✗", "✓", "collapsed: verifying reset_codes #3, 0 of 50"):
        assert expected in text
    held = "non_finite, astray, evaluation_only, reshaped, cut_off, unspread, collapsing, outgrown, "
    # Two lines of 80 have no room for more.
    held += (
        "fallen, misled, unused, half_repaired, restless" if size[0] > 80 else "fal…"
    )  # `unfitted` is of first levels
    assert f"armed: {held}" in " ".join(text.split())
    assert "step 1950 · 7 s ago" in text


def test_a_sparkline_shows_the_lowest_reading_of_each_column(tmp_path: Path) -> None:
    records = [attached("vq"), *(reading(step, 1.0 if step == 777 else 255.0) for step in range(2000))]
    row = next(line for line in text_of(tmp_path, records, (80, 24)).split("\n") if "▸" in line)
    assert set(re.findall("[▁▂▃▄▅▆▇█]", row)) == {"▁", "█"}
    assert row.count("▁") == 1


def test_one_frame_of_a_log_that_is_not_long_tells_its_end_however_busy_the_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["collapse_guard.cli.watch"], "_FIRST_SCREEN", -1.0)  # no time at all
    log = write(tmp_path, [attached("vq"), *(reading(step, 60.0) for step in range(2000))])
    assert log.stat().st_size > 600_000  # more than is read at once
    assert "step 1999" in CliRunner().invoke(app, ["watch", "--once", str(log)]).output


def test_what_was_read_is_bright_and_only_what_lies_between_readings_is_dim(tmp_path: Path) -> None:
    records = [attached("vq"), *(reading(step, 60.0) for step in (0, 10, 1000)), alert(1000)]
    with screen(write(tmp_path, records)) as it:
        lines = draw(it, 80, 24, NOW)
    console = Console()
    charted = [line for line in lines if line.plain.rstrip().endswith("█" * 20)]
    for line in charted:
        dims = [bool(line.get_style_at_offset(console, at).dim) for at in (8, 9, 40, 79)]
        assert dims == [False, True, True, False]
    assert len(charted) >= 3
    (rules,) = [line for line in lines if line.plain.startswith("rules")]
    assert not rules.get_style_at_offset(console, rules.plain.index("firing")).dim


def test_a_mark_stands_below_the_column_of_its_step(tmp_path: Path) -> None:
    records = [attached("vq"), *(reading(step, 50.0) for step in range(0, 720, 10)), alert(360)]
    lines = text_of(tmp_path, records, (80, 24)).split("\n")
    marks = next(line for line in lines if line.strip() == "!")
    inner = 80 - 8
    assert marks.index("!") == 8 + 360 * inner // (710 + 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1])
def test_a_run_with_hardly_a_reading_says_so(count: int, size: tuple[int, int], tmp_path: Path) -> None:
    text = text_of(tmp_path, [attached("vq"), *[reading(10, 42.0)] * count], size)
    assert ("no reading yet" in text) == (count == 0)
    assert ("42.0/256" in text) == (count == 1)
    assert "-/256" in text or count


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    with screen(tmp_path / "events.jsonl") as it:
        assert "no event log yet" in plain_lines(it, (80, 24))[0]


@pytest.mark.parametrize("size", SIZES)
def test_of_64_codebooks_the_selected_one_is_always_in_sight(size: tuple[int, int], tmp_path: Path) -> None:
    names = [f"rvq.layers.{index}" for index in range(64)]
    path = write(tmp_path, [attached(*names), *(reading(10, 9.0, name) for name in names)])
    with screen(path) as it:
        for index in range(64):
            assert any(line.startswith("▸") and names[index] in line for line in plain_lines(it, size))
            it.press("down")
        assert it.chosen == [63]
        assert "-64 of 64" in "\n".join(plain_lines(it, size))
        it.press("home")
        assert it.chosen == [0]


HOSTILE = [
    "[bold red]vq[/]",
    "\x1b[2J\x1b]0;title\x07vq",
    "vq\nnewline\r\ttab",
    "x" * 200 + "end",
    "层" * 90,
    "\u202evq",
]


@pytest.mark.parametrize("size", [*SIZES, (40, 10), (20, 5), (1, 1)])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_is_printed_as_text_whatever_it_holds(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    more = {"kind": name, "severity": name, "reason": name, "rule": name, "time": name, "health": name}
    records = [attached(name), {**reading(10, 9.0, name), "health": name}, {**alert(10, name), **more}]
    with screen(write(tmp_path, records)) as it:
        lines = draw(it, *size, NOW)
    assert [line for line in lines if line.cell_len > size[0]] == []
    shown = "\n".join(line.plain for line in lines)
    assert all(char.isprintable() or char == "\n" for char in shown)
    if name.startswith("[bold") and size[0] >= 80:
        assert name in shown
    if name.endswith("end") and size[0] >= 80:
        assert "xxend" in shown


def test_what_could_not_be_read_is_counted_on_the_screen(tmp_path: Path) -> None:
    path = write(tmp_path, [attached("vq"), reading(10, 9.0)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"torn\n{"schema": 99}\n{"event": "reading"}\n')
    with screen(path) as it:
        text = "\n".join(plain_lines(it, (80, 24)))
    assert "1 line of a newer version left out: upgrade collapse_guard; 2 lines unreadable" in text


def test_a_log_of_an_older_schema_is_drawn_with_what_it_has(tmp_path: Path) -> None:
    old = [{"event": "reading", "step": 10, "codebook": "vq", "perplexity": 3.0}]
    text = text_of(tmp_path, old, (80, 24))
    assert "3.00/?" in text
    assert "policy unknown" in text
    assert "others unknown: the log does not hold the policy" in text


def ansi(lines: Sequence[Text], **console: Any) -> str:
    out = StringIO()
    to = Console(file=out, force_terminal=True, width=80, color_system="truecolor", **console)
    for line in lines:
        to.print(line)
    return out.getvalue()


def test_colours_are_legible_on_light_and_dark_and_none_where_none_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No white, black, bright or background colour, and no colour that says what no word or sign says."""
    with screen(write(tmp_path, story())) as it:
        lines = draw(it, 80, 24, NOW)
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", ansi(lines)) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2", "7", "31", "32", "33", "34", "35", "36"}
    assert codes & {"31", "32"}
    monkeypatch.setenv("NO_COLOR", "1")
    without = {code for found in re.findall(r"\x1b\[([\d;]*)m", ansi(lines)) for code in found.split(";")}
    assert without <= {"", "0", "1", "2", "7"}


def test_a_terminal_without_unicode_gets_signs_that_it_has(tmp_path: Path) -> None:
    with screen(write(tmp_path, story()), glyphs=ASCII) as it:
        for chosen in range(3):
            it.chosen = [chosen]
            assert "\n".join(plain_lines(it, (80, 24))).replace("·", "").isascii()


def test_keys_move_between_codebooks_and_runs_and_stop_at_the_ends(tmp_path: Path) -> None:
    with screen(write(tmp_path / "a", story()), write(tmp_path / "b", story())) as it:
        for key in ("up", "down", "down", "down", "down", "tab", "j"):
            assert it.press(key)
        assert (it.active, it.chosen) == (1, [2, 1])
        assert it.press(" ")
        assert it.is_paused
        assert "PAUSED" in plain_lines(it, (80, 24))[-1]
        assert not it.press("q")


@pytest.mark.parametrize("count", [3, 7, 30])
def test_many_runs_share_a_small_terminal(count: int, tmp_path: Path) -> None:
    with screen(*(write(tmp_path / str(index), story()) for index in range(count))) as it:
        for _ in range(count):
            plain_lines(it, (80, 24))
            it.press("tab")


def test_without_a_terminal_one_frame_of_everything_is_printed(tmp_path: Path) -> None:
    write(tmp_path / "mine", story())
    for arguments in (("watch", "mine"), ("watch", "--once", "mine/collapse_guard/events.jsonl")):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert done.stderr == ""
        for expected in ("rvq.0", "rvq.2", "3 interventions", "step 50", "CRITICAL"):
            assert expected in done.stdout or expected == "CRITICAL"


def test_what_cannot_be_watched_is_said_with_the_next_move_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "many" / "a", story())
    write(tmp_path / "many" / "b", story())
    expected = {"gone": "no such file or directory", "empty": "got an empty one", "many": "Name those to watch: many"}
    for name, words in expected.items():
        done = run("watch", "--once", name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name}: expected")
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_pending_rule_shows_how_far_it_is(tmp_path: Path) -> None:
    low: dict[str, Any] = {"perplexity_ratio": 0.01, "health": "degraded"}
    records = [attached("vq"), reading(10, 3.0, **low), pending(10), reading(20, 3.0, **low)]
    assert "collapsing: pending 2/3" in text_of(tmp_path, records, (80, 24))


if __name__ == "__main__":
    import tempfile

    SCREENS.mkdir(exist_ok=True)
    for name, text in fixtures(Path(tempfile.mkdtemp())).items():
        (SCREENS / f"{name}.txt").write_text(text + "\n", encoding="utf-8")

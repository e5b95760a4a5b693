"""`watch` in a real terminal: tmux runs it, keys are sent, and what stands on the screen is read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.test_watch_drawing import story
from tests.history.records import attached, lines, reading, write
from tests.terminal import Terminal, needs_tmux

pytestmark = needs_tmux


def assert_restored(terminal: Terminal) -> None:
    """The shell has its screen again, the cursor, and shows what is typed."""
    assert not terminal.is_taken()
    terminal.type("C-l")
    terminal.type("stty -a | grep -oE '(^| )-?(icanon|echo) '", "Enter")
    text = terminal.until(lambda text: text.startswith("ready$ stty") and text.count("ready$") == 2)  # typed, and seen
    assert text.partition("\n")[2].split()[:2] == ["icanon", "echo"]
    assert terminal.tmux("display", "-p", "#{cursor_flag}").strip() == "1"


def test_a_codebook_is_selected_with_the_arrows_and_q_gives_the_terminal_back(
    terminal: Terminal, tmp_path: Path
) -> None:
    write(tmp_path / "mine", story())
    terminal.watch("mine")
    text = terminal.until(lambda text: "q quit" in text)
    assert "── rvq.0" in text
    terminal.type("Down")
    terminal.until(lambda text: "── rvq.1" in text and "verifying reset_codes #3" in text)
    terminal.type("Up", "End")
    terminal.until(lambda text: "── rvq.2" in text)
    terminal.type("q")
    terminal.until(lambda text: "left with 0" in text)
    assert_restored(terminal)


def test_a_run_is_followed_from_before_its_log_is_there(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    terminal.watch("mine")
    terminal.until(lambda text: "no event log yet" in text)
    path = write(tmp_path / "mine", [attached("vq")])
    terminal.until(lambda text: "-/256" in text)
    with path.open("a") as log:
        torn = lines([reading(50, 42.0)])
        log.write(torn[:40])
        log.flush()
        log.write(torn[40:])
    terminal.until(lambda text: "42.0/256" in text and "step 50" in text)
    path.rename(path.with_suffix(".1"))
    write(tmp_path / "mine", [attached("vq", run="b"), reading(10, 7.0, run="b")])
    terminal.until(lambda text: "7.00/256" in text and "run 2 in this log" in text)


def test_a_paused_view_stands_still_and_then_catches_up(terminal: Terminal, tmp_path: Path) -> None:
    path = write(tmp_path / "mine", [attached("vq"), reading(10, 42.0)])
    terminal.watch("mine")
    terminal.until(lambda text: "42.0/256" in text)
    terminal.type("Space")
    terminal.until(lambda text: "PAUSED" in text)
    with path.open("a") as log:
        log.write(lines([reading(20, 77.0)]))
    text = terminal.until(lambda text: "kB unread" in text)
    assert "42.0/256" in text
    terminal.type("Space")
    terminal.until(lambda text: "77.0/256" in text and "PAUSED" not in text)


def test_the_view_follows_the_size_of_the_terminal(terminal: Terminal, tmp_path: Path) -> None:
    write(tmp_path / "a", story())
    write(tmp_path / "b", story())
    terminal.watch("a", "b")
    text = terminal.until(lambda text: "q quit" in text)
    assert [line.split()[0] for line in text.splitlines() if "step 1950" in line] == ["a", "b"]
    terminal.resize(200, 50)
    text = terminal.until(lambda text: text.splitlines()[0].count("step 1950") == 2)
    assert len(text.splitlines()) == 50
    terminal.type("Tab", "Down")
    terminal.until(lambda text: "── rvq.0" in text and "── rvq.1" in text)


@pytest.mark.parametrize(("send", "code"), [("C-c", 0), ("-TERM", 143)])
def test_an_interrupt_and_a_signal_give_the_terminal_back(
    send: str, code: int, terminal: Terminal, tmp_path: Path
) -> None:
    write(tmp_path / "mine", story())
    terminal.watch("mine")
    terminal.until(lambda text: "q quit" in text)
    if send == "C-c":
        terminal.type(send)
    else:
        shell = terminal.tmux("display", "-p", "#{pane_pid}").strip()
        subprocess.run(["pkill", send, "-P", shell], check=True)
    text = terminal.until(lambda text: "\nleft with" in text)
    assert f"left with {code}" in text
    assert "Traceback" not in text
    assert_restored(terminal)


def test_a_suspended_view_leaves_the_terminal_and_comes_back(terminal: Terminal, tmp_path: Path) -> None:
    write(tmp_path / "mine", story())
    terminal.watch("mine")
    terminal.until(lambda text: "q quit" in text)
    terminal.type("C-z")
    terminal.until(lambda text: "Stopped" in text)
    assert_restored(terminal)
    terminal.type("fg", "Enter")
    terminal.until(lambda text: "q quit" in text)
    terminal.type("q")
    terminal.until(lambda text: "q quit" not in text and "ready$" in text.rstrip().splitlines()[-1])
    assert_restored(terminal)


def test_an_error_inside_gives_the_terminal_back_too(terminal: Terminal, tmp_path: Path) -> None:
    write(tmp_path / "mine", story())
    terminal.watch("mine")
    terminal.until(lambda text: "q quit" in text)
    terminal.type("q")
    terminal.until(lambda text: "left with 0" in text)
    code = (tmp_path / "watch.py").read_text()
    broken = "def broken(*_): raise RuntimeError('on purpose')\n"
    broken += "import collapse_guard.cli.live.terminal as t\nt.draw = broken\n"
    (tmp_path / "watch.py").write_text(code.replace("c.main()", f"{broken}c.main()"))
    terminal.type("C-l", "Up", "Enter")
    terminal.until(lambda text: "on purpose" in text and "left with 1" in text)
    assert_restored(terminal)

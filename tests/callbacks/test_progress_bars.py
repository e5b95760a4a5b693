"""The console's entries beside the live bars of a real Trainer: in a terminal (tmux), under nohup, and in a pipe.

What the entries should look like is computed from the event log that the same run wrote.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from collapse_guard import ConsoleSink, Event, read_events
from tests.checkout import prelude
from tests.terminal import Terminal, needs_tmux

PROGRAM = """
import time
from pathlib import Path
import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders

class Digits(DigitsClassifier):
    def validation_step(self, batch, index):
        return self.training_step(batch, index)

def wait(name, meanwhile=lambda: None):  # until the test has looked
    while not Path(name).exists():
        meanwhile()
        time.sleep(0.02)

class Gate(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step in GATES:  # Lightning's Rich bar forgets a step told while it draws, until the next one
            refresh = getattr(trainer.progress_bar_callback, "refresh", lambda: None)
            wait(f"{trainer.log_dir}-{trainer.global_step}", meanwhile=refresh)

def fit(bar, folder):
    pl.seed_everything(0, verbose=False)
    options = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, limit_val_batches=2)
    callbacks = [bar(), Gate(), CollapseGuard("default")]
    trainer = pl.Trainer(accelerator="cpu", max_steps=100, callbacks=callbacks, default_root_dir=folder, **options)
    trainer.fit(Digits(ReferenceQuantizer()), *digits_loaders(0))
"""


def entries(log_dir: Path, width: int, *, is_terminal: bool = True) -> list[str]:
    """What the console should have shown of a run, line by line."""
    text = io.StringIO()
    sink = ConsoleSink(Console(file=text, width=width, force_terminal=is_terminal, legacy_windows=False))
    for record in map(dict, read_events(log_dir)):
        sink.write(Event(record.pop("event"), record.pop("step"), record, record.pop("time")))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).splitlines()]


def assert_within(lines: list[str], expected: list[str]) -> None:
    """Each line of each entry stands there whole, and in order; between entries there may be something else."""
    rest = (line.rstrip() for line in lines)
    for line in expected:
        assert line in rest, f"not there, or not in its place: {line!r} among\n" + "\n".join(lines)


def bars(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if re.match(r"(Epoch|Validation|Sanity)", line)]


BARS = ("RichProgressBar", "TQDMProgressBar")


@needs_tmux
def test_entries_stand_whole_above_a_live_bar_that_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    """Both bars in one process, as it takes seconds to start."""
    terminal.resize(100, 60)
    runs = "".join(f"fit({bar}, {bar!r})\nwait('{bar}-end')\n" for bar in BARS)
    terminal.python("fit.py", f"{PROGRAM}\nGATES = (32, 85)\n{runs}", then=" 2> errors.txt")
    for bar in BARS:
        for step, at, fired in ((32, "32/45", "CRITICAL"), (85, "40/45", "FAILED")):
            text = until(terminal, at, fired)
            (shown,) = bars(text)  # no remains of an earlier drawing
            assert at in shown
            assert text.rstrip().splitlines()[-1].rstrip() == shown  # below all entries
            assert_within(text.splitlines(), entries(tmp_path / bar, 100)[2:])
            (tmp_path / f"{bar}-{step}").touch()
        until(terminal, "for a paper", "10/10")
        text = terminal.screen(whole=True)
        assert_within(text.splitlines(), told := entries(tmp_path / bar, 100))
        for mark in ("CRITICAL", "ACT  ", "FAILED", "summary after"):  # and none twice
            assert text.count(mark) == "\n".join(told).count(mark)
        terminal.tmux("send-keys", "-R")
        terminal.tmux("clear-history")
        (tmp_path / f"{bar}-end").touch()
    until(terminal, "left with 0")


def until(terminal: Terminal, *marks: str) -> str:
    return terminal.until(lambda text: all(mark in text for mark in marks), patience=120)


def test_in_a_file_each_entry_is_one_line_without_escapes(tmp_path: Path) -> None:
    """Under nohup, and errors go into the same file; what tqdm itself writes there is not ours."""
    runs = "".join(f"fit({bar}, {bar!r})\n" for bar in BARS)
    (tmp_path / "fit.py").write_text(f"{prelude()}{PROGRAM}\nGATES = ()\n{runs}")
    with (tmp_path / "nohup.out").open("wb") as out:
        command = ["nohup", sys.executable, "-W", "ignore", "fit.py"]
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
        subprocess.run(command, stdout=out, stderr=out, cwd=tmp_path, env=environment, check=True, timeout=300)
    text = (tmp_path / "nohup.out").read_text(encoding="utf-8").replace("\x1b[A", "")  # tqdm, of its second bar
    assert "\x1b" not in text
    for bar in BARS:
        told = entries(tmp_path / bar, 80, is_terminal=False)
        assert_within(re.split(r"[\r\n]", text), told)
        (fired,) = [line for line in told if "  CRITICAL  " in line]
        assert re.match(r"20\d\d-\d\d-\d\d ", fired)

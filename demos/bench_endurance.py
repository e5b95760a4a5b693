"""A long run: what 20,000 guarded steps do to memory, to the cost of a step, and to the event log.

The model of the rehearsals, whose codebook update breaks at step 300 and stays broken. In `act` mode a fallback
holds it from then on; in `observe` mode the collapse lasts, so that the guard stays at its dense cadence to the end.
`make bench-endurance` writes `docs/benchmarks/endurance.md`.

To trace every allocation would slow the run down several times. It is done in two short stretches, one after the
warm-up and one at the end, in which no time is taken: what a stretch leaves behind is what a step leaves behind.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from collapse_guard import Guard, read_events
from collapse_guard.testing import Injection, inject
from collapse_guard.testing.rehearsal import RehearsalModel

from .endurance_report import endurance_as_markdown

__all__ = ["Endured", "Stretch", "main", "run"]

_PAGE = Path("docs/benchmarks/endurance.md")
_STRETCH = 1000
_TRACED = 300
_WARM = 4000


@dataclass(frozen=True, slots=True)
class Stretch:
    """A thousand steps.

    Attributes:
        steps: done at its end. resident: bytes of the process. blocks: live blocks of Python's allocator.
        cost: processor seconds of the guard's `step`, in microseconds a step, of the steps that were not traced.
        log: bytes of the event log.
    """

    steps: int
    resident: int
    blocks: int
    cost: float
    log: int


@dataclass(frozen=True, slots=True)
class Endured:
    """One run.

    Attributes:
        mode: `act` or `observe`. stretches: in order.
        readings: lines of the log that are readings. reading_bytes: what these lines take.
        left_early: bytes a step that the traced steps after the warm-up left behind. left_late: those at the end.
    """

    mode: str
    stretches: Sequence[Stretch]
    readings: int
    reading_bytes: int
    left_early: float
    left_late: float


def run(mode: str, steps: int, log_dir: Path) -> Endured:
    """Train for so many steps under the default policy and measure every thousand of them."""
    log, found, left = log_dir / "collapse_guard" / "events.jsonl", list[Stretch](), dict[int, float]()
    traced_from = (max(min(_WARM, steps - 2 * _TRACED), 1), steps - _TRACED)
    cost, timed, begun = 0.0, 0, -1
    for step, seconds in _guarded_steps("default" if mode == "act" else "observe", steps, log_dir):
        if not tracemalloc.is_tracing():
            cost, timed = cost + seconds, timed + 1
        if step == begun + _TRACED:
            gc.collect()
            left[begun] = tracemalloc.get_traced_memory()[0] / _TRACED
            tracemalloc.stop()
        if step % _STRETCH == 0 or step == steps:
            gc.collect()
            size = log.stat().st_size
            found.append(Stretch(step, _resident(), sys.getallocatedblocks(), cost / max(timed, 1) * 1e6, size))
            cost, timed = 0.0, 0
        if step in traced_from:
            begun = step
            tracemalloc.start()
    lines = [line for line in log.read_bytes().splitlines(keepends=True) if b'"event": "reading"' in line]
    readings = sum(record["event"] == "reading" for record in read_events(log_dir))
    assert len(lines) == readings
    early, late = (left[step] for step in traced_from)
    return Endured(mode, tuple(found), readings, sum(map(len, lines)), early, late)


def _guarded_steps(policy: str, steps: int, log_dir: Path) -> Iterator[tuple[int, float]]:
    """Train; yield each step's number, from 1, and the processor seconds that the guard took."""
    torch.manual_seed(0)
    model = RehearsalModel().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    centres = 3 * torch.randn(48, 16)
    broken = Injection("scale", at=300, until=1 << 40)
    with Guard(policy, console=False, log_dir=log_dir) as guard, inject(model, broken) as injector:
        guard.attach(model, optimizer)
        for step in range(1, steps + 1):
            loss, _ = model(centres[torch.randint(48, (256,))] + 0.1 * torch.randn(256, 16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            began = time.process_time()
            guard.step()
            yield step, time.process_time() - began
            injector.fired.clear()  # its list of all that it did is not the guard's memory


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run both modes, and write the page."""
    parser = argparse.ArgumentParser(prog="make bench-endurance", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--file", type=Path, default=_PAGE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for mode in ("act", "observe"):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(mode, asked.steps, Path(folder)))
        last = runs[-1].stretches[-1]
        print(f"{mode}: {last.resident / 1e6:.1f} MB, {last.cost:.0f} us a step, {last.log} bytes of log", flush=True)
    asked.file.write_text(endurance_as_markdown(runs), encoding="utf-8")
    print(f"written to {asked.file}")

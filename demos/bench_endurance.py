"""A long run: what 20,000 guarded steps do to memory, to the cost of a step, and to the event log.

The model of the rehearsals, whose codebook update breaks at step 300 and stays broken. In `act` mode a fallback holds
it from then on; in `observe` mode the collapse lasts, so that the guard stays at its dense cadence to the end. Memory
is traced, so the times are those of a traced run: only how they change is told.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import torch

from collapse_guard import Guard, read_events
from collapse_guard.testing import Injection, inject
from collapse_guard.testing.rehearsal import RehearsalModel

__all__ = ["Stretch", "main", "run"]

_STRETCH = 1000


@dataclass(frozen=True, slots=True)
class Stretch:
    """A thousand steps.

    Attributes:
        steps: done at its end. traced: bytes that Python objects take. resident: bytes of the process.
        cost: processor seconds of the guard's `step`, in microseconds a step. log: bytes of the event log.
    """

    steps: int
    traced: int
    resident: int
    cost: float
    log: int


def run(mode: str, steps: int, log_dir: Path) -> list[Stretch]:
    """Train for so many steps under the default policy and measure every thousand of them."""
    torch.manual_seed(0)
    model = RehearsalModel().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    centres = 3 * torch.randn(48, 16)
    log, found, cost = log_dir / "collapse_guard" / "events.jsonl", list[Stretch](), 0.0
    policy = "default" if mode == "act" else "observe"
    tracemalloc.start()
    broken = Injection("scale", at=300, until=1 << 40)
    with Guard(policy, console=False, log_dir=log_dir) as guard, inject(model, broken):
        guard.attach(model, optimizer)
        for step in range(1, steps + 1):
            loss, _ = model(centres[torch.randint(48, (256,))] + 0.1 * torch.randn(256, 16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            began = time.process_time()
            guard.step()
            cost += time.process_time() - began
            if step % _STRETCH == 0:
                traced = tracemalloc.get_traced_memory()[0]
                found.append(Stretch(step, traced, _resident(), cost / _STRETCH * 1e6, log.stat().st_size))
                cost = 0.0
    tracemalloc.stop()
    return found


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run both modes and print a table each."""
    parser = argparse.ArgumentParser(prog="make bench-endurance", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for mode in ("act", "observe"):
        with tempfile.TemporaryDirectory() as folder:
            found = run(mode, steps, Path(folder))
            readings = [record for record in read_events(folder) if record["event"] == "reading"]
        print(f"\n{mode}: {len(readings)} readings, {found[-1].log / len(readings):.0f} bytes of log for each\n")
        print("| steps | traced MB | resident MB | guard us a step | log kB |\n|---|---|---|---|---|")
        for each in found:
            if each.steps % (2 * _STRETCH) == 0 or each.steps == _STRETCH:
                memory = f"{each.traced / 1e6:.3f} | {each.resident / 1e6:.1f}"
                print(f"| {each.steps} | {memory} | {each.cost:.0f} | {each.log / 1e3:.0f} |", flush=True)

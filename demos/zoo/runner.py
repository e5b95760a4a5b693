"""Runs what is asked of the zoo: cell by cell, over processes, a line of JSON for each; what is there is not run again.

A worker is a process that trains one cell after another. One that takes too long is ended, and the cell is written down
as failed, as is one that raises; both are tried anew by the next study. A cell counts for the policy that it ran under:
after a policy changed, its cells are run again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .arms import Arm
from .cell import CellResult, run_cell
from .entries import SCENARIOS
from .recipe import recipe_of
from .scenario import Scenario

__all__ = ["Cell", "Study", "read_cells", "run_study"]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is to be run once.

    Attributes:
        scenario, arm: what. seed: with which seed. steps: how long. policy: fingerprint of the arm's policy.
    """

    scenario: Scenario
    arm: Arm
    seed: int
    steps: int
    policy: str

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """Return what tells this cell from any other, a changed policy included."""
        return (self.scenario.name, self.arm.name, self.seed, self.steps, self.policy)

    @property
    def recipe(self) -> Hashable | None:
        """Return what decides its run; `None` where a guard decides, too."""
        return recipe_of(self.scenario, self.arm, self.seed, self.steps)

    def holds(self, result: CellResult) -> CellResult:
        """Return as its own the result of a cell of the same recipe, for which nothing was trained again."""
        origin = result.same_as or f"{result.scenario}, {result.arm}"
        return replace(result, scenario=self.scenario.name, arm=self.arm.name, same_as=origin, cpu_seconds=0.0)

    def __str__(self) -> str:
        """Return it as one would call it."""
        return f"{self.scenario.name}, {self.arm.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Study:
    """What a study asks for.

    Attributes:
        scenarios, arms: which; an arm is left out where it makes no sense.
        seeds: how many, from 0; all of a seed is run before the next, so that a study that is cut off has whole pairs.
        share_of_steps: of each scenario's steps, above 0.
    """

    scenarios: Sequence[Scenario]
    arms: Sequence[Arm]
    seeds: int = 5
    share_of_steps: float = 1.0

    def cells(self) -> Iterator[Cell]:
        """Yield what is to be run, in order."""
        policies = {arm.name: arm.fingerprint for arm in self.arms}  # once: a policy is read from its file for it
        for seed in range(self.seeds):
            for scenario in self.scenarios:
                steps = max(int(scenario.steps * self.share_of_steps), 1)
                for arm in self.arms:
                    if arm.applies_to(scenario, seed):
                        yield Cell(scenario, arm, seed, steps, policies[arm.name])


def read_cells(path: Path) -> list[CellResult]:
    """Return the cells that a file holds, a later one of the same kind in place of an earlier.

    Torn lines and failures are left out. No file, no cells.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {each.name for each in fields(CellResult)}
    found: dict[tuple[object, ...], CellResult] = {}
    for record in filter(None, map(_parse, lines)):
        if "failure" not in record:
            result = CellResult(**{name: value for name, value in record.items() if name in known})
            found[(result.scenario, result.arm, result.seed, result.steps, result.policy)] = result
    return list(found.values())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:  # the end of a study that was killed
        return None
    return record if isinstance(record, dict) else None


def run_study(
    study: Study,
    path: Path,
    *,
    processes: int = 1,
    seconds_per_cell: float = 300.0,
    until: float | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> list[str]:
    """Run what the file does not hold yet, and append it.

    Args:
        study: what is asked for.
        path: of the file; JSON lines.
        processes: that train at the same time, 1 or more.
        seconds_per_cell: wall time after which a cell is given up.
        until: `time.monotonic()` after which no cell is begun.
        tell: told of each cell that is done, and why it failed where it did.

    Returns:
        What failed, a line each.

    Raises:
        ValueError: a scenario that is not the zoo's own of its name; workers would train that one instead.
    """
    from collapse_guard.demos import append_line

    if strangers := [each.name for each in study.scenarios if SCENARIOS.get(each.name) != each]:
        raise ValueError(f"expected scenarios of `SCENARIOS`, got others: {', '.join(strangers)}; use `run_cell`")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(each.scenario, each.arm, each.seed, each.steps, each.policy): each for each in read_cells(path)}
    trained = {cell.recipe: done[cell.key] for cell in study.cells() if cell.key in done and cell.recipe is not None}
    todo = [cell for cell in study.cells() if cell.key not in done]
    failures: list[str] = []
    crew = _Crew(processes, seconds_per_cell)

    def keep(cell: Cell, result: CellResult) -> None:
        append_line(path, result.as_record())
        tell(f"{cell}: {_told(result)}")

    try:
        while todo or crew.is_busy:
            is_open = until is None or time.monotonic() < until
            while is_open and crew.has_room and todo:
                cell = todo.pop(0)
                if cell.recipe in trained:
                    keep(cell, cell.holds(trained[cell.recipe]))
                else:
                    crew.begin(cell)
            if not crew.is_busy:
                break
            for cell, result in crew.finished():
                if isinstance(result, str):
                    failures.append(f"{cell}: {result}")
                    append_line(path, _failure(cell, result))
                    tell(failures[-1])
                    continue
                if cell.recipe is not None:
                    trained[cell.recipe] = result
                keep(cell, result)
    finally:
        crew.dismiss()
    return failures


def _told(result: CellResult) -> str:
    error = "no number" if result.error is None else f"{result.error:.4f}"
    levels = ", ".join(f"{value:.1f}" for value in result.perplexity)
    origin = f" (the run of {result.same_as})" if result.same_as else ""
    return f"error {error}, perplexity {levels}, {result.cpu_seconds:.1f} s{origin}"


def _failure(cell: Cell, why: str) -> dict[str, object]:
    return {"scenario": cell.scenario.name, "arm": cell.arm.name, "seed": cell.seed, "failure": why}


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    began: float = 0.0


_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""What glibc's allocator is told: freed memory is kept, since each step asks for the same again.

To give it back, and have it zeroed anew, took half of a step with 8192 codes."""


@contextmanager
def _keeping_freed_memory() -> Iterator[None]:
    """Begin processes whose allocator has the settings above, but for those that the user has set."""
    added = {name: value for name, value in _KEPT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class _Crew:
    """Processes that train cells."""

    def __init__(self, most: int, seconds_per_cell: float) -> None:
        self._most = most
        self._patience = seconds_per_cell
        self._workers: list[_Worker] = []

    @property
    def at_work(self) -> list[Cell]:
        return [worker.cell for worker in self._workers if worker.cell is not None]

    @property
    def is_busy(self) -> bool:
        return bool(self.at_work)

    @property
    def has_room(self) -> bool:
        return len(self.at_work) < self._most

    def begin(self, cell: Cell) -> None:
        """Give a cell to an idle worker, or to a new one."""
        worker = next((each for each in self._workers if each.cell is None), None) or self._hire()
        worker.cell, worker.began = cell, time.monotonic()
        worker.pipe.send((cell.scenario.name, cell.arm, cell.seed, cell.steps))

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a forked process would share torch's threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _keeping_freed_memory():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def finished(self) -> Iterator[tuple[Cell, CellResult | str]]:
        """Wait for a cell, a second at most; yield those that ended, with their result or why there is none."""
        wait([worker.pipe for worker in self._workers if worker.cell is not None], timeout=1.0)
        for worker in list(self._workers):
            cell = worker.cell
            if cell is None:
                continue
            if worker.pipe.poll():
                try:
                    result = worker.pipe.recv()
                except EOFError:
                    result = "its process died"
                    self._let_go(worker)
                worker.cell = None
                yield cell, result
            elif time.monotonic() - worker.began > self._patience:
                self._let_go(worker)
                yield cell, f"took longer than {self._patience:.0f} s"

    def _let_go(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def dismiss(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self._let_go(worker)


def _work(pipe: Connection) -> None:
    """Train what comes through the pipe, and send back how it ended, until it is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's, which ends its workers
    torch.set_num_threads(1)
    while True:
        try:
            name, arm, seed, steps = pipe.recv()
        except EOFError:
            return
        try:
            result: CellResult | str = run_cell(SCENARIOS[name], arm, seed, steps=steps)
        except Exception as error:  # whatever a foreign package raises is this cell's failure alone
            result = f"{type(error).__name__}: {error}"
        try:
            pipe.send(result)
        except BrokenPipeError:  # the study was killed meanwhile
            return

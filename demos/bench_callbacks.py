"""The guard as a Lightning callback beside two of Lightning's own monitors: CPU seconds of a step with each.

Each Trainer fits in a thread of its own, and all of them take turns step by step: a thread runs while it holds the
baton, and only then. What else the machine does then comes to all alike, which whole runs one after another cannot
have. Torch runs on one thread here, and the backward of a model on the CPU runs in the thread that calls it, so that
a thread's CPU seconds are its Trainer's.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from collapse_guard.callbacks import CollapseGuard

from .training import quiet

__all__ = ["Turns", "mean_of_cycle", "time_callbacks"]

_CYCLE = 50  # steps after which every monitor does the same again


class _Model(pl.LightningModule):
    """A multilayer perceptron around a codebook of 512 codes that starts healthy; 1024 tokens a step."""

    def __init__(self) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 32))
        self.quantizer = VectorQuantize(dim=32, codebook_size=512, kmeans_init=True)
        self.decoder = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 64))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (rows,) = batch
        quantised, _, loss = self.quantizer(self.encoder(rows)[None])
        error: Tensor = functional.mse_loss(self.decoder(quantised[0]), rows) + loss.sum()
        return error

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Turns:
    """A baton among threads: one holds it at a time, each once in a round, in another order each round.

    Args:
        names: of the threads, all of which have to ask for their turns.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Draw the order of the first round; the first of it holds the baton."""
        self._names = list(names)
        self._draws = random.Random(0)
        self._queue: list[str] = []
        self._changed = threading.Condition()
        self._draw()

    def _draw(self) -> None:
        if not self._queue:
            self._queue = self._draws.sample(self._names, len(self._names))

    def await_turn(self, name: str) -> None:
        """Return once the baton is here."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue[0] == name)

    def pass_on(self, name: str, *, leaves: bool = False) -> None:
        """Give the baton to the next, if it is here; whoever leaves is in no further round."""
        with self._changed:
            if leaves:
                self._names.remove(name)
            if self._queue[0] == name:
                del self._queue[0]
                self._draw()
            self._changed.notify_all()


class _Clock(pl.Callback):
    """Passes the baton on at each step's start, and keeps the CPU seconds from there to the next one's."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.seconds: list[float] = []
        self._name, self._turns = name, turns
        self._began: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._began is not None:
            self.seconds.append(time.thread_time() - self._began)
        self._turns.pass_on(self._name)
        self._turns.await_turn(self._name)
        self._began = time.thread_time()


_MONITORS: dict[str, Callable[[], list[pl.Callback]]] = {
    "nothing": list,
    "nothing, again": list,
    "CollapseGuard (observe)": lambda: [CollapseGuard(policy="observe", console=False)],
    "DeviceStatsMonitor": lambda: [DeviceStatsMonitor(cpu_stats=True)],
    "SpikeDetection": lambda: [SpikeDetection(warmup=10**6)],
}


def time_callbacks(*, steps: int = 600, warm: int = 60) -> dict[str, float]:
    """Return CPU seconds of a training step by monitor: those of `nothing`, and what each step beside it took more.

    What `nothing, again` takes more or less is noise; see `mean_of_cycle`. Every monitor logs as often as it does
    unless told otherwise; `DeviceStatsMonitor` needs psutil and is left out without it.

    Args:
        steps: of each Trainer that are counted, best whole cycles of 50.
        warm: steps before them; 60 hold the guard's first reading, which is early, and one at its usual cadence.
    """
    has_psutil = importlib.util.find_spec("psutil") is not None
    names = [name for name in _MONITORS if has_psutil or name != "DeviceStatsMonitor"]
    turns = Turns(names)
    with quiet(), warnings.catch_warnings(), ThreadPoolExecutor(len(names)) as threads:
        warnings.simplefilter("ignore")
        running = {name: threads.submit(_seconds, name, turns, warm + steps) for name in names}
        found = {name: each.result()[warm:] for name, each in running.items()}
    plain = found["nothing"]
    return {
        name: mean_of_cycle(plain) + mean_of_cycle([mine - beside for mine, beside in zip(spent, plain, strict=True)])
        for name, spent in found.items()
    }


def mean_of_cycle(values: Sequence[float]) -> float:
    """Return the mean over the 50 steps of a cycle of what each of them showed, the median over all cycles.

    A median over all steps would hide what a monitor does in one step of 50; a mean over all is at the mercy of the few
    steps in which the machine had something else to do.

    >>> mean_of_cycle(([0.0] * 49 + [5.0]) * 3)
    0.1
    >>> mean_of_cycle([0.0] * 99 + [5.0] + [0.0] * 50)
    0.0
    """
    return statistics.mean(statistics.median(values[at::_CYCLE]) for at in range(min(_CYCLE, len(values))))


def _seconds(name: str, turns: Turns, steps: int) -> list[float]:
    """Train with one monitor whenever it is its turn; return the CPU seconds of each step."""
    turns.await_turn(name)
    try:
        torch.manual_seed(0)
        clock = _Clock(name, turns)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=steps + 1,  # a step ends where the next one starts
                callbacks=[clock, *_MONITORS[name]()],
                accelerator="cpu",
                logger=CSVLogger(folder),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            rows = TensorDataset(torch.randn(1024 * 10, 64))
            trainer.fit(_Model(), DataLoader(rows, batch_size=1024))
        return clock.seconds
    finally:
        turns.pass_on(name, leaves=True)

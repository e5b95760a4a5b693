"""The guard as a Lightning callback beside two of Lightning's own monitors: CPU seconds of a step with each."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
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

__all__ = ["time_callbacks"]

_STEPS = 150
_WARM = 20


class _Model(pl.LightningModule):
    """A multilayer perceptron around a codebook of 512 codes; 1024 tokens a step."""

    def __init__(self) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 32))
        self.quantizer = VectorQuantize(dim=32, codebook_size=512)
        self.decoder = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 64))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (rows,) = batch
        quantised, _, loss = self.quantizer(self.encoder(rows)[None])
        error: Tensor = functional.mse_loss(self.decoder(quantised[0]), rows) + loss.sum()
        return error

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class _Clock(pl.Callback):
    """Keeps the CPU seconds from one step's start to the next one's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if self._began is not None:
            self.seconds.append(now - self._began)
        self._began = now


_MONITORS: dict[str, Callable[[], list[pl.Callback]]] = {
    "nothing": list,
    "CollapseGuard (observe)": lambda: [CollapseGuard(policy="observe", console=False)],
    "DeviceStatsMonitor": lambda: [DeviceStatsMonitor(cpu_stats=True)],
    "SpikeDetection": lambda: [SpikeDetection(warmup=10**6)],
}


def time_callbacks(*, rounds: int = 3) -> dict[str, float]:
    """Return CPU seconds of a training step by monitor, means over a run, medians over rounds in which they take turns.

    Every monitor logs as often as it does unless told otherwise; `DeviceStatsMonitor` needs psutil and is left out
    without it.
    """
    found: dict[str, list[float]] = {name: [] for name in _MONITORS}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for name, make in _MONITORS.items():
                try:
                    found[name].append(_seconds_per_step(make()))
                except ModuleNotFoundError:
                    found[name] = []
    return {name: statistics.median(values) for name, values in found.items() if values}


def _seconds_per_step(monitors: list[pl.Callback]) -> float:
    torch.manual_seed(0)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=_STEPS,
            callbacks=[clock, *monitors],
            accelerator="cpu",
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(_Model(), DataLoader(TensorDataset(torch.randn(1024 * 10, 64)), batch_size=1024))
    return statistics.mean(clock.seconds[_WARM:])

"""Training runs that a test kills: each goes on from its last checkpoint, if it has one, and ends by saving all it has.

A collapse, a reset that fails and is undone, a fallback that recovers and is refitted, in 170 steps. Functions of a
module, so that a fork server that has imported it can begin one in a few milliseconds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from collapse_guard import Guard
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer
from collapse_guard.kmeans import backends  # noqa: F401  # what an intervention would import while it is timed
from tests.callbacks.models import QUIET_TRAINER

__all__ = ["RUNS", "STEPS", "checkpoints"]

STEPS = 170
EVERY = 9
"""Steps between checkpoints: no divisor of the cadence of readings, so that every phase is saved."""


def _data() -> tuple[Tensor, Tensor]:
    """Return 64 batches of 32 inputs from forty clusters, of which four share a label."""
    generator = torch.Generator().manual_seed(7)
    kinds = torch.randint(40, (64, 32), generator=generator)
    noise = 0.05 * torch.randn(64, 32, 64, generator=generator)
    return torch.rand(40, 64, generator=generator)[kinds] + noise, kinds // 4


def _model() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return DigitsClassifier(ReferenceQuantizer(64, 64))


def checkpoints(home: Path) -> list[Path]:
    """Return the checkpoints of a run that can be loaded, oldest first: a kill may have torn the last."""
    found = []
    for path in sorted((home / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2])):
        try:
            torch.load(path, weights_only=True)
        except Exception:
            continue
        found.append(path)
    return found


def plain(home: Path) -> None:
    """Train in a loop of one's own."""
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    inputs, labels = _data()
    saved: dict[str, Any] = {}
    if known := checkpoints(home):
        saved = torch.load(known[-1], weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    with Guard("default", log_dir=home, console=False) as guard:
        guard.attach(model, optimizer)
        if saved:
            guard.load_state_dict(saved["guard"])
            torch.random.set_rng_state(saved["stream"])
        model.train()
        for step in range(guard.steps, STEPS):
            loss = model.training_step((inputs[step % 64], labels[step % 64]), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step(loss=float(loss.detach()))
            if guard.steps % EVERY == 0:
                _save(home / "checkpoints" / f"step={guard.steps}.ckpt", model, optimizer, guard)
        _save(home / "final.pt", model, optimizer, guard)


def _save(path: Path, model: Any, optimizer: torch.optim.Optimizer, guard: Guard) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "guard": guard.state_dict(),
        "stream": torch.random.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


class _ByStep(DigitsClassifier):
    """Takes the batch of its step, whatever the loader says, and keeps its random stream in the checkpoint."""

    def __init__(self) -> None:
        super().__init__(ReferenceQuantizer(64, 64))
        self.inputs, self.labels = _data()
        self.stream: Tensor | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        at = self.global_step % 64
        return super().training_step((self.inputs[at], self.labels[at]), batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stream"] = torch.random.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stream = checkpoint["stream"]

    def on_train_start(self) -> None:
        if self.stream is not None:
            torch.random.set_rng_state(self.stream)


def trainer(home: Path) -> None:
    """Train under Lightning."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, guard = _ByStep(), CollapseGuard("default", log_dir=home, console=False)
    saving = ModelCheckpoint(home / "checkpoints", filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)
    known = checkpoints(home)
    options = {**QUIET_TRAINER, "enable_checkpointing": True, "default_root_dir": home, "max_steps": STEPS}
    run = pl.Trainer(callbacks=[saving, guard], **options)
    loader = DataLoader(cast(Dataset[Any], torch.zeros(40, 1)), batch_size=1)
    run.fit(model, loader, ckpt_path=known[-1] if known else None, weights_only=True)
    assert guard.guard is not None
    _save(home / "final.pt", model, run.optimizers[0], guard.guard)


RUNS = {"plain": plain, "trainer": trainer}

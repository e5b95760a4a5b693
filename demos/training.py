"""One run of the reference demo: which quantizer, how it is trained, and what is left of it to be measured."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from collapse_guard import Event
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.testing import Recorder

from .digits import DigitsClassifier, digits_loaders

__all__ = ["Arm", "Trained", "quiet", "train_arm"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        name: of it. meaning: in a line.
        quantizer: makes what the model is given, on tokens of 128 / `tokens` dimensions; `None`: no quantizer.
        guarded: whether a guard watches. policy: of it.
        tokens: per image. gradient_clip: norm at which the Trainer clips gradients; `None`: not at all.
    """

    name: str
    meaning: str
    quantizer: Callable[[], nn.Module] | None
    guarded: bool = False
    policy: str | Mapping[str, Any] = "default"
    tokens: int = 2
    gradient_clip: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves.

    Attributes:
        model: as it ended.
        codes: of each training batch of the last epoch.
        events: what the guard told, in order.
        test: images and labels of the test set.
        seconds: of the whole run.
    """

    model: DigitsClassifier
    codes: list[Tensor]
    events: list[Event]
    test: tuple[Tensor, Tensor]
    seconds: float


class _Codes(pl.Callback):
    """Keeps the codes of the newest epoch."""

    def __init__(self) -> None:
        self.codes: list[Tensor] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.codes.clear()

    def hook(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor | None, Tensor]) -> None:
        if output[1] is not None:
            self.codes.append(output[1].detach())


def train_arm(arm: Arm, seed: int, *, epochs: int = 30, log_dir: Path | None = None, console: bool = False) -> Trained:
    """Train one arm.

    Args:
        arm: which.
        seed: of data, weights and order.
        epochs: training epochs.
        log_dir: where a guarded run writes its event log.
        console: whether the guard prints.
    """
    start = time.perf_counter()
    pl.seed_everything(seed, verbose=False)
    quantizer = arm.quantizer() if arm.quantizer is not None else None
    model = DigitsClassifier(quantizer, tokens=arm.tokens)
    kept, told = _Codes(), Recorder()
    callbacks: list[pl.Callback] = [kept]
    if arm.guarded:
        callbacks.append(CollapseGuard(policy=arm.policy, log_dir=log_dir, console=console, sinks=[told], seed=seed))
    if quantizer is not None:
        quantizer.register_forward_hook(kept.hook)
    train, test = digits_loaders(seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        gradient_clip_val=arm.gradient_clip,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=log_dir or Path("runs"),
    )
    trainer.fit(model, train)
    images, labels = next(iter(test))
    return Trained(model, kept.codes, told.events, (images, labels), time.perf_counter() - start)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's hints about hardware, loggers and workers; they are not what a demo is about."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

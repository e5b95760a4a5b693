"""What the k-means bench fits: three kinds of latents, each (N, D) float32 and the same on every run for a seed.

Nothing is downloaded: the photos ship with scikit-learn, and the latents are recorded from a run of the digits demo.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from .quantizer import ReferenceQuantizer

__all__ = ["BENCH_DATA", "Points", "blobs", "latents", "patches", "photo_windows"]

Points: TypeAlias = npt.NDArray[np.float32]

_SIDE = 5  # pixels
_BLOB_SCALE = 2.0  # standard deviation of the centres; that of a blob is 1


def blobs(N: int, seed: int, *, D: int = 64, centres: int = 1024) -> Points:
    """Return points around normal centres, so that a fit with as many codes has one best answer."""
    draw = np.random.default_rng(seed)
    places = _BLOB_SCALE * draw.standard_normal((centres, D), dtype=np.float32)
    return places[draw.integers(centres, size=N)] + draw.standard_normal((N, D), dtype=np.float32)


def photo_windows(side: int, *, step: int = 1) -> Points:
    """Return (n, 3 side^2) windows of the two photos that scikit-learn ships, from 0 to 1, every `step` pixels."""
    images = [image.astype(np.float32) / 255 for image in load_sample_images().images]
    windows = [np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1)) for image in images]
    return np.concatenate([window[::step, ::step].reshape(-1, 3 * side * side) for window in windows])


def patches(N: int, seed: int) -> Points:
    """Return patches of 5 x 5 pixels in three colours, from 0 to 1, of the two photos that scikit-learn ships."""
    draw = np.random.default_rng(seed)
    every = photo_windows(_SIDE)
    return np.ascontiguousarray(every[draw.choice(len(every), N, replace=len(every) < N)])


class _Recording(nn.Module):
    """The repaired reference quantizer, which keeps the latents that it was given last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.quantizer = ReferenceQuantizer(repaired=True)
        self.most = most
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Any:
        rows = functional.normalize(inputs.detach(), dim=-1).reshape(-1, inputs.shape[-1])
        self.seen = [*self.seen, rows][-self.most :]
        return self.quantizer(inputs)


def latents(N: int, seed: int) -> Points:
    """Return the last N latents, of length 1, that the quantizer of the digits demo was given in training."""
    import lightning.pytorch as pl  # this data set alone needs it, and it is slow to load

    from .digits import DigitsClassifier, digits_loaders

    per_epoch = 2 * 1437
    epochs = 8 + -(-N // per_epoch)  # the first epochs are not recorded
    pl.seed_everything(seed, verbose=False)
    recording = _Recording(most=N // 8 + 1)  # batches; the shortest of an epoch has more than 8 latents
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path("runs"),
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(DigitsClassifier(recording), digits_loaders(seed)[0])
    return np.concatenate([rows.numpy() for rows in recording.seen])[-N:]


BENCH_DATA: dict[str, Callable[[int, int], Points]] = {"blobs": blobs, "patches": patches, "latents": latents}

"""Handwritten digits through a discrete bottleneck: data and model of the reference demo.

The data are the 1797 images of 8 x 8 pixels that scikit-learn ships (the test set of the UCI Optical Recognition of
Handwritten Digits data, Alpaydin and Kaynak 1998); nothing is downloaded.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

__all__ = ["DigitsClassifier", "digits_loaders"]

_WIDTH = 128


def digits_loaders(seed: int, *, batch_size: int = 32) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of 1437 training and 360 test images, split by class; batches are (images (B, 64), labels (B,)).

    Args:
        seed: of the split and of the order of the training batches.
        batch_size: training images per batch.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_images, test_images = (torch.as_tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.as_tensor(part, dtype=torch.long) for part in parts[2:])
    train, test = TensorDataset(train_images, train_labels), TensorDataset(test_images, test_labels)
    order = RandomSampler(train, generator=torch.Generator().manual_seed(seed))
    # Whole batches are indexed at once: collating single images would cost more than training on them.
    batches = BatchSampler(order, batch_size=batch_size, drop_last=False)
    return DataLoader(train, sampler=batches, batch_size=None), DataLoader(test, batch_size=len(test))


class DigitsClassifier(pl.LightningModule):
    """Encoder to 128 dimensions, two 64-dimensional tokens per image, quantizer, classifier.

    Args:
        quantizer: (B, 2, 64) -> (output of the same shape, codes (B, 2), loss); `None` leaves out the codebook alone
            and passes the L2-normalised tokens on.
        tokens: per image, of 128 / tokens dimensions; 2 unless given.
    """

    def __init__(self, quantizer: nn.Module | None, *, tokens: int = 2) -> None:
        """Build encoder and classifier around the quantizer."""
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, _WIDTH))
        self.quantizer = quantizer
        self.classifier = nn.Sequential(nn.Linear(_WIDTH, 256), nn.ReLU(), nn.Linear(256, 10))
        self.tokens = tokens

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return logits (B, 10), codes (B, 2) or `None`, and the quantizer's loss."""
        tokens = self.encoder(images).reshape(-1, self.tokens, _WIDTH // self.tokens)
        if self.quantizer is not None:
            tokens, codes, loss = self.quantizer(tokens)
        else:
            tokens, codes, loss = functional.normalize(tokens, dim=-1), None, images.new_zeros(())
        return self.classifier(tokens.reshape(len(images), -1)), codes, loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return cross entropy plus the quantizer's loss."""
        images, labels = batch
        logits, _, loss = self(images)
        return cast(Tensor, functional.cross_entropy(logits, labels) + loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam at 5e-4."""
        return torch.optim.Adam(self.parameters(), lr=5e-4)

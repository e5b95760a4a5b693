"""The digits' model as a LightningModule of either distribution of Lightning."""

from __future__ import annotations

from typing import Any

import torch

from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders

QUIET_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""A Trainer that writes and prints nothing of its own."""


def digits_module(lightning: Any) -> type[Any]:
    """Return the class of the reference model, derived from `lightning.LightningModule`, with its own data."""

    class Digits(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            plain = DigitsClassifier(ReferenceQuantizer())
            self.tokens = plain.tokens
            self.encoder, self.quantizer, self.classifier = plain.encoder, plain.quantizer, plain.classifier

        forward = DigitsClassifier.forward
        training_step = DigitsClassifier.training_step
        configure_optimizers = DigitsClassifier.configure_optimizers

        def train_dataloader(self) -> Any:
            return digits_loaders(0)[0]

    return Digits

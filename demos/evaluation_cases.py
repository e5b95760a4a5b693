"""Models whose training is healthy and whose evaluation is not, each for one known reason, and healthy ones.

All of them code handwritten digits: an encoder gives two tokens of 16 features per image, a codebook of 64 codes
quantises them, and a decoder draws the image again. What is wrong is one line of the model, the Trainer or the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from collapse_guard import GenericVQ

from .digits import digits_loaders

__all__ = ["CASES", "HEALTHY", "Case", "CaseQuantizer", "DigitsAutoencoder"]

K, D, TOKENS = 64, 16, 2


class CaseQuantizer(nn.Module):
    """A codebook moved by averages, started from the first training batch; each option is one mistake.

    Args:
        updates_always: the averages move in evaluation, too, there without the factor n.
        starts_always: every batch in evaluation starts the codebook anew, from its first latent with a little noise.
        sorts: every fifth batch in training sorts the codes by their use.
        temperature: codes are drawn in training by distance at this temperature, relative to the mean distance.
    """

    codebook: Tensor
    total: Tensor
    count: Tensor
    batches: Tensor
    started: Tensor

    def __init__(
        self,
        *,
        updates_always: bool = False,
        starts_always: bool = False,
        sorts: bool = False,
        temperature: float = 0.0,
    ) -> None:
        """Begin with random codes."""
        super().__init__()
        self.decay, self.commitment = 0.95, 0.25
        self.updates_always, self.starts_always = updates_always, starts_always
        self.sorts, self.temperature = sorts, temperature
        self.register_buffer("codebook", torch.randn(K, D))
        self.register_buffer("total", torch.randn(K, D))
        self.register_buffer("count", torch.ones(K))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("started", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (quantised (..., D), codes (...), loss)."""
        flat = inputs.reshape(-1, D)
        if self.training and not self.started:
            self._start(flat.detach()[torch.randperm(len(flat))[:K]], noise=0.01)
        if self.starts_always and not self.training:
            self._start(flat.detach()[:1].expand(K, D), noise=10.0)
        codes = self._assign(flat.detach())
        quantized = self.codebook[codes].reshape(inputs.shape)
        if self.training or self.updates_always:
            self._update(flat.detach(), codes)
        loss = self.commitment * functional.mse_loss(inputs, quantized)
        return inputs + (quantized - inputs).detach(), codes.reshape(inputs.shape[:-1]), loss

    def _assign(self, flat: Tensor) -> Tensor:
        distances = torch.cdist(flat, self.codebook)
        if self.training and self.temperature:
            noise = -torch.empty_like(distances).exponential_().log()
            return (noise - distances / (self.temperature * distances.mean())).argmax(dim=-1)
        return distances.argmin(dim=-1)

    @torch.no_grad()
    def _start(self, latents: Tensor, noise: float) -> None:
        places = torch.arange(K) % len(latents)
        self.codebook.copy_(latents[places] + noise * torch.randn(K, D))
        self.total.copy_(self.codebook)
        self.count.fill_(1.0)
        self.started.fill_(1)

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        hits = functional.one_hot(codes, K).to(flat.dtype)
        self.count.mul_(self.decay).add_(hits.sum(dim=0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hits.t() @ flat, alpha=1 - self.decay)
        n = self.count.sum()
        smoothed = (self.count + 1e-5) / (n + K * 1e-5)
        if self.training:
            smoothed = smoothed * n  # what the path that evaluation takes forgets
        self.codebook.copy_(self.total / smoothed.unsqueeze(-1))
        self.batches += 1
        if self.sorts and self.batches % 5 == 0:
            order = self.count.argsort(descending=True)
            for tensor in (self.codebook, self.total, self.count):
                tensor.copy_(tensor[order])


class DigitsAutoencoder(pl.LightningModule):
    """Encoder, quantizer, decoder.

    Args:
        quantizer: (B, 2, 16) -> (the same shape, codes (B, 2), loss).
        before: what the encoder ends with, on (B, 32); batch normalisation where not given.
    """

    def __init__(self, quantizer: nn.Module, before: nn.Module | None = None) -> None:
        """Build the parts."""
        super().__init__()
        width = TOKENS * D
        layers: list[nn.Module] = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width)]
        self.encoder = nn.Sequential(*layers, before if before is not None else nn.BatchNorm1d(width))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss_of(self, images: Tensor) -> Tensor:
        """Return the loss of a batch (B, 64)."""
        latents = self.encoder(images).reshape(-1, TOKENS, D)
        quantized, _, loss = self.quantizer(latents)
        drawn = self.decoder(quantized.reshape(len(images), -1))
        return cast(Tensor, functional.mse_loss(drawn, images) + loss.sum())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.loss_of(batch[0])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss_of(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam at 1e-3."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _lucidrains(**options: Any) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    return cast(nn.Module, VectorQuantize(dim=D, codebook_size=K, decay=0.95, kmeans_init=True, **options))


def _same(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way in which evaluation alone goes wrong, or a healthy model.

    Attributes:
        name: of it. cause: what a diagnosis should say; empty for a healthy model.
        model: makes it.
        callbacks: of the Trainer, beside the guard. shown: what validation does to its images.
        adapters: descriptions, for a quantizer that is not recognised by itself.
        repaired: the case after its owner followed the advice, where no remedy of the guard is the right one.
    """

    name: str
    cause: str
    model: Callable[[], DigitsAutoencoder]
    callbacks: Callable[[], list[pl.Callback]] = list
    adapters: Mapping[str, GenericVQ] = field(default_factory=dict)
    shown: Callable[[Tensor], Tensor] = _same
    repaired: Case | None = None

    def loaders(self, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Return loaders of training and validation images, the latter as this case shows them."""
        train, test = digits_loaders(seed)
        images, labels = next(iter(test))
        return train, DataLoader(TensorDataset(self.shown(images), labels), batch_size=30)


def _batch_norm(momentum: float) -> nn.Module:
    return nn.BatchNorm1d(TOKENS * D, momentum=momentum)


def _with(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(TOKENS * D), layer)


class _WrongMoments(nn.BatchNorm1d):
    """Batch normalisation that keeps the statistics of a checkpoint from elsewhere."""

    def __init__(self) -> None:
        super().__init__(TOKENS * D, momentum=0.0)
        assert self.running_mean is not None
        self.running_mean.fill_(6.0)


def _averaging(decay: float | None = None, begin: int = 0) -> pl.Callback:
    """Return Lightning's averaging of weights: equal weights, or a moving average, from a step on.

    Raises:
        ImportError: Lightning is older than 2.6.
    """
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

    if decay is not None:
        return EMAWeightAveraging(decay=decay)

    class Late(WeightAveraging):
        @override
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None and step_idx >= begin

    return Late()


def _averaged_late() -> Case:
    return Case(
        name="average begun late, codes not sorted",
        cause="",
        model=lambda: DigitsAutoencoder(CaseQuantizer()),
        callbacks=lambda: [_averaging(begin=120)],
    )


CASES: tuple[Case, ...] = (
    Case(
        name="batch norm, momentum 0.0005",
        cause="eval_batch_norm",
        model=lambda: DigitsAutoencoder(CaseQuantizer(), _batch_norm(0.0005)),
    ),
    Case(
        name="batch norm, statistics of another model",
        cause="eval_batch_norm",
        model=lambda: DigitsAutoencoder(_lucidrains(), _WrongMoments()),
    ),
    Case(
        name="dropout 0.9",
        cause="eval_dropout",
        model=lambda: DigitsAutoencoder(CaseQuantizer(), _with(nn.Dropout(0.9))),
    ),
    Case(
        name="dropout 0.8 before vector-quantize-pytorch",
        cause="eval_dropout",
        model=lambda: DigitsAutoencoder(_lucidrains(), _with(nn.Dropout(0.8))),
    ),
    Case(
        name="codes drawn at random",
        cause="eval_sampling",
        model=lambda: DigitsAutoencoder(CaseQuantizer(temperature=4.0), nn.Identity()),
    ),
    Case(
        name="stochastic codes of vector-quantize-pytorch",
        cause="eval_sampling",
        model=lambda: DigitsAutoencoder(
            _lucidrains(stochastic_sample_codes=True, sample_codebook_temp=100.0), nn.Identity()
        ),
        repaired=Case(  # the guard cools the drawing in training meanwhile, by rule `overheated`
            name="codes drawn at a temperature of 0.1",
            cause="",
            model=lambda: DigitsAutoencoder(_lucidrains(stochastic_sample_codes=True, sample_codebook_temp=0.1)),
        ),
    ),
    Case(
        name="averages move in evaluation",
        cause="eval_update",
        model=lambda: DigitsAutoencoder(CaseQuantizer(updates_always=True)),
    ),
    Case(
        name="every batch of evaluation starts anew",
        cause="eval_start",
        model=lambda: DigitsAutoencoder(CaseQuantizer(starts_always=True)),
        adapters={"quantizer": GenericVQ(table="codebook", codes=lambda output: output[1])},
    ),
    Case(
        name="equally weighted average of all weights, codes sorted by use",
        cause="eval_averaged_weights",
        model=lambda: DigitsAutoencoder(CaseQuantizer(sorts=True)),
        callbacks=lambda: [_averaging()],
        repaired=_averaged_late(),
    ),
    Case(
        name="moving average of weights, codes sorted by use",
        cause="eval_averaged_weights",
        model=lambda: DigitsAutoencoder(CaseQuantizer(sorts=True)),
        callbacks=lambda: [_averaging(decay=0.95)],
    ),
    Case(
        name="validation images not scaled",
        cause="eval_shift",
        model=lambda: DigitsAutoencoder(CaseQuantizer()),
        shown=lambda images: images * 16.0,
        repaired=Case(name="validation images scaled", cause="", model=lambda: DigitsAutoencoder(CaseQuantizer())),
    ),
    Case(
        name="validation images nearly blank",
        cause="eval_shift",
        model=lambda: DigitsAutoencoder(_lucidrains()),
        shown=lambda images: images * 0.05,
        repaired=Case(name="validation images as they are", cause="", model=lambda: DigitsAutoencoder(_lucidrains())),
    ),
)

HEALTHY: tuple[Case, ...] = (
    Case(name="averages", cause="", model=lambda: DigitsAutoencoder(CaseQuantizer())),
    Case(name="vector-quantize-pytorch", cause="", model=lambda: DigitsAutoencoder(_lucidrains())),
    Case(
        name="batch norm, momentum 0.1",
        cause="",
        model=lambda: DigitsAutoencoder(CaseQuantizer(), _batch_norm(0.1)),
    ),
    Case(name="dropout 0.1", cause="", model=lambda: DigitsAutoencoder(CaseQuantizer(), _with(nn.Dropout(0.1)))),
    Case(name="a little noise", cause="", model=lambda: DigitsAutoencoder(CaseQuantizer(temperature=0.02))),
)

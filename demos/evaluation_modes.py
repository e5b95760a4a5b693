"""Train, eval, and eval with the quantizer in training mode: a table that tells two problems apart.

One model collapses in training: all three looks agree. Others are healthy there and collapse in evaluation alone. Where
the quantizer itself is to blame, the third look brings its perplexity back; where a layer before it is, it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .digits import DigitsClassifier, digits_loaders
from .evaluation_cases import CaseQuantizer, DigitsAutoencoder
from .quantizer import ReferenceQuantizer

__all__ = ["LOOKS", "Looks", "look_at", "modes_table", "verdict_on"]

_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Looks:
    """Perplexities of one model.

    Attributes:
        training: median of the training batches of the last epoch, as they came. evaluation: of the test set.
        quantizer_training: of the test set, with the quantizer alone in training mode.
    """

    training: float
    evaluation: float
    quantizer_training: float


def _classifier(repaired: bool) -> Callable[[], nn.Module]:
    return lambda: DigitsClassifier(ReferenceQuantizer(repaired=repaired))


LOOKS: dict[str, Callable[[], nn.Module]] = {
    "reference quantizer (a factor missing in its update)": _classifier(False),
    "the same, factor put back": _classifier(True),
    "codes drawn at random in training": lambda: DigitsAutoencoder(CaseQuantizer(temperature=4.0), nn.Identity()),
    "averages move in evaluation, there without the factor": lambda: DigitsAutoencoder(
        CaseQuantizer(updates_always=True)
    ),
    "batch norm before it, momentum 0.0005": lambda: DigitsAutoencoder(
        CaseQuantizer(), nn.BatchNorm1d(32, momentum=0.0005)
    ),
}
"""Models by what they are."""


def look_at(make: Callable[[], nn.Module], seed: int = 0, epochs: int = _EPOCHS) -> Looks:
    """Train a model without a guard and look at its codes in three ways.

    Args:
        make: makes a `DigitsClassifier` or a `DigitsAutoencoder`.
        seed: of weights, data and order.
        epochs: of training.
    """
    torch.manual_seed(seed)
    model = make()
    quantizer = model.get_submodule("quantizer")
    seen: list[Tensor] = []
    handle = quantizer.register_forward_hook(lambda _, __, output: seen.append(output[1].detach().flatten()))
    train, test = digits_loaders(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4 if isinstance(model, DigitsClassifier) else 1e-3)
    model.train()
    for _ in range(epochs):
        seen.clear()
        for batch in train:
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()  # type: ignore[operator]
            optimizer.step()
    batches = [_perplexity([codes]) for codes in seen]
    training = sorted(batches)[len(batches) // 2]
    images = next(iter(test))[0]
    found = []
    for quantizer_trains in (False, True):
        model.eval()
        quantizer.train(quantizer_trains)
        seen.clear()
        with torch.no_grad():
            for start in range(0, len(images), 32):
                _encode(model, images[start : start + 32])
        found.append(sorted(_perplexity([codes]) for codes in seen)[len(seen) // 2])
    handle.remove()
    return Looks(training, *found)


def _encode(model: nn.Module, images: Tensor) -> None:
    if isinstance(model, DigitsAutoencoder):
        model.loss_of(images)
    else:
        model(images)


def modes_table(epochs: int = _EPOCHS) -> str:
    """Return the table in Markdown, with what it says."""
    rows = []
    for name, make in LOOKS.items():
        looks = look_at(make, epochs=epochs)
        numbers = (looks.training, looks.evaluation, looks.quantizer_training)
        rows.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in numbers)} | {verdict_on(looks)} |")
    what = "Perplexity of a batch of 32 images (64 tokens)"
    return f"""{what}: the median over batches, after {epochs} epochs without a guard.

| model | train | eval | eval, quantizer in train mode | what it says |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def verdict_on(looks: Looks) -> str:
    """Say what three numbers say."""
    if looks.training < 5:
        return "collapsed in training; evaluation only repeats it"
    if looks.evaluation >= 0.5 * looks.training:
        return "healthy in both"
    if looks.quantizer_training >= 0.5 * looks.training:
        return "collapsed in evaluation only, by the quantizer's own evaluation path"
    return "collapsed in evaluation only, by something before the quantizer"


def _perplexity(codes: Sequence[Tensor]) -> float:
    share = torch.bincount(torch.cat(list(codes))).double()
    share = share[share > 0] / share.sum()
    return float((-(share * share.log()).sum()).exp())

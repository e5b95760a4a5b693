"""What guarding costs: `make bench-overhead` measures it and writes `docs/benchmarks/overhead.md`.

Whole steps of a small and of a realistic model, with the guard at three cadences and without it, and with what people
use instead: a perplexity from a one-hot matrix in each step, and two of Lightning's monitors. Then the guard's own cost
by size of the codebook, on quantizers that do nothing. Everything that is compared takes turns, step by step, in one
process; times are CPU seconds of one thread, which hardly mind what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich import get_console
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Guard

from .bench_callbacks import time_callbacks
from .overhead_costs import CADENCES, cost_of_guarding, count_syncs, observing_every, one_hot_perplexity
from .overhead_report import overhead_as_markdown

__all__ = ["main", "time_models"]

_NOTES = Path("docs/benchmarks/overhead.md")
_D = 32
_NEVER = 10**6  # steps between readings
_WARM = 5


class _Small(nn.Module):
    """A multilayer perceptron around a codebook of vector-quantize-pytorch; 64 tokens a step."""

    def __init__(self, K: int) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, _D))
        self.quantizer = VectorQuantize(dim=_D, codebook_size=K)
        self.decoder = nn.Sequential(nn.Linear(_D, 256), nn.ReLU(), nn.Linear(256, 64))
        self.batch = torch.randn(64, 64)

    def forward(self) -> tuple[Tensor, Tensor]:
        quantised, codes, loss = self.quantizer(self.encoder(self.batch)[None])
        return functional.mse_loss(self.decoder(quantised[0]), self.batch) + loss.sum(), codes


class _Realistic(nn.Module):
    """A convolutional VQ-VAE on 8 images of 3 x 64 x 64, 256 tokens each: 2048 a step, in one codebook or in levels."""

    def __init__(self, K: int, levels: int = 1) -> None:
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(128, _D, 1),
        )
        several = levels > 1
        self.quantizer: nn.Module = (
            ResidualVQ(dim=_D, codebook_size=K, num_quantizers=levels)
            if several
            else VectorQuantize(dim=_D, codebook_size=K)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(_D, 128, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 3, 4, 2, 1),
        )
        self.batch = torch.randn(8, 3, 64, 64)

    def forward(self) -> tuple[Tensor, Tensor]:
        latents = self.encoder(self.batch)
        tokens = latents.flatten(2).transpose(1, 2)
        quantised, codes, loss = self.quantizer(tokens)
        decoded = self.decoder(quantised.transpose(1, 2).reshape(latents.shape))
        return functional.mse_loss(decoded, self.batch) + loss.sum(), codes


class _Trained:
    """A model with its optimizer, and what is done after each step."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        self.model = build().train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.after: Callable[[Tensor], object] = lambda codes: None

    def step(self) -> float:
        """Train one step; return its CPU seconds."""
        began = time.process_time()
        loss, codes = self.model()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after(codes)
        return time.process_time() - began


def time_models(build: Callable[[], nn.Module], K: int, *, steps: int) -> dict[str, float]:
    """Return CPU seconds of a step by arm: `plain`, `guard 1`, `guard 10`, `guard 50`, `one-hot`.

    The arms take turns step by step. One guard reads at each step and one never does; what a cadence costs lies between
    the two, and follows from both.

    Args:
        build: makes the model.
        K: codes, for the one-hot arm.
        steps: of each arm; the first few are not counted.
    """
    arms = {name: _Trained(build) for name in ("plain", "reads", "records", "one-hot")}
    arms["one-hot"].after = lambda codes: one_hot_perplexity(codes, K)
    guards = {name: Guard(observing_every(every), console=False) for name, every in (("reads", 1), ("records", _NEVER))}
    for name, guard in guards.items():
        guard.attach(arms[name].model, arms[name].optimizer)
        arms[name].after = _stepper(guard)
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(steps + _WARM):
        for name, arm in arms.items():
            seconds = arm.step()
            if step >= _WARM:
                spent[name].append(seconds)
    for guard in guards.values():
        guard.close()
    plain = statistics.median(spent["plain"])
    records, reads, rival = (_more(spent, name) for name in ("records", "reads", "one-hot"))
    by_cadence = {f"guard {every}": plain + records + (reads - records) / every for every in CADENCES}
    return {"plain": plain, **by_cadence, "one-hot": plain + rival}


def _more(spent: dict[str, list[float]], name: str) -> float:
    """Return what an arm's step costs more than the plain one beside it, the median over all."""
    return statistics.median(mine - plain for mine, plain in zip(spent[name], spent["plain"], strict=True))


def _stepper(guard: Guard) -> Callable[[Tensor], None]:
    return lambda codes: guard.step()


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(prog="bench-overhead", description="what guarding costs")
    parser.add_argument("--file", type=Path, default=_NOTES)
    parser.add_argument("--steps", type=int, default=60, help="of each arm of each model")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "MLP, K 512, 64 tokens": (lambda: _Small(512), 512, 5 * asked.steps),
        "conv VQ-VAE, K 512, 2048 tokens": (lambda: _Realistic(512), 512, asked.steps),
        "conv VQ-VAE, K 8192, 2048 tokens": (lambda: _Realistic(8192), 8192, asked.steps // 3),
        "conv VQ-VAE, 8 levels of K 512, 2048 tokens": (lambda: _Realistic(512, 8), 512, asked.steps // 2),
    }
    console = get_console()
    models = {}
    for name, (build, K, steps) in settings.items():
        models[name] = time_models(build, K, steps=max(steps, 5))
        console.print(f"{name}: {models[name]}", highlight=False)
    costs = []
    for K in (512, 8192, 65_536):
        for codebooks in (1, 8):
            costs.append(cost_of_guarding(K, codebooks, 1024, steps=200, with_one_hot=codebooks == 1))
            console.print(str(costs[-1]), highlight=False)
    costs.append(cost_of_guarding(16_384, 1, 16_384, steps=200))
    console.print(str(costs[-1]), highlight=False)
    text = overhead_as_markdown(models, costs, time_callbacks(), count_syncs())
    asked.file.write_text(text, encoding="utf-8")
    console.print(text, markup=False, highlight=False)

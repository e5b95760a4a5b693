"""What guarding costs: step time with the guard, without it, and with the rival that people use instead.

The rival is the perplexity that training scripts compute in each step from a one-hot matrix, read with `.item()` for
the progress bar. All three run interleaved, round by round, in one process; what is printed are ratios to the plain
step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich import box, get_console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard

from . import bench_engine

__all__ = ["main"]

_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Setting:
    """One model to time: codes, dimension, tokens per step, width of the encoder, steps per round."""

    name: str
    K: int
    D: int
    tokens: int
    width: int
    steps: int


SETTINGS = (
    Setting("small: K 256, 64 tokens a step", 256, 64, 64, 256, 100),
    Setting("realistic: K 1024, 2048 tokens a step", 1024, 64, 2048, 512, 20),
    Setting("large: K 4096, 2048 tokens a step", 4096, 64, 2048, 512, 20),
)


class _Autoencoder(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, setting.width), nn.ReLU(), nn.Linear(setting.width, setting.D))
        self.quantizer = VectorQuantize(dim=setting.D, codebook_size=setting.K)
        self.decoder = nn.Sequential(nn.Linear(setting.D, setting.width), nn.ReLU(), nn.Linear(setting.width, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, codes, loss = self.quantizer(self.encoder(x))
        return functional.mse_loss(self.decoder(quantized), x) + loss.sum(), codes


class _Run:
    """One arm: a model of its own, and what is done after each step."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.model = _Autoencoder(setting).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.data = torch.randn(1, setting.tokens, 64, generator=torch.Generator().manual_seed(1))
        self.after: Callable[[Tensor], object] = lambda codes: None

    def step(self) -> None:
        """Train one step, then do what this arm does."""
        loss, codes = self.model(self.data)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after(codes)


def _one_hot_perplexity(K: int) -> Callable[[Tensor], float]:
    def compute(codes: Tensor) -> float:
        average = functional.one_hot(codes.flatten(), K).float().mean(dim=0)
        return torch.exp(-torch.sum(average * torch.log(average + 1e-10))).item()

    return compute


def _measure(setting: Setting) -> dict[str, float]:
    """Return seconds per step of each arm: medians over rounds in which the arms take turns."""
    runs = {name: _Run(setting) for name in ("plain", "guard", "one-hot")}
    runs["one-hot"].after = _one_hot_perplexity(setting.K)
    guard = Guard("observe", console=False)
    guard.attach(runs["guard"].model, runs["guard"].optimizer)
    runs["guard"].after = lambda codes: guard.step()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(_ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(setting.steps):
                run.step()
            if round_number:  # the first round starts codebooks and warms caches
                times[name].append((time.perf_counter() - start) / setting.steps)
    guard.close()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Time every setting and print one table, then those of the engine alone."""
    torch.set_num_threads(1)
    table = Table(
        title="Step time, relative to the plain step (observe mode, cadence of the preset)", box=box.SIMPLE_HEAD
    )
    for column in ("setting", "plain step", "with the guard", "with one-hot perplexity"):
        table.add_column(column)
    for setting in SETTINGS:
        seconds = _measure(setting)
        ratios = [f"{seconds[name] / seconds['plain']:.3f}" for name in ("guard", "one-hot")]
        table.add_row(setting.name, f"{seconds['plain'] * 1e3:.2f} ms", *ratios)
    get_console().print(table)
    bench_engine.main()


if __name__ == "__main__":
    main()

"""The guard's own cost by size of the codebook, on quantizers that do nothing, and what makes it wait for a device.

The one-hot perplexity that training scripts compute in each step is timed beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import GenericVQ, Guard, Reading
from collapse_guard.pace import Pace
from collapse_guard.policies import load_policy
from collapse_guard.window import Window

from .sync_counter import SyncCounter

__all__ = [
    "CADENCES",
    "LOOKING_ONCE",
    "Costs",
    "cost_of_guarding",
    "count_syncs",
    "guarded",
    "observing_every",
    "one_hot_perplexity",
    "plain_levels",
    "recorded_share",
]

CADENCES = (1, 10, 50)
"""Steps between readings; 50 is that of the preset `default`."""
LOOKING_ONCE: dict[str, Any] = {
    "version": 1,
    "name": "looking once",
    "mode": "observe",
    "sample": {"every": f"{10**6} steps", "when_suspect": "1 steps", "min_tokens": 1},
    "rules": [{"name": "never", "when": "perplexity < 1"}],
}
"""A policy that takes a reading at the first step and next to none after it, so that nearly all steps are left out."""
_D = 32


def observing_every(every: int) -> dict[str, Any]:
    """Return a policy that only looks, and takes a reading so often, suspicious or not."""
    sample = {"every": f"{every} steps", "when_suspect": f"{every} steps"}
    return {"version": 1, "name": f"every {every}", "extends": "observe", "sample": sample}


def recorded_share(readings: Sequence[Reading], every: int) -> float:
    """Return which share of the steps a calm guard records at a cadence, in (0, 1].

    Args:
        readings: of one step each, of all codebooks. every: steps between readings.
    """
    pace = Pace()
    pace.note(readings, every=every, min_tokens=load_policy(observing_every(every)).sample.min_tokens, has_all=True)
    return 1 - sum(pace.turn(left, is_calm=True) for left in range(every)) / every


def one_hot_perplexity(codes: Tensor, K: int) -> float:
    """Return the perplexity as training scripts compute it in each step, for the progress bar."""
    average = functional.one_hot(codes.flatten(), K).float().mean(dim=0)
    return torch.exp(-torch.sum(average * torch.log(average + 1e-10))).item()


class _Given(nn.Module):
    """A quantizer that does nothing: the codes are given with the latents."""

    table: Tensor

    def __init__(self, K: int, D: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(K, D))

    def forward(self, latents: Tensor, codes: Tensor) -> Tensor:
        return codes


class _Levels(nn.Module):
    """Several of them side by side."""

    def __init__(self, codebooks: int, K: int, D: int) -> None:
        super().__init__()
        self.books = nn.ModuleList(_Given(K, D) for _ in range(codebooks))

    def forward(self, latents: Tensor, codes: Tensor) -> None:
        for book in self.books:
            book(latents, codes)


def plain_levels(codebooks: int, K: int, D: int = _D) -> nn.Module:
    """Return quantizers that do nothing, side by side: called with latents and codes."""
    return _Levels(codebooks, K, D).train()


def guarded(codebooks: int, K: int, policy: Any, D: int = _D, *, device: str = "cpu") -> tuple[nn.Module, Guard]:
    """Return the same under a guard."""
    model = plain_levels(codebooks, K, D).to(device)
    described = {f"books.{level}": GenericVQ(table="table", codes=lambda output: output) for level in range(codebooks)}
    guard = Guard(policy, console=False, adapters=described)
    guard.attach(model)
    return model, guard


@dataclass(frozen=True, slots=True)
class Costs:
    """What guarding costs a step, whatever the model.

    Attributes:
        K, codebooks, tokens: of the setting, tokens for each codebook and step.
        seconds: CPU seconds a step, by cadence. one_hot: of the one-hot perplexity; `None` where it was left out.
        bytes: that the guard holds on the device.
    """

    K: int
    codebooks: int
    tokens: int
    seconds: dict[int, float]
    one_hot: float | None
    bytes: int


def cost_of_guarding(K: int, codebooks: int, tokens: int, *, steps: int, with_one_hot: bool = True) -> Costs:
    """Measure the guard's own cost: CPU seconds of a step of a model that does nothing, with it less without it.

    Args:
        K, codebooks, tokens: of the setting.
        steps: measured for each cadence, after as many to warm up as the slowest cadence has between readings.
        with_one_hot: whether to time the one-hot perplexity too.
    """
    torch.manual_seed(0)
    latents, codes = torch.randn(tokens, _D), torch.randint(K, (tokens,))
    plain = plain_levels(codebooks, K)
    runs = {every: guarded(codebooks, K, observing_every(every)) for every in CADENCES}
    spent: dict[int, list[float]] = {every: [] for every in CADENCES}
    rounds = max(steps // CADENCES[-1], 2)
    for _ in range(rounds):
        idle = _seconds(lambda: plain(latents, codes), CADENCES[-1])
        for every, (model, guard) in runs.items():

            def step(model: nn.Module = model, guard: Guard = guard) -> None:
                model(latents, codes)
                guard.step()

            spent[every].append((_seconds(step, CADENCES[-1]) - idle) / CADENCES[-1])
    held = codebooks * Window(K, _D).nbytes
    for _, guard in runs.values():
        guard.close()
    rival = [_seconds(lambda: one_hot_perplexity(codes, K), 1) for _ in range(4)][1:] if with_one_hot else []
    seconds = {every: statistics.median(values[1:]) for every, values in spent.items()}
    return Costs(K, codebooks, tokens, seconds, codebooks * statistics.median(rival) if rival else None, held)


def _seconds(call: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - began


def count_syncs(*, every: int = 50, steps: int = 101, codebooks: int = 2) -> dict[int, dict[str, int]]:
    """Return by step what would have made the host wait for a device; steps at which nothing would are left out."""
    model, guard = guarded(codebooks, 64, observing_every(every), D=8)
    found = {}
    with guard:
        for step in range(1, steps + 1):
            latents, codes = torch.randn(256, 8), torch.randint(64, (256,))
            with SyncCounter() as syncs:
                model(latents, codes)
                guard.step()
            if syncs.total:
                found[step] = dict(syncs.counts)
    return found

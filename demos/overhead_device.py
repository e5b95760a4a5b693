"""What guarding costs on a GPU: wall time of blocks of steps, the device awaited at their ends only, arms in turns.

One line of JSON for each figure. That a program runs ahead of its device is part of what is measured: a step that
makes the host wait costs more than the waiting shows by itself.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from collapse_guard import Guard

from .kmeans_cells import append_line
from .overhead_costs import CADENCES, guarded, observing_every, one_hot_perplexity, plain_levels
from .overhead_models import Realistic, Trained

__all__ = ["DEVICE_MODELS", "DeviceLine", "count_waits", "measure_on_device", "own_cost", "time_arms"]

_BLOCK = CADENCES[-1]  # steps: each block of the slowest cadence holds one reading
_WARM = 10
_TOKENS = 4096

DEVICE_MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "conv VQ-VAE, K 512, 2048 tokens": (lambda: Realistic(512), 512),
    "conv VQ-VAE, K 512, 65,536 tokens": (lambda: Realistic(512, images=256), 512),
    "conv VQ-VAE, K 8192, 2048 tokens": (lambda: Realistic(8192), 8192),
    "conv VQ-VAE, K 8192, 32,768 tokens": (lambda: Realistic(8192, images=128), 8192),
    "conv VQ-VAE, K 65,536, 8192 tokens": (lambda: Realistic(65_536, images=32), 65_536),
    "conv VQ-VAE, 8 levels of K 512, 2048 tokens": (lambda: Realistic(512, 8), 512),
}
"""Name -> what builds it, and its K."""


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One figure.

    Attributes:
        device: as torch names it. torch: its version. part: "models", "own" or "waits". setting: what was measured.
        arm: "plain", "plain again", "guard 1", "guard 10", "guard 50" or "one-hot"; of waits the step.
        value: seconds a step, the median over blocks; of waits how often the host waited.
        spread: half of the distance between the quartiles, in the same unit.
        held: bytes that a guard holds on the device. peak: bytes that it took beside them at most.
    """

    device: str
    torch: str
    part: str
    setting: str
    arm: str
    value: float
    spread: float = 0.0
    held: int = 0
    peak: int = 0


def measure_on_device(path: Path, device: str, *, rounds: int, tell: Callable[[str], object]) -> None:
    """Measure everything and write the lines anew."""
    path.unlink(missing_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else device

    def keep(part: str, setting: str, found: Iterator[dict[str, Any]]) -> None:
        for each in found:
            append_line(
                path, asdict(DeviceLine(device=name, torch=torch.__version__, part=part, setting=setting, **each))
            )
            tell(f"{setting}: {each}")

    if device == "cuda":
        keep("waits", "2 codebooks, a reading each 50 steps", count_waits())
    for setting, (build, K) in DEVICE_MODELS.items():
        keep("models", setting, time_arms(build, K, device, rounds=rounds))
    for K in (512, 8192, 65_536):
        for codebooks in (1, 8):
            keep("own", f"{K} | {codebooks}", own_cost(K, codebooks, device, rounds=rounds))


def time_arms(build: Callable[[], nn.Module], K: int, device: str, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield seconds of a training step by arm; the arms take turns, each round beginning with another one."""
    arms = {name: Trained(build, device) for name in ("plain", "plain again", "one-hot")}
    arms["one-hot"].after = lambda codes: one_hot_perplexity(codes, K)
    guards = []
    for every in CADENCES:
        arms[f"guard {every}"] = arm = Trained(build, device)
        guard = Guard(observing_every(every), console=False)
        guard.attach(arm.model, arm.optimizer)
        arm.after = lambda codes, guard=guard: guard.step()  # type: ignore[misc]
        guards.append(guard)
    yield from _in_turns({name: arm.step for name, arm in arms.items()}, device, rounds)
    for guard in guards:
        guard.close()


def own_cost(K: int, codebooks: int, device: str, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the guard's own seconds of a step on quantizers that do nothing, and the bytes that it holds."""
    latents, codes = torch.randn(_TOKENS, 32, device=device), torch.randint(K, (_TOKENS,), device=device)
    plain = plain_levels(codebooks, K).to(device)
    steps: dict[str, Callable[[], object]] = {"plain": lambda: plain(latents, codes)}
    bytes_of: dict[str, dict[str, int]] = {}
    guards = []
    for every in CADENCES:
        model, guard = guarded(codebooks, K, observing_every(every), device=device)
        guards.append(guard)

        def step(model: nn.Module = model, guard: Guard = guard) -> None:
            model(latents, codes)
            guard.step()

        steps[f"guard {every}"] = step
        bytes_of[f"guard {every}"] = _bytes_of(step, device) if every == 1 else {}
    steps["one-hot"] = lambda: [one_hot_perplexity(codes, K) for _ in range(codebooks)]
    for each in _in_turns(steps, device, rounds):
        yield each | bytes_of.get(each["arm"], {})
    for guard in guards:
        guard.close()


def _bytes_of(step: Callable[[], object], device: str) -> dict[str, int]:
    """Return what the first steps leave allocated, and what a further one takes at most beside it."""
    if device != "cuda":
        return {}
    before = torch.cuda.memory_allocated()
    step()
    step()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return {"held": held - before, "peak": torch.cuda.max_memory_allocated() - held}


def _in_turns(steps: dict[str, Callable[[], object]], device: str, rounds: int) -> Iterator[dict[str, Any]]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for step in steps.values():
        _block(step, device, steps=_WARM)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            taken[name].append(_block(steps[name], device))
    for name, seconds_of in taken.items():
        low, _, high = statistics.quantiles(seconds_of, n=4) if len(seconds_of) > 1 else (0.0, 0.0, 0.0)
        yield {"arm": name, "value": statistics.median(seconds_of), "spread": (high - low) / 2}


def _block(step: Callable[[], object], device: str, *, steps: int = _BLOCK) -> float:
    """Return wall seconds of a step, the mean over a block."""
    _await(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _await(device)
    return (time.perf_counter() - began) / steps


def _await(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def count_waits(*, steps: int = 101, codebooks: int = 2) -> Iterator[dict[str, Any]]:
    """Yield by step how often the host waited for the CUDA device, as CUDA counts; other steps are left out."""
    model, guard = guarded(codebooks, 64, observing_every(_BLOCK), device="cuda")
    inputs = [(torch.randn(256, 32, device="cuda"), torch.randint(64, (256,), device="cuda")) for _ in range(steps)]
    with guard:
        for number, (latents, codes) in enumerate(inputs, 1):
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                model(latents, codes)
                guard.step()
            torch.cuda.set_sync_debug_mode("default")
            if waits := sum("synchroniz" in str(each.message) for each in seen):
                yield {"arm": str(number), "value": float(waits)}

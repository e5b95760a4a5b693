"""What guarding costs: `make bench-overhead` measures it and writes `docs/benchmarks/overhead.md`.

Whole steps of a small and of a realistic model, with the guard at three cadences and without it, and with what people
use instead: a perplexity from a one-hot matrix in each step, and two of Lightning's monitors. Then the guard's own cost
by size of the codebook, on quantizers that do nothing. Everything that is compared takes turns, step by step, in one
process; times are CPU seconds of one thread, which hardly mind what else the machine does. On a GPU, `overhead_device`
takes over.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich import get_console
from torch import Tensor, nn

from collapse_guard import Guard

from .bench_callbacks import time_callbacks
from .kmeans_cells import read_lines
from .overhead_costs import (
    CADENCES,
    LOOKING_ONCE,
    cost_of_guarding,
    count_syncs,
    observing_every,
    one_hot_perplexity,
    recorded_share,
)
from .overhead_device import DeviceLine, measure_on_device
from .overhead_models import Realistic, Small, Trained
from .overhead_report import DEVICE_HEADING, device_as_markdown, overhead_as_markdown

__all__ = ["main", "time_models"]

_NOTES = Path("docs/benchmarks/overhead.md")
_LINES = Path("docs/benchmarks/overhead-gpu.jsonl")
_NEVER = 10**6  # steps between readings
_WARM = 5


def time_models(build: Callable[[], nn.Module], K: int, *, steps: int) -> dict[str, float]:
    """Return CPU seconds of a step by arm: `plain`, `guard 1`, `guard 10`, `guard 50`, `one-hot`.

    The arms take turns step by step, in another order each time. One guard reads at each step, one records each and
    reads none, one leaves each out; what a cadence costs is made of these three, as many of each as it has.

    Args:
        build: makes the model.
        K: codes, for the one-hot arm.
        steps: of each arm; the first few are not counted.
    """
    arms = {name: Trained(build) for name in ("plain", "reads", "records", "rests", "one-hot")}
    arms["one-hot"].after = lambda codes: one_hot_perplexity(codes, K)
    policies = {"reads": observing_every(1), "records": observing_every(_NEVER), "rests": LOOKING_ONCE}
    guards = {name: Guard(policy, console=False) for name, policy in policies.items()}
    for name, guard in guards.items():
        guard.attach(arms[name].model, arms[name].optimizer)
        arms[name].after = _stepper(guard)
    spent: dict[str, list[float]] = {name: [] for name in arms}
    turns = random.Random(0)
    for step in range(steps + _WARM):
        for name in turns.sample(list(arms), len(arms)):
            seconds = arms[name].step()
            if step >= _WARM:
                spent[name].append(seconds)
    seen = list(guards["reads"].readings.values())
    for guard in guards.values():
        guard.close()
    plain = statistics.median(spent["plain"])
    reads, records, rests, rival = (_more(spent, name) for name in ("reads", "records", "rests", "one-hot"))
    by_cadence = {}
    for every in CADENCES:
        share = recorded_share(seen, every)
        recording = share * records + (1 - share) * rests
        by_cadence[f"guard {every}"] = plain + recording + (reads - records) / every
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
    parser.add_argument("--device", default="cpu", help="cuda: measure the GPU section alone, into the page there is")
    asked = parser.parse_args()
    if asked.device != "cpu":
        measure_on_device(_LINES, asked.device, rounds=max(asked.steps // 10, 2), tell=partial(print, flush=True))
        write_device_section(asked.file)
        return
    torch.set_num_threads(1)
    settings = {
        "MLP, K 512, 64 tokens": (lambda: Small(512), 512, 5 * asked.steps),
        "conv VQ-VAE, K 512, 2048 tokens": (lambda: Realistic(512), 512, asked.steps),
        "conv VQ-VAE, K 8192, 2048 tokens": (lambda: Realistic(8192), 8192, asked.steps // 3),
        "conv VQ-VAE, 8 levels of K 512, 2048 tokens": (lambda: Realistic(512, 8), 512, asked.steps // 2),
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
    write_device_section(asked.file)
    console.print(asked.file.read_text(encoding="utf-8"), markup=False, highlight=False)


def write_device_section(page: Path) -> None:
    """Put what was measured on a GPU at the end of the page, in place of what stood there."""
    lines = read_lines(_LINES, DeviceLine)
    above = page.read_text(encoding="utf-8").partition(f"\n{DEVICE_HEADING}\n")[0].rstrip("\n")
    page.write_text(f"{above}\n\n{device_as_markdown(lines)}" if lines else f"{above}\n", encoding="utf-8")

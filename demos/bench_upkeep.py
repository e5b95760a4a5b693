"""What upkeep is worth: a tended codebook against a quantizer's own prevention; `make bench-upkeep` runs it.

A small autoencoder codes colour patches of scikit-learn's photographs through vector-quantize-pytorch's EMA quantizer.
The library's prevention is its k-means start together with its replacement of dead codes (`threshold_ema_dead_code=2`);
the guarded arms are the plain quantizer, which has neither, under the preset `upkeep`. Both at two decays; of each, the
better one is compared, seed by seed. One line for each run goes to `docs/benchmarks/upkeep.jsonl`, the table to
`upkeep.md`; what the file holds is not run again.

A control asks what upkeep does to a run with more codes than its data need: the digits demo with its code repaired,
left alone under `observe`, under `default`, which places what never came into use, and under `upkeep`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Guard
from collapse_guard.statistics import perplexity, usage

from .kmeans_cells import append_line, read_lines
from .kmeans_data import photo_windows
from .reference import ARMS, run_arm

__all__ = [
    "UPKEEP_ARMS",
    "ControlRun",
    "UpkeepRun",
    "control_as_markdown",
    "main",
    "run_control",
    "run_upkeep_arm",
    "upkeep_as_markdown",
]

_NOTES = Path("docs/benchmarks")
_SIDE, _D, _TOKENS = 4, 64, 1024
_OWN: dict[str, Any] = {"kmeans_init": True, "threshold_ema_dead_code": 2}
UPKEEP_ARMS: dict[str, dict[str, Any]] = {
    "own 0.8": _OWN | {"decay": 0.8},
    "own 0.99": _OWN | {"decay": 0.99},
    "guard 0.8": {"decay": 0.8},
    "guard 0.99": {"decay": 0.99},
    "plain 0.99": {"decay": 0.99},
}
"""Arm -> options of `VectorQuantize`; those that begin with `guard` are guarded."""


@dataclass(frozen=True, slots=True)
class UpkeepRun:
    """How one run ended, on patches that it was not trained on.

    Attributes:
        arm: of `UPKEEP_ARMS`. K, seed, steps: of the run.
        error: mean squared error of the decoded patches, whose values lie from 0 to 1.
        perplexity, usage: of the codes. cpu_seconds: of the process, for the training.
        interventions: what the guard did, in order, as `step action result`.
    """

    arm: str
    K: int
    seed: int
    steps: int
    error: float
    perplexity: float
    usage: float
    cpu_seconds: float
    interventions: list[str]


@dataclass(frozen=True, slots=True)
class ControlRun:
    """How a healthy run of the digits demo ended.

    Attributes:
        policy: `observe`, `default` or `upkeep`. seed: of the run.
        accuracy, perplexity, usage: on the test images. interventions: action and result of each, in order.
    """

    policy: str
    seed: int
    accuracy: float
    perplexity: float
    usage: float
    interventions: list[str]


class _Coder(nn.Module):
    def __init__(self, K: int, options: dict[str, Any]) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize  # of the dev extra: only this bench wants it

        width = 3 * _SIDE * _SIDE
        self.encoder = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, _D))
        self.quantizer = VectorQuantize(dim=_D, codebook_size=K, **options)
        self.decoder = nn.Sequential(nn.Linear(_D, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantised, codes, loss = self.quantizer(self.encoder(patches)[None])
        return self.decoder(quantised[0]), codes.flatten(), loss.sum()


def _patches() -> tuple[Tensor, Tensor]:
    """Return (n, 48) patches to train on and (8192, 48) to judge by, the same on every call."""
    every = torch.from_numpy(photo_windows(_SIDE, step=2))
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(99))]
    return every[8192:], every[:8192]


def run_upkeep_arm(arm: str, K: int, seed: int, steps: int) -> UpkeepRun:
    """Train one arm; the same seed gives all arms the same patches in the same order."""
    train, held_out = _patches()
    torch.manual_seed(seed)
    model = _Coder(K, UPKEEP_ARMS[arm])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    guard = Guard("upkeep", console=False, total_steps=steps, seed=seed)
    if arm.startswith("guard"):
        guard.attach(model, optimizer)
    began = time.process_time()
    with guard:
        for _ in range(steps):
            batch = train[torch.randint(len(train), (_TOKENS,), generator=order)]
            decoded, _, loss = model(batch)
            optimizer.zero_grad()
            (functional.mse_loss(decoded, batch) + loss).backward()
            optimizer.step()
            guard.step()
        done = [f"{each['step']} {each['action']} {each['result']}" for each in guard.interventions]
    seconds = time.process_time() - began
    model.eval()
    with torch.no_grad():
        decoded, codes, _ = model(held_out)
    counts = torch.bincount(codes, minlength=K).numpy()
    return UpkeepRun(
        arm=arm,
        K=K,
        seed=seed,
        steps=steps,
        error=float(functional.mse_loss(decoded, held_out)),
        perplexity=perplexity(counts),
        usage=usage(counts),
        cpu_seconds=seconds,
        interventions=done,
    )


def run_control(policy: str, seed: int, *, epochs: int = 30) -> ControlRun:
    """Train the digits demo, with its code repaired, under a policy."""
    found = run_arm(replace(ARMS["repaired"], policy=policy), seed, epochs=epochs)
    perplexity_found, usage_found = found.eval_perplexity or 0.0, found.usage or 0.0
    return ControlRun(policy, seed, found.accuracy, perplexity_found, usage_found, list(found.interventions))


def _best(runs: list[UpkeepRun], kind: str) -> dict[int, UpkeepRun]:
    """Return by seed the run of an arm whose decay has the least mean error over the seeds that all decays have."""
    arms = {run.arm for run in runs if run.arm.startswith(kind)}
    by_arm = {arm: {run.seed: run for run in runs if run.arm == arm} for arm in arms}
    common = set.intersection(*(set(each) for each in by_arm.values())) if by_arm else set()
    if not common:
        return {}
    best = min(sorted(by_arm), key=lambda arm: statistics.mean(by_arm[arm][seed].error for seed in common))
    return {seed: by_arm[best][seed] for seed in sorted(common)}


def _interval(values: list[float]) -> str:
    """Return the mean and its 95 % interval by Student's t; the mean alone of one value."""
    from scipy.stats import t

    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def upkeep_as_markdown(runs: list[UpkeepRun]) -> str:
    """Return the table: for each K, guard and own prevention, paired by seed."""
    lines = [
        "# Upkeep: a tended codebook against the quantizer's own prevention",
        "",
        "Written by `make bench-upkeep`. What is compared is said in `demos/bench_upkeep.py`; every run is in",
        "`upkeep.jsonl`. The ratio is that of the evaluation errors, paired by seed, with the 95 % interval of its",
        "mean; below 1 the guarded quantizer is better. Of both kinds the better decay is taken. Columns with two",
        "numbers: guarded / own prevention.",
        "",
        "| K | seeds | error ratio | error | perplexity | usage | decay |",
        "|---|---|---|---|---|---|---|",
    ]
    for K in sorted({run.K for run in runs}):
        ours, own = (_best([run for run in runs if run.K == K], kind) for kind in ("guard", "own"))
        seeds = sorted(ours.keys() & own.keys())
        if not seeds:
            continue
        ratio = _interval([ours[seed].error / own[seed].error for seed in seeds])
        cells = [f"{_mean(ours, seeds, name):{form}} / {_mean(own, seeds, name):{form}}" for name, form in _COLUMNS]
        decays = f"{ours[seeds[0]].arm.split()[1]} / {own[seeds[0]].arm.split()[1]}"
        lines.append(f"| {K} | {len(seeds)} | {ratio} | {' | '.join(cells)} | {decays} |")
    return "\n".join(lines) + "\n"


def control_as_markdown(runs: list[ControlRun]) -> str:
    """Return the table of the healthy runs, with and without upkeep."""
    lines = [
        "## A run with more codes than it uses",
        "",
        "The digits demo with its code repaired: 256 codes, of which a tenth come into use by themselves (`observe`),",
        "and nothing broken. `default` places what never came into use, and moves on what that leaves idle.",
        "Means over the seeds, and the least and the largest accuracy; on the test images.",
        "",
        "| policy | seeds | accuracy | perplexity | usage | interventions |",
        "|---|---|---|---|---|---|",
    ]
    for policy in sorted({run.policy for run in runs}):
        these = [run for run in runs if run.policy == policy]
        accuracy = [run.accuracy for run in these]
        done = sorted({" ".join(run.interventions) or "none" for run in these})
        mean = statistics.mean
        lines.append(
            f"| {policy} | {len(these)} | {mean(accuracy):.3f} ({min(accuracy):.3f}-{max(accuracy):.3f}) "
            f"| {mean(run.perplexity for run in these):.1f} | {mean(run.usage for run in these):.1%} "
            f"| {', '.join(done)} |"
        )
    why = "Why upkeep is a preset of its own and no rule of `default`: [Upkeep](../kmeans.md#upkeep)."
    return "\n".join([*lines, "", why, ""])


_COLUMNS = (("error", ".5f"), ("perplexity", ".0f"), ("usage", ".1%"))


def _mean(runs: dict[int, UpkeepRun], seeds: list[int], name: str) -> float:
    return float(statistics.mean(getattr(runs[seed], name) for seed in seeds))


def _missing(runs: list[UpkeepRun], codes: list[int], seeds: int, steps: int) -> Iterator[tuple[str, int, int]]:
    """Yield what is to be run, arm by arm within a seed, so that a study that is cut off has whole pairs."""
    have = {(run.arm, run.K, run.seed, run.steps) for run in runs}
    for seed in range(seeds):
        for K in codes:
            yield from ((arm, K, seed) for arm in UPKEEP_ARMS if (arm, K, seed, steps) not in have)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(prog="bench-upkeep", description="a tended codebook against own prevention")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--folder", type=Path, default=_NOTES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / "upkeep.jsonl"
    for arm, K, seed in _missing(read_lines(path, UpkeepRun), asked.codes, asked.seeds, asked.steps):
        run = run_upkeep_arm(arm, K, seed, asked.steps)
        append_line(path, asdict(run))
        print(
            f"K {K}, seed {seed}, {arm}: error {run.error:.5f}, usage {run.usage:.1%}, {run.cpu_seconds:.0f} s",
            flush=True,
        )
    control = asked.folder / "upkeep_control.jsonl"
    known = {(run.policy, run.seed) for run in read_lines(control, ControlRun)}
    for policy, seed in ((policy, seed) for seed in range(asked.seeds) for policy in ("observe", "default", "upkeep")):
        if (policy, seed) not in known:
            append_line(control, asdict(run_control(policy, seed)))
    text = upkeep_as_markdown([run for run in read_lines(path, UpkeepRun) if run.steps == asked.steps])
    text = f"{text}\n{control_as_markdown(read_lines(control, ControlRun))}"
    (asked.folder / "upkeep.md").write_text(text, encoding="utf-8")
    print(text)

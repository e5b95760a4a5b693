"""The measured part of the ablation: a record for each run, and no run twice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collapse_guard.statistics import perplexity, usage

from .ablation_arms import ABLATION_ARMS
from .kmeans_cells import append_line, read_lines
from .training import quiet, train_arm

__all__ = ["AblationRun", "measure_ablation", "run_ablation_arm"]

_K = 256  # of every arm, and of each level of the residual


@dataclass(frozen=True, slots=True)
class AblationRun:
    """One run.

    Attributes:
        arm, factor: a key of `ABLATION_ARMS`. seed, epochs: of the run.
        accuracy: share of test images classified right.
        train_perplexity: of one batch's codes, the median over the last epoch, for each level; empty without a
            quantizer, as the next one. Not pooled: this collapse falls on another code from step to step.
        eval_perplexity: of the test set's codes.
        usage: share of the codes of all levels used on the test set; 0 without a quantizer.
        interventions: action and result of each, in order.
        cpu_seconds: of the process.
    """

    arm: str
    factor: str
    seed: int
    epochs: int
    accuracy: float
    train_perplexity: list[float]
    eval_perplexity: list[float]
    usage: float
    interventions: list[str]
    cpu_seconds: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Return what tells this run from any other."""
        return self.arm, self.factor, self.seed, self.epochs


@torch.no_grad()
def run_ablation_arm(arm: str, factor: str, seed: int, *, epochs: int = 30, log_dir: Path | None = None) -> AblationRun:
    """Train and measure one arm.

    Args:
        arm, factor: a key of `ABLATION_ARMS`.
        seed: of data, weights and order.
        epochs: of training.
        log_dir: where a guarded run writes its event log.
    """
    began = time.process_time()
    with torch.enable_grad(), quiet():
        run = train_arm(ABLATION_ARMS[arm, factor], seed, epochs=epochs, log_dir=log_dir)
    seconds = time.process_time() - began
    images, labels = run.test
    logits, codes, _ = run.model.eval()(images)
    batches = [_by_level(each) for each in run.codes]
    shown = _by_level(codes) if codes is not None else []
    summary = next((event.fields for event in run.events if event.event == "summary"), None)
    done = summary["interventions"] if summary is not None else []
    return AblationRun(
        arm=arm,
        factor=factor,
        seed=seed,
        epochs=epochs,
        accuracy=float((logits.argmax(dim=-1) == labels).float().mean()),
        train_perplexity=[statistics.median(map(perplexity, level)) for level in zip(*batches, strict=True)],
        eval_perplexity=[perplexity(level) for level in shown],
        usage=float(np.mean([usage(level) for level in shown])) if shown else 0.0,
        interventions=[f"{each['action']} {each['result']}" for each in done],
        cpu_seconds=round(seconds, 2),
    )


def _by_level(codes: Tensor) -> list[np.ndarray]:
    """Return the (K,) counts of codes (B, tokens) or, of several levels, (B, tokens, levels)."""
    levels = codes.unsqueeze(-1) if codes.ndim == 2 else codes
    return [torch.bincount(level.flatten(), minlength=_K).numpy() for level in levels.unbind(dim=-1)]


def _missing(runs: Sequence[AblationRun], seeds: int, epochs: int) -> Iterator[tuple[str, str, int]]:
    """Yield what is to be run, all of a seed before the next, so that a study that is cut off has whole tables."""
    have = {run.key for run in runs}
    for seed in range(seeds):
        yield from ((arm, factor, seed) for arm, factor in ABLATION_ARMS if (arm, factor, seed, epochs) not in have)


def measure_ablation(
    path: Path, *, seeds: int, epochs: int, log_dir: Path, tell: Callable[[str], object]
) -> list[AblationRun]:
    """Run what a file does not hold yet, append it, and return all runs of so many epochs.

    Args:
        path: of the file; JSON lines.
        seeds: runs of each arm. epochs: of each run.
        log_dir: where guarded runs write their event logs.
        tell: told of each run.
    """
    for arm, factor, seed in _missing(read_lines(path, AblationRun), seeds, epochs):
        folder = log_dir / f"{arm}-{factor.replace(' ', '-')}-{seed}"
        run = run_ablation_arm(arm, factor, seed, epochs=epochs, log_dir=folder)
        append_line(path, asdict(run))
        levels = "+".join(f"{value:.1f}" for value in run.eval_perplexity) or "-"
        tell(f"seed {seed}, {arm}, factor {factor}: accuracy {run.accuracy:.3f}, perplexity {levels}")
    return [run for run in read_lines(path, AblationRun) if run.epochs == epochs]

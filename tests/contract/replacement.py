"""encodec's own replacement of dead codes against the guard's reset, same data and seeds: `make peers`.

encodec writes replaced rows to `embed` alone, and the moving-average step of the same forward computes `embed` anew. So
the replacement changes nothing that lasts; audiocraft and speechtokenizer have the same code. Image patches from
scikit-learn's photographs go through a codebook of 64 codes for 400 steps; it starts at random or by encodec's own
k-means, and half of the runs shift their latents once, as an encoder does that jumps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich import box, get_console
from rich.table import Table
from torch import Tensor, nn

from collapse_guard import Guard

from .packages import import_inside

__all__ = ["ARMS", "SITUATIONS", "End", "K", "main", "outcome"]

K, STEPS, TOKENS, SEEDS = 64, 400, 512, 5
ARMS = ("neither", "encodec's own", "guard")
SITUATIONS = ((False, False), (False, True), (True, False), (True, True))
"""(whether encodec starts by k-means, whether the latents jump at step 100)."""

POLICY: dict[str, Any] = {
    "version": 1,
    "name": "unused codes",
    "sample": {"every": "10 steps", "when_suspect": "10 steps", "min_tokens": 1024},
    "rules": [
        {
            "name": "unused",
            "when": "usage < 0.9",
            "for": 2,
            "clear": {"when": "usage >= 0.95", "for": 2},
            "cooldown": "20 steps",
            "verify": {"within": "60 steps"},
            "ladder": [{"reset_codes": {"scope": "dead"}, "repeat": 3}],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended.

    Attributes:
        used: codes that 8192 fresh tokens use.
        error: their mean squared distance from their codes.
        table: (K, D) the codebook.
    """

    used: int
    error: float
    table: Tensor


def outcome(arm: str, seed: int, *, kmeans_init: bool, jumps: bool) -> End:
    """Train one codebook and say how it ended."""
    core = import_inside("encodec", "quantization.core_vq")
    torch.manual_seed(seed)
    patches, generator = _patches(), torch.Generator().manual_seed(seed)
    threshold = 2 if arm == "encodec's own" else 0
    codebook = core.EuclideanCodebook(16, K, kmeans_init=kmeans_init, threshold_ema_dead_code=threshold)
    model = nn.Sequential(codebook)
    guard = Guard(POLICY, console=False)
    if arm == "guard":
        guard.attach(model)

    def draw() -> Tensor:
        return patches[torch.randint(len(patches), (TOKENS,), generator=generator)]

    with guard, torch.no_grad():
        model.train()
        for step in range(STEPS):
            model(draw() + (3.0 if jumps and step >= 100 else 0.0))
            guard.step()
    model.eval()
    fresh = torch.cat([draw() for _ in range(16)]) + (3.0 if jumps else 0.0)
    with torch.no_grad():
        quantised, codes = model(fresh)
    error = float((fresh - quantised).square().sum(1).mean())
    return End(len(torch.unique(codes)), error, codebook.embed.clone())


def _patches() -> Tensor:
    """Return (n, 16) grey patches of 4 x 4 pixels, mean zero, of unit variance over all."""
    from sklearn.datasets import load_sample_images

    found = []
    for image in load_sample_images().images:
        grey = torch.tensor(image).float().mean(dim=-1)
        found.append(grey.unfold(0, 4, 4).unfold(1, 4, 4).reshape(-1, 16))
    patches = torch.cat(found)
    return (patches - patches.mean(dim=0)) / patches.std()


def main() -> None:
    """Print codes used and errors of all arms."""
    table = Table(title=f"encodec's codebook of {K} codes, {STEPS} steps, {SEEDS} seeds", box=box.SIMPLE_HEAD)
    for column in ("start", "latents", "replacement", f"codes used of {K}", "error (mean)"):
        table.add_column(column)
    for kmeans_init, jumps in SITUATIONS:
        for arm in ARMS:
            ends = [outcome(arm, seed, kmeans_init=kmeans_init, jumps=jumps) for seed in range(SEEDS)]
            used = ", ".join(str(end.used) for end in ends)
            error = sum(end.error for end in ends) / SEEDS
            start, latents = "k-means" if kmeans_init else "random", "jump once" if jumps else "stay"
            table.add_row(start, latents, arm, used, f"{error:.3f}")
    get_console().print(table)


if __name__ == "__main__":
    main()

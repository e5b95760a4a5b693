"""What the codebook likes and the user's loss does not: cases, and `make bench-loss-bound`, which counts them.

Each case is an intervention whose success condition is met whatever it does; what decides is the error of what leaves
the quantizer, against a bound of a tenth. Harmful cases make it rise, harmless ones, the same actions with milder
parameters or on a run that stands still, do not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests import quantizers
from tests.checkout import ROOT
from tests.interventions.scenes import CENTRES, D, Scene, modes, plain

__all__ = ["HARMFUL", "HARMLESS", "Ended", "all_ended", "as_markdown", "ended", "main"]

Make = Callable[[int], Scene]
SEEDS = (1, 2)


def still(step: int, x: Tensor) -> Tensor:
    return x


def running(step: int, x: Tensor) -> Tensor:
    return x + 0.02 * step


def seen(seed: int, speed: float = 0.0) -> Callable[[int], Tensor]:
    return lambda step: modes(step + 10_000 * seed) + speed * step


def standing(seed: int, decay: float = 0.9) -> Scene:
    return Scene(plain(decay=decay), lr=0.0, inputs=seen(seed), target=still)


def moving(seed: int) -> Scene:
    """Latents that move, which the codebook follows well."""
    return Scene(plain(decay=0.7), lr=0.0, inputs=seen(seed, 0.05), target=still)


def chasing(seed: int) -> Scene:
    """An encoder that has to move, since its target does."""
    module = plain(decay=0.7, commitment=0.0)
    return Scene(module, lr=0.05, optimizer=torch.optim.Adam, inputs=seen(seed), target=running)


def learning(seed: int, start: Tensor | None = None) -> Scene:
    codes = modes(999, 16) if start is None else start
    torch.manual_seed(seed)
    module = quantizers.Learnable(len(codes), D)
    module.beta = 0.0
    with torch.no_grad():
        module.embedding.weight.copy_(codes)
    return Scene(module, lr=0.02, inputs=seen(seed), target=still)


def fitted(seed: int) -> Scene:
    """A code on each of the eight modes: eight drawn from the latents share some modes, and leave others without."""
    return learning(seed, CENTRES)


HARMFUL: dict[str, tuple[Make, dict[str, Any]]] = {
    "slow_ema": (moving, {"target": 0.999}),
    "reset_codes": (fitted, {"scope": "all", "source": "reservoir"}),
    "freeze_encoder": (chasing, {"for": "500 steps"}),
    "lower_lr": (chasing, {"factor": 0.001}),
    "clip_gradients": (chasing, {"max_norm": 0.0001}),
    "scale_loss_weight": (chasing, {"weight": "weights.near", "factor": 0.001}),
    "raise_codebook_lr": (learning, {"factor": 10_000.0}),
    "take_over_updates": (moving, {"decay": 0.999}),
    "fallback_tokenizer": (moving, {"refit_every": "500 steps"}),
    "substitute": (standing, {}),
}
HARMLESS: dict[str, tuple[Make, dict[str, Any]]] = {
    "slow_ema": (standing, {"target": 0.95}),
    "fast_ema": (standing, {"target": 0.8}),
    "freeze_encoder": (standing, {"for": "500 steps"}),
    "lower_lr": (standing, {"factor": 0.1}),
    "clip_gradients": (chasing, {"max_norm": 100.0}),
    "scale_loss_weight": (chasing, {"weight": "weights.near", "factor": 1.05}),
    "raise_codebook_lr": (learning, {"factor": 1.5}),
    "take_over_updates": (standing, {"decay": 0.9}),
    "fallback_tokenizer": (standing, {"refit_every": "500 steps"}),
    "rollback": (standing, {"every": "10 steps"}),
}


def ended(cases: dict[str, tuple[Make, dict[str, Any]]], action: str, seed: int) -> str:
    """Return how the only intervention of a case ended, and what the outcome says."""
    make, params = cases[action]
    scene = make(seed)
    guard = {"loss_increase": 0.1}
    verify = {"within": "60 steps", "success": "step > 0", "guard": guard}
    with scene.guarded({"when": "step >= 80", "verify": verify, "ladder": [{action: params}]}) as watch:
        while not scene.recorder.of("outcome") and scene.done < 200:
            scene.train(5, watch)
        (outcome,) = scene.recorder.of("outcome")
        assert "guard was not applied" not in outcome.fields["reason"]
        assert not scene.recorder.of("fault")
        return f"{outcome.fields['outcome']}{' undone' if outcome.fields['undone'] else ''}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How one case ended.

    Attributes:
        is_harmful: whether it makes the error rise beyond the bound. action, seed: which case.
        end: outcome, and ` undone` where it was.
    """

    is_harmful: bool
    action: str
    seed: int
    end: str


def all_ended() -> list[Ended]:
    """Run every case on every seed."""
    kinds = ((True, HARMFUL), (False, HARMLESS))
    return [
        Ended(is_harmful, action, seed, ended(cases, action, seed))
        for is_harmful, cases in kinds
        for action in cases
        for seed in SEEDS
    ]


def as_markdown(found: Sequence[Ended]) -> str:
    """Return the page: the counts, and how each case ended."""
    harmful, harmless = ([each for each in found if each.is_harmful is kind] for kind in (True, False))
    undone = sum(each.end == "failed undone" for each in harmful)
    lost = [f"`{each.action}` on seed {each.seed}" for each in harmless if "undone" in each.end]
    rows = [
        f"| {name} | `{action}` | {_params(cases[action][1])} | {', '.join(_ends(found, name == 'harmful', action))} |"
        for name, cases in (("harmful", HARMFUL), ("control", HARMLESS))
        for action in cases
    ]
    return f"""# The bound on your loss: what worsens it is undone

Written by `make bench-loss-bound`. Each run is one intervention whose success condition is met whatever it does, under
`verify: {{guard: {{loss_increase: 0.1}}}}`; the loss is the error of what leaves the quantizer. In harmful cases it
rises by more than a tenth; in the controls, the same actions with milder parameters or on a run that stands still, it
does not. The cases are in `tests/interventions/loss_bound.py`.

Of {len(harmful)} harmful runs {undone} were undone; of {len(harmless)} controls {len(harmless) - len(lost)} were left
alone{f", and {', '.join(lost)} undone" if lost else ""}. The guard is given the loss of single batches of 64 tokens,
as a plain loop has it: it scatters by more than the bound, and after a lucky batch anything looks worse. Give it a
running mean.

| | action | parameters | how it ended, by seed |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _params(params: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in params.items()) or "-"


def _ends(found: Sequence[Ended], is_harmful: bool, action: str) -> list[str]:
    return [each.end.replace(" ", ", ") for each in found if (each.is_harmful, each.action) == (is_harmful, action)]


def main() -> None:
    """Run all cases, and write docs/benchmarks/loss_bound.md."""
    text = as_markdown(all_ended())
    (ROOT / "docs" / "benchmarks" / "loss_bound.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

"""What the codebook likes and the user's loss does not: undone by the bound on the loss, and only then.

Each case is an intervention whose success condition is met whatever it does; what decides is the error of what leaves
the quantizer, against a bound of a tenth. Harmful cases make it rise, harmless ones, the same actions with milder
parameters or on a run that stands still, do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import quantizers
from tests.interventions.scenes import D, Scene, modes, plain

Make = Callable[[int], Scene]


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


def learning(seed: int) -> Scene:
    torch.manual_seed(seed)
    module = quantizers.Learnable(16, D)
    module.beta = 0.0
    with torch.no_grad():
        module.embedding.weight.copy_(modes(999, 16))
    return Scene(module, lr=0.02, inputs=seen(seed), target=still)


HARMFUL: dict[str, tuple[Make, dict[str, Any]]] = {
    "slow_ema": (moving, {"target": 0.999}),
    "reset_codes": (learning, {"scope": "all", "source": "reservoir"}),
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


@pytest.mark.parametrize("action", ["slow_ema", "freeze_encoder", "take_over_updates"])
def test_what_worsens_the_loss_beyond_its_bound_is_undone(action: str) -> None:
    assert ended(HARMFUL, action, 0) == "failed undone"
    assert ended(HARMLESS, action, 0) == "recovered"


@pytest.mark.slow
def test_nineteen_of_twenty_harmful_cases_are_undone_and_harmless_ones_are_not() -> None:
    harmful = {(action, seed): ended(HARMFUL, action, seed) for action in HARMFUL for seed in (1, 2)}
    harmless = {(action, seed): ended(HARMLESS, action, seed) for action in HARMLESS for seed in (1, 2)}
    assert len(harmful) == len(harmless) == 20
    undone = [case for case, end in harmful.items() if end == "failed undone"]
    kept = [case for case, end in harmless.items() if end == "recovered"]
    assert len(undone) >= 19, {case: end for case, end in harmful.items() if case not in undone}
    assert len(kept) >= 18, {case: end for case, end in harmless.items() if case not in kept}

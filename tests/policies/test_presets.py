"""The presets, and that a healthy run is left alone by them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from collapse_guard.policies import DecisionKind, Health, Phase, load_policy, preset_names
from tests.policies.series import Run, reading, series


def test_observe_is_default_in_another_mode() -> None:
    default, observe = load_policy("default"), load_policy("observe")
    renamed = default.with_mode("observe").model_copy(update={"name": "observe"}).with_source("observe")
    assert observe == renamed


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize(("k", "tokens"), [(2, 256), (4, 256), (512, 256), (1024, 4096), (16384, 2048)])
def test_a_codebook_used_evenly_is_left_alone(name: str, k: int, tokens: int) -> None:
    """Also a tiny one, whose perplexity is always below 5, and a huge one that sees few tokens."""
    ceiling = min(k, tokens) * 0.9
    fields: dict[str, Any] = {"K": k, "tokens": tokens, "ceiling": ceiling, "perplexity_ratio": 0.8}
    run = Run(load_policy(name)).feed(series([0.8 * ceiling] * 20, **fields))
    assert run.decisions == []
    assert run.engine.health("vq") is Health.HEALTHY


def test_a_bad_start_is_forgiven() -> None:
    run = Run(load_policy("default")).feed(series([1.0] * 9, start=1, every=1)).feed(series([100.0] * 3, start=10))
    assert run.told == ["1 - skip warming_up"]


def test_latents_that_are_not_finite_are_told_and_nothing_is_done() -> None:
    run = Run(load_policy("default")).feed([reading(50, finite_fraction=0.99), reading(60, finite_fraction=1.0)])
    assert run.told == ["50 non_finite alert", "60 non_finite cleared"]
    assert run.decisions[0].severity == "critical"
    assert math.isclose(run.decisions[0].before.finite_fraction or 0, 0.99) if run.decisions[0].before else False


def test_a_codebook_that_only_dwindles_gets_the_gentler_ladder() -> None:
    run = Run(load_policy("default")).feed(series([4.0] * 120))
    assert run.told == [
        "10 collapsing pending",
        "30 collapsing alert",
        "30 collapsing act #1 reset_codes",
        "40 - skip settling",
        "230 collapsing outcome #1 reset_codes failed, rolled back",
        "230 collapsing act #2 decay_commitment",
        "240 - skip settling",
        "430 collapsing outcome #2 decay_commitment failed",
        "430 collapsing act #3 decay_commitment",
        "440 - skip settling",
        "630 collapsing outcome #3 decay_commitment failed",
        "630 collapsing act #4 decay_commitment",
        "640 - skip settling",
        "830 collapsing outcome #4 decay_commitment failed, rolled back",
        "830 collapsing act #5 fallback_tokenizer",
        "840 - skip settling",
        "1030 collapsing outcome #5 fallback_tokenizer failed, rolled back",
        "1030 collapsing exhausted",
    ]
    assert run.engine.phase("vq", "collapsing") is Phase.EXHAUSTED
    assert run.engine.health("vq") is Health.DEGRADED


def test_the_observe_preset_never_acts() -> None:
    run = Run(load_policy("observe")).feed(series([1.0] * 50))
    assert run.told == [
        "10 collapsed pending",
        "10 collapsing pending",
        "20 collapsed alert",
        "20 collapsed skip observing",
        "20 collapsing skip inhibited",
    ]
    assert DecisionKind.ACT not in {decision.kind for decision in run.decisions}

"""The presets, and that a healthy run is left alone by them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from collapse_guard.policies import DecisionKind, Health, Phase, Skip, load_policy, preset_names
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
    judged = tokens >= load_policy(name).sample.min_tokens
    assert [each.skip for each in run.decisions] == ([] if judged else [Skip.FEW_TOKENS])
    assert run.engine.health("vq") is (Health.HEALTHY if judged else Health.UNKNOWN)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("codebook", ["vq", "rvq.0", "rvq.5"])
def test_a_codebook_that_wavers_and_learns_is_left_alone(name: str, codebook: str) -> None:
    perplexities = [60 + 2 * index + 9 * math.sin(index) for index in range(40)]
    fields: dict[str, Any] = {"tokens": 4096, "loss": 1.0}
    assert Run(load_policy(name)).feed(series(perplexities, codebook=codebook, **fields)).decisions == []


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


PRESETS = ("conservative", "default", "large_codebook", "observe", "residual", "semantic_ids", "upkeep")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_carries_its_own_name(name: str) -> None:
    assert preset_names() == PRESETS
    assert (load_policy(name).name, load_policy(name).source) == (name, name)


def acts_of(run: Run) -> list[str]:
    """The interventions of a run, with the step and the rule."""
    return [line for line in run.told if " act " in line]


def test_conservative_leaves_alone_what_has_not_certainly_collapsed() -> None:
    run = Run(load_policy("conservative")).feed(series([3.0] * 40)).feed(series([1.2] * 40, start=500, usage=0.3))
    assert acts_of(run) == []
    assert {each.rule for each in run.decisions} == {"collapsing"}


def test_conservative_resets_once_and_then_leaves_the_codebook_alone() -> None:
    run = Run(load_policy("conservative")).feed(series([1.0] * 60, usage=0.01))
    assert run.told == [
        "10 collapsed pending",
        "10 collapsing pending",
        "30 collapsing skip inhibited",
        "50 collapsed alert",
        "50 collapsed act #1 reset_codes",
        "60 - skip settling",
        "250 collapsed outcome #1 reset_codes failed, rolled back",
        "250 collapsed exhausted",
    ]
    assert run.decisions[-1].then == "observe"


def test_conservative_undoes_a_reset_that_costs_too_much_loss() -> None:
    bad, well = series([1.0] * 5, usage=0.01, loss=1.0), series([100.0] * 25, start=60, loss=1.2)
    run = Run(load_policy("conservative")).feed(bad + well)
    assert run.told[-3:-1] == ["250 collapsed outcome #1 reset_codes failed, rolled back", "250 collapsed exhausted"]


def test_residual_holds_a_deep_level_against_its_own_best() -> None:
    falling = [30.0] * 3 + [4.0] * 6
    deep = Run(load_policy("residual")).feed(series(falling, codebook="rvq.layers.3"))
    assert [line for line in deep.told if "skip" not in line] == [
        "40 level_fallen pending",
        "70 level_fallen alert",
        "70 level_fallen act #1 reset_codes",
    ]
    always_low = Run(load_policy("residual")).feed(series([4.0] * 30, codebook="rvq.layers.3"))
    assert always_low.decisions == []


@pytest.mark.parametrize("name", ["rvq.layers.0", "quantizer", "model.2.quantizer"])
def test_residual_gives_the_first_level_the_ladder_of_default(name: str) -> None:
    run, same = (Run(load_policy(each)).feed(series([4.0] * 120, codebook=name)) for each in ("residual", "default"))
    assert run.told == same.told


@pytest.mark.parametrize("name", ["rvq.layers.0", "rvq.layers.7", "rvq.layers.10", "quantizer"])
def test_residual_repairs_every_level_that_has_collapsed(name: str) -> None:
    run = Run(load_policy("residual")).feed(series([60.0, 1.0, 1.0], codebook=name))
    assert acts_of(run) == ["30 collapsed act #1 reset_codes"]


def test_many_codes_that_explain_nothing_are_astray() -> None:
    """A collapse that falls on another code from step to step looks well used in a window."""
    run = Run(load_policy("default")).feed(series([40.0] * 17, relative_error=5e4))
    assert run.told[:3] == ["10 astray pending", "20 astray alert", "20 astray act #1 reset_codes"]
    assert "70 astray act #2 reset_codes" in run.told
    assert "120 astray act #3 fallback_tokenizer" in run.told


def test_few_codes_that_leave_no_error_are_no_trouble() -> None:
    """The data has four modes and the codebook holds them all."""
    assert Run(load_policy("default")).feed(series([4.0] * 50, relative_error=1e-6)).decisions == []


def test_semantic_ids_are_never_permuted_and_the_end_is_asked_for() -> None:
    run = Run(load_policy("semantic_ids")).feed(series([100.0] * 5 + [1.0] * 60))
    assert {each.action for each in run.decisions} == {None, "alert"}
    assert run.told[-1].endswith("collapsed exhausted")
    assert run.decisions[-1].then == "stop_training"
    assert not any(rung.action != "alert" for each in load_policy("semantic_ids").rules for rung in each.ladder)


def test_semantic_ids_tell_a_drift_long_before_a_collapse() -> None:
    halved = Run(load_policy("semantic_ids")).feed(series([100.0] * 3 + [45.0] * 4))
    assert halved.told == ["40 drifting pending", "60 drifting alert"]
    sliding = Run(load_policy("semantic_ids")).feed(series([100.0 * 0.95**index for index in range(11)], start=10))
    assert sliding.told == ["80 drifting pending", "100 drifting alert"]
    assert "trend(perplexity_ratio, over: 8 readings) -0.05" in sliding.decisions[-1].reason


LARGE: dict[str, Any] = {"K": 16384, "tokens": 8192, "ceiling": 6000.0, "usage": 0.3, "dead_fraction": 0.7}


def test_a_large_codebook_collapses_far_above_the_thresholds_of_default() -> None:
    readings = series([3000.0] * 3 + [60.0] * 3, **LARGE, perplexity_ratio=0.5)
    fallen = readings[:3] + series([60.0] * 3, start=40, **LARGE, perplexity_ratio=0.01)
    assert acts_of(Run(load_policy("large_codebook")).feed(fallen)) == ["50 collapsed act #1 reset_codes"]
    assert Run(load_policy("default")).feed(fallen).decisions == []


def test_a_large_codebook_that_only_begins_to_spread_is_left_alone() -> None:
    spreading = [
        reading(10 * i, 150.0 + 20 * i, **{**LARGE, "perplexity_ratio": 0.025 + i / 300}) for i in range(1, 20)
    ]
    assert Run(load_policy("large_codebook")).feed(spreading).decisions == []


def test_a_large_codebook_that_loses_half_is_given_its_dead_codes_back() -> None:
    ratios = [0.18] * 3 + [0.08] * 3
    run = Run(load_policy("large_codebook"))
    run.feed(reading(10 * i, 6000 * each, **{**LARGE, "perplexity_ratio": each}) for i, each in enumerate(ratios, 1))
    assert acts_of(run) == ["60 collapsing act #1 reset_codes"]

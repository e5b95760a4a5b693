"""The bars of the reference demo, over its five seeds: `make test-all`."""

from __future__ import annotations

import pytest

from collapse_guard.demos import ARMS, ArmResult, run_arm

SEEDS = range(5)


@pytest.mark.slow
def test_the_guarded_arm_closes_the_gap_in_every_seed() -> None:
    results: dict[str, list[ArmResult]] = {key: [run_arm(arm, seed) for seed in SEEDS] for key, arm in ARMS.items()}
    accuracy = {key: [run.accuracy for run in runs] for key, runs in results.items()}
    mean = {key: sum(values) / len(values) for key, values in accuracy.items()}
    assert mean["without"] >= 0.97
    assert mean["collapsed"] <= 0.50
    assert mean["guarded"] >= 0.955
    assert (mean["guarded"] - mean["collapsed"]) / (mean["without"] - mean["collapsed"]) >= 0.97
    for without, collapsed, guarded in zip(
        *(accuracy[key] for key in ("without", "collapsed", "guarded")), strict=True
    ):
        assert (guarded - collapsed) / (without - collapsed) >= 0.95
    for run in results["guarded"]:
        assert run.interventions[:2] == ("reset_codes failed", "fallback_tokenizer recovered")
        assert set(run.interventions[2:]) <= {"restart_optimizer recovered"}
        assert run.alert_step == 30
        assert run.norm_ratio is not None
        assert 100 <= run.norm_ratio <= 300
    assert mean["repaired"] >= 0.97  # 0.973 if nothing is done
    for run in results["repaired"]:  # sound, and nine tenths of its codes come to nothing if nobody places them
        assert run.interventions[0] == "reset_codes recovered"
        assert not {"fallback_tokenizer", "take_over_updates"} & {each.split()[0] for each in run.interventions}
        assert run.usage is not None
        assert run.usage >= 0.5

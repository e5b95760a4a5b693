"""What the codebook likes and the user's loss does not: undone by the bound on the loss, and only then."""

from __future__ import annotations

import pytest

from tests.interventions.loss_bound import HARMFUL, HARMLESS, Ended, all_ended, as_markdown, ended


@pytest.mark.parametrize("action", ["slow_ema", "freeze_encoder", "take_over_updates"])
def test_what_worsens_the_loss_beyond_its_bound_is_undone(action: str) -> None:
    assert ended(HARMFUL, action, 0) == "failed undone"
    assert ended(HARMLESS, action, 0) == "recovered"


@pytest.mark.slow
def test_nineteen_of_twenty_harmful_cases_are_undone_and_harmless_ones_are_not() -> None:
    found = all_ended()
    harmful, harmless = ([each for each in found if each.is_harmful is kind] for kind in (True, False))
    assert len(harmful) == len(harmless) == 20
    left = [each for each in harmful if each.end != "failed undone"]
    lost = [each for each in harmless if each.end != "recovered"]
    assert len(left) <= 1, left
    assert len(lost) <= 1, lost


def test_the_page_counts_what_was_undone_and_what_was_left_alone() -> None:
    found = [
        Ended(True, "slow_ema", 1, "failed undone"),
        Ended(True, "slow_ema", 2, "recovered"),
        Ended(False, "fast_ema", 1, "recovered"),
    ]
    text = as_markdown(found)
    assert "Of 2 harmful runs 1 were undone; of 1 controls 1 were left\nalone." in text
    bad = as_markdown([*found, Ended(False, "rollback", 2, "failed undone")])
    assert "of 2 controls 1 were left\nalone, and `rollback` on seed 2 undone." in bad
    assert "| harmful | `slow_ema` | target 0.999 | failed, undone, recovered |" in text
    assert "| control | `fast_ema` | target 0.8 | recovered |" in text

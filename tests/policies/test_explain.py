"""A policy in plain English: nothing it says is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import yaml

from collapse_guard.policies import Action, action_named, explain_policy, load_policy, preset_names, register_action
from tests.checkout import ROOT
from tests.policies.series import policy, rule


class Sing(Action):
    """An action of a third party."""

    action: ClassVar[str] = "sing"

    verses: int = 3


@pytest.fixture
def singing() -> Iterator[None]:
    """Register `sing` for one test."""
    register_action("sing", Sing)
    yield
    del action_named.__globals__["_ACTIONS"]["sing"]


def test_a_small_policy_reads_like_this() -> None:
    text = explain_policy(
        policy(
            rule(hold=2, severity="critical", inhibits=["low"], cooldown="100 steps", ladder=["reset_codes", "alert"]),
            rule("low", {"any": ["usage <= 0.1", ["loss > 3", "decay == 1"]]}, clear={"when": "usage > 0.2", "for": 3}),
            name="small",
        )
    )
    assert text.splitlines() == [
        "Policy small: it watches every codebook and acts on the run by itself.",
        "A reading is taken every 50 steps, and every 10 steps while a codebook is suspect. A code is dead",
        "when it is used less than 0.1 times as often as it would be if all codes were used alike.",
        "No evidence: a reading of fewer than 256 tokens.",
        "The budget is 20 interventions a run; it is whole again after 2000 steps with every codebook",
        "healthy.",
        "",
        "Rule 1, collapsed (critical)",
        "  It fires when perplexity is below 1.5, at 2 readings in a row.",
        "  It is over when perplexity is at least 1.5 (the opposite of what fires it), at 2 readings in a",
        "  row.",
        "  While it is at work on a codebook, low stays quiet there.",
        "  It then tries, one after another:",
        "    1. reset_codes: put the dead codes back on k-means centroids of recent latents, judged within",
        "       200 steps.",
        "    2. alert: touch nothing, and leave it to a human, judged within 200 steps.",
        "  A try has succeeded when the rule is over as said above. One that has not is a failure: what it",
        "  did is undone, and the next has its turn. When the last has failed, the rule does nothing more",
        "  until it is over.",
        "  After an intervention that ended well it pauses for 100 steps.",
        "",
        "Rule 2, low (warning)",
        "  It fires when usage is at most 0.1 or (loss is above 3 and decay equals 1), at a single reading.",
        "  It is over when usage is above 0.2, at 3 readings in a row.",
        "  It only raises an alert; there is nothing on its ladder.",
    ]


def test_a_policy_that_observes_says_what_it_would_do() -> None:
    text = explain_policy(load_policy("observe"))
    assert "writes down what it would do; it touches nothing." in text
    assert "It would then try, one after another:" in text
    assert "budget" not in text


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_explained_with_all_its_rules_actions_and_numbers(name: str) -> None:
    preset = load_policy(name)
    text = " ".join(explain_policy(preset).split())
    for each in preset.rules:
        assert f"{each.name} ({each.severity})" in text
        assert all(rung.action in text for rung in each.ladder)
        for condition in (each.when, each.clear_when):
            numbers = [word.strip("()") for word in str(condition).split() if word.strip("()")[0].isdigit()]
            assert all(number in text for number in numbers)


@pytest.mark.usefixtures("singing")
def test_options_are_told_where_they_stand_and_foreign_actions_as_written() -> None:
    text = explain_policy(
        policy(
            rule(
                ladder=[
                    {"decay_commitment": {"factor": 0.5}, "repeat": 3, "within": "2 epochs"},
                    {"sing": {"verses": 7}},
                ],
                verify={"within": "40 readings", "success": "usage > 0.5"},
            ),
            sample={"settle": 2},
            warmup="30 steps",
            budget={"interventions": 1, "refill_after": None},
        )
    )
    text = " ".join(text.split())
    for expected in (
        "never below 0.01, up to 3 times in a row before all of it is undone, each judged within 2 epochs.",
        "2. sing: sing(verses=7), judged within 40 readings.",
        "succeeded when usage is above 0.5, at a single reading.",
        "any before step 30; the first 2 readings after an intervention.",
        "The budget is 1 intervention a run; it is never refilled.",
    ):
        assert expected in text


def test_the_readme_shows_what_is_printed() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    written = "version: 1\n" + readme.partition("```yaml\nversion: 1\n")[2].partition("```")[0]
    shown = readme.partition("plain English, for whoever")[2].partition("```text\n")[2].partition("```")[0]
    assert shown
    assert shown in explain_policy(load_policy(yaml.safe_load(written))) + "\n"

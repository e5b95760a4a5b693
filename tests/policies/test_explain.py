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
        "Readings that do not count: those of fewer than 256 tokens.",
        "It makes at most 20 interventions in a run, counted anew after 2000 steps with every codebook",
        "healthy.",
        "",
        "Rule 1, collapsed (critical)",
        "  It fires when perplexity is below 1.5, at 2 readings in a row.",
        "  It is over when perplexity is at least 1.5 (the opposite of what fires it), at 2 readings in a",
        "  row.",
        "  While it is at work on a codebook, low stays quiet there.",
        "  Once it has nothing left to try, only those stay quiet that have nothing else to try.",
        "  It then tries, one after another:",
        "    1. reset_codes: put the dead codes back on k-means centroids of recent latents; judged within",
        "       200 steps.",
        "    2. alert: touch nothing, and see whether it recovers by itself or by your hand; judged within",
        "       200 steps.",
        "  A try has succeeded when what ends the rule holds, at 2 readings in a row. One that has not in",
        "  time is undone, and the next has its turn.",
        "  What was undone on a codebook is not tried there again in this run, not even when the rule fires",
        "  anew.",
        "  When nothing is left to try, it says so and does nothing more until it is over.",
        "  After an intervention that was no failure it pauses for 100 steps.",
        "",
        "Rule 2, low (warning)",
        "  It fires when usage is at most 0.1 or (loss is above 3 and decay equals 1), at a single reading.",
        "  It is over when usage is above 0.2, at 3 readings in a row.",
        "  It only raises an alert and tries nothing.",
        "",
        "What is measured",
        "  - perplexity: how many codes are in use, effectively: 1 when every token falls on one code, and",
        "    the number of codes when all are used alike.",
        "  - usage: fraction of the codes that were used at all.",
        "  - decay: share of the old in the codebook's moving average at each step.",
        "  - loss: the loss that was named to the guard.",
    ]


def test_every_key_of_the_language_has_its_sentence() -> None:
    """The whole text of a policy that uses each of them; read it as somebody who never saw the YAML."""
    everything = load_policy(ROOT / "tests/policies/data/everything.good.yaml").with_mode("act")
    assert explain_policy(everything).splitlines() == [
        "Policy everything: it watches every codebook and acts on the run by itself.",
        "A reading is taken every 100 steps, and every 20 steps while a codebook is suspect. A code is dead",
        "when it is used less than 0.05 times as often as it would be if all codes were used alike.",
        "Readings that do not count: those of fewer than 512 tokens, those before step 1 and the first 2",
        "after an intervention.",
        "It makes at most 3 interventions in a run.",
        "",
        "Rule 1, mild (warning)",
        "  It exists only on codebooks whose name is `rvq.0`.",
        "  It fires when usage is below 0.1 or dead_fraction is above 0.9, at a single reading.",
        "  It is over when usage is at least 0.1 and dead_fraction is at most 0.9 (the opposite of what fires",
        "  it), at a single reading.",
        "  It only raises an alert and tries nothing.",
        "",
        "Rule 2, severe (critical)",
        "  It exists only on codebooks whose name begins with `rvq.` or has the form `vq[12]` ([12] one",
        "  character of those).",
        "  It fires when perplexity is below 1.5 and perplexity_ratio is below 0.5, at 2 readings in a row.",
        "  It is over when perplexity is at least 10, usage is above 0.5 times the highest that it has held",
        "  and loss does not rise over the last 5 readings, at 3 readings in a row.",
        "  A comparison with a value that is missing counts for its firing and against its being over.",
        "  A comparison with a value that is NaN (not a number) counts against its firing and for its being",
        "  over.",
        "  Before step 100 it neither counts, tells nor acts.",
        "  While it is at work on a codebook, mild stays quiet there.",
        "  Once it has nothing left to try, only those stay quiet that have nothing else to try.",
        "  It then tries, one after another:",
        "    1. alert: touch nothing, and see whether it recovers by itself or by your hand; judged within 20",
        "       readings.",
        "    2. reset_codes: put the dead codes back on k-means centroids of recent latents; judged within 20",
        "       readings.",
        "    3. reset_codes: put all codes back on recent latents, counted as used 1 times as often as the",
        "       average code, at most 2 times on one codebook; judged within 300 steps.",
        "    4. decay_commitment: multiply the commitment weight by 0.1, never below 0.001, up to 3 times in",
        "       a row before all of it is undone; each judged within 20 readings.",
        "    5. fallback_tokenizer: let a k-means codebook (sklearn) stand in for the quantizer's own,",
        "       refitted after 10 steps and then after waits each 2 times as long as the one before, 1",
        "       iteration each time; judged within 20 readings.",
        "  A try has succeeded when loss is below 0.5, at 3 readings in a row. One that has not in time is",
        "  undone, and the next has its turn.",
        "  What was undone on a codebook is not tried there again in this run, not even when the rule fires",
        "  anew.",
        "  Where a rule that is judged before it, and is no milder, waits for a try to end, there is no",
        "  further one in a row; after its pause the rule may begin anew.",
        "  However well the codebook looks, a try has failed if, when its time is over, the loss is higher",
        "  than it was before. Where no loss is known, that is not asked.",
        "  It makes at most 4 interventions on one codebook.",
        "  When nothing is left to try, it asks the training loop to stop, and does nothing more until it is",
        "  over.",
        "  After an intervention that was no failure it pauses for 2 epochs, then 1.5 times as long after",
        "  each further one.",
        "",
        "What is measured",
        "  - perplexity: how many codes are in use, effectively: 1 when every token falls on one code, and",
        "    the number of codes when all are used alike.",
        "  - perplexity_ratio: perplexity as a fraction of what perfectly even use would show; about 1 is",
        "    best.",
        "  - usage: fraction of the codes that were used at all.",
        "  - dead_fraction: fraction of the codes that are dead.",
        "  - loss: the loss that was named to the guard.",
    ]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("rel(loss) > 1.5", "loss is above 1.5 times the lowest that it has held"),
        ("trend(loss, over: 5 readings) > 0.1", "loss rises by more than 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) >= 0.1", "loss rises by at least 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) <= -0.1", "loss falls by at least 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) < 0.1", "loss does not rise by as much as 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) <= 0.1", "loss does not rise by more than 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) > -0.1", "loss does not fall by as much as 10% of its mean with each reading"),
        ("trend(loss, over: 5 readings) >= 0", "loss does not fall"),
        ("trend(loss, over: 5 readings) > 0", "loss rises"),
        ("trend(loss, over: 5 readings) < 0", "loss falls"),
        ("trend(loss, over: 5 readings) == 0.1", "loss moves by +10% of its mean with each reading"),
    ],
)
def test_the_past_is_told_in_words(condition: str, words: str) -> None:
    span = " over the last 5 readings" if condition.startswith("trend") else ""
    text = " ".join(explain_policy(policy(rule(when=condition))).split())
    assert f"It fires when {words}{span}, at a single reading." in text


def test_what_a_rule_without_a_ladder_says_of_one_has_no_effect() -> None:
    text = explain_policy(policy(rule(cooldown="100 steps", budget=3)))
    assert "tries nothing, so what it says of cooldown and budget has no effect." in text


def test_what_a_restart_forgets_and_where_upkeep_takes_places_from_is_said() -> None:
    ladder = ["restart_optimizer", {"upkeep": {"source": "reservoir"}}, {"upkeep": {"most": 0.2}}]
    text = " ".join(explain_policy(policy(rule(ladder=ladder))).split())
    assert "let the encoder's optimizer forget its moments and begin its step count anew" in text
    assert "at most 10% of all at once, to latents drawn at random, every 25 steps" in text
    assert "at most 20% of all at once, to the worst served latents, every 25 steps" in text


def test_a_policy_that_observes_says_what_it_would_do() -> None:
    text = explain_policy(load_policy("observe"))
    assert "writes down what it would do; it touches nothing." in text
    assert "It would then try, one after another:" in text
    assert "at most 20 interventions" not in text


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_explained_with_all_its_rules_actions_and_numbers(name: str) -> None:
    preset = load_policy(name)
    text = " ".join(explain_policy(preset).split())
    for each in preset.rules:
        assert f"{each.name} ({each.severity})" in text
        assert all(rung.action in text for rung in each.ladder)
        for condition in (each.when, each.clear_when):
            numbers = [word.strip("()") for word in str(condition).split() if word.strip("()")[0].isdigit()]
            assert all(number in text or f"{float(number):.0%}" in text for number in numbers)  # slopes


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
        "never below 0.01, up to 3 times in a row before all of it is undone; each judged within 2 epochs.",
        "2. sing: sing(verses=7); judged within 40 readings.",
        "succeeded when usage is above 0.5, at a single reading.",
        "those before step 30 and the first 2 after an intervention.",
        "It makes at most 1 intervention in a run.",
    ):
        assert expected in text


def test_the_readme_shows_what_is_printed() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    written = "version: 1\n" + readme.partition("```yaml\nversion: 1\n")[2].partition("```")[0]
    shown = readme.partition("plain English, for whoever")[2].partition("```text\n")[2].partition("```")[0]
    assert shown
    assert shown in explain_policy(load_policy(yaml.safe_load(written))) + "\n"


def test_a_threshold_of_many_digits_is_said_in_full() -> None:
    mine = policy(rule(when="perplexity < 0.12345678901234567", clear={"when": "usage > 0.5"}))
    assert "fires when perplexity is below 0.12345678901234566, at" in " ".join(explain_policy(mine).split())


def test_the_budget_of_a_rung_comes_back_with_that_of_the_run() -> None:
    told = " ".join(explain_policy(load_policy("default")).split())
    assert "at most 2 times on one codebook until those of the run are counted anew; judged within 50 steps." in told

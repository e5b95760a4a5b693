"""The page of remedies names every built-in action, with what it needs and touches."""

from __future__ import annotations

import yaml

from collapse_guard import Guard
from collapse_guard.interventions import INTERVENTIONS
from collapse_guard.policies import actions
from tests.checkout import ROOT
from tests.interventions.scenes import Scene, plain

PAGE = (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## All of them")[1].split("\n## ")[0]


def rows() -> dict[str, list[str]]:
    """Action -> right when, needs, refused also where, touches."""
    lines = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in lines}


def test_every_built_in_action_is_listed_and_no_other() -> None:
    built_in = {name for name, model in actions().items() if model.__module__.startswith("collapse_guard.")}
    assert set(rows()) == built_in == set(INTERVENTIONS) & built_in
    assert len(built_in) == 25


def test_needs_and_touches_are_those_of_the_code() -> None:
    def listed(words: str) -> set[str]:
        return set() if words == "-" else set(words.split(", "))

    for name, (right_when, needs, refused, touches) in rows().items():
        assert right_when, name
        assert refused, name
        assert listed(needs) == set(INTERVENTIONS[name].needs), name
        assert listed(touches) == INTERVENTIONS[name].touches, name


def test_the_warm_up_holds_for_its_thousand_steps_and_keeps_no_other_rule_from_acting() -> None:
    (block,) = [each.split("```")[0] for each in PAGE.split("```yaml\n")[1:] if "name: warm-up" in each]
    policy = yaml.safe_load(block)
    policy["rules"].append({"name": "other", "when": "step >= 100", "ladder": [{"reset_codes": {"scope": "all"}}]})
    scene = Scene(plain(), weights={"drift": 1.0})
    with Guard(policy, console=False).attach(scene.model, scene.optim) as guard:
        scene.train(10, guard)
        frozen = scene.model.encoder.bias.detach().clone()
        scene.train(1000, guard)
        assert (scene.model.encoder.bias.detach() == frozen).all()
        scene.train(1, guard)
        assert (scene.model.encoder.bias.detach() != frozen).any()
        done = [(each["step"], each["action"]) for each in guard.interventions]
    assert done[:2] == [(10, "freeze_encoder"), (100, "reset_codes")]
    assert [action for _, action in done].count("freeze_encoder") == 1

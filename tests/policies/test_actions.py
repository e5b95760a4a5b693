from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from collapse_guard.policies import (
    Action,
    Alert,
    DecayCommitment,
    FallbackTokenizer,
    PolicyError,
    ResetCodes,
    action_named,
    actions,
    load_policy,
    register_action,
)
from tests.policies.series import policy, rule


class Hum(Action):
    """An action of somebody else's."""

    action: ClassVar[str] = "hum"

    share: Annotated[float, Field(gt=0, le=1)] = 1.0


@pytest.fixture
def registered() -> Iterator[None]:
    """Register `hum` for one test."""
    register_action("hum", Hum)
    yield
    registry = action_named.__globals__["_ACTIONS"]
    del registry["hum"]


def test_built_in_actions_describe_themselves_as_a_call() -> None:
    described = [ResetCodes(scope="all"), DecayCommitment(), FallbackTokenizer(), Alert()]
    assert [action.describe() for action in described] == [
        "reset_codes(scope=all, source=kmeans, refill=0.5)",
        "decay_commitment(factor=0.25, floor=0.01)",
        "fallback_tokenizer(backend=faiss, refit_every=50 steps, refit_growth=1.5, refit_iterations=5)",
        "alert()",
    ]


def test_built_in_actions_are_known_by_their_names() -> None:
    assert list(actions()) == [
        "reset_codes",
        "decay_commitment",
        "raise_commitment",
        "ease_replacement",
        "cool_sampling",
        "fallback_tokenizer",
        "upkeep",
        "slow_ema",
        "fast_ema",
        "scale_loss_weight",
        "disable_normalisation",
        "restore_layout",
        "bridge_gradient",
        "clip_gradients",
        "freeze_encoder",
        "lower_lr",
        "raise_codebook_lr",
        "restart_optimizer",
        "take_over_updates",
        "substitute",
        "rollback",
        "eval_fix",
        "alert",
        "save_checkpoint",
        "stop_training",
    ]
    assert action_named("reset_codes") is ResetCodes


def test_an_unknown_action_lists_the_known_ones() -> None:
    with pytest.raises(
        LookupError, match=r"unknown action 'reset_code'. Did you mean `reset_codes`\? Known: reset_codes, "
    ):
        action_named("reset_code")


@pytest.mark.usefixtures("registered")
def test_a_registered_action_can_be_named_by_a_policy() -> None:
    loaded = policy(rule(ladder=[{"hum": {"share": 0.5}}]))
    assert loaded.rules[0].ladder[0].params == Hum(share=0.5)


@pytest.mark.usefixtures("registered")
def test_a_registered_action_is_checked_like_any_other() -> None:
    with pytest.raises(PolicyError, match=r"ladder\[0\].hum.share: expected a number of at most 1, got 2"):
        policy(rule(ladder=[{"hum": {"share": 2.0}}]))


@pytest.mark.usefixtures("registered")
def test_registering_the_same_action_again_changes_nothing() -> None:
    register_action("hum", Hum)
    assert action_named("hum") is Hum


def test_a_name_that_is_taken_is_refused() -> None:
    class Impostor(ResetCodes):
        """Would replace a built-in action."""

    with pytest.raises(ValueError, match=r"expected a new action name, got 'reset_codes', which is .*\.ResetCodes"):
        register_action("reset_codes", Impostor)
    assert action_named("reset_codes") is ResetCodes


@pytest.mark.parametrize("name", ["repeat", "within", "hum-loudly"])
def test_a_name_that_a_rung_cannot_hold_is_refused(name: str) -> None:
    class Misnamed(Action):
        """Bears a name that means something else in a rung."""

        action: ClassVar[str] = name

    with pytest.raises(
        ValueError, match="expected an action name in snake_case other than action, budget, params, repeat, within"
    ):
        register_action(name, Misnamed)


def test_an_action_must_carry_the_name_that_it_is_registered_under() -> None:
    class Nameless(Action):
        """Forgot to say what it is called."""

    with pytest.raises(
        ValueError, match=r"expected Nameless to declare `action: ClassVar\[str\] = 'nameless'`, got None"
    ):
        register_action("nameless", Nameless)


def test_actions_cannot_be_added_behind_the_registry() -> None:
    with pytest.raises(TypeError):
        actions()["mine"] = Hum  # type: ignore[index]  # pyright: ignore[reportIndexIssue]


def test_parameters_cannot_be_changed_afterwards() -> None:
    params = load_policy("default").rules[1].ladder[0].params
    with pytest.raises(ValueError, match="frozen"):
        params.scope = "dead"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"slow_ema": 0.99}, "keys target, got 0.99. Write `slow_ema: {target: 0.99}`."),
        ({"freeze_encoder": "20 steps"}, "keys module, for, got '20 steps'. Write `freeze_encoder: {for: 20 steps}`."),
        ({"alert": 3}, "expected an empty mapping, got 3."),
        ({"freeze_encoder": {"module": "a..b"}}, "expected a path of names with dots between them"),
    ],
)
def test_what_is_written_in_place_of_parameters_is_told_how_to_write(written: dict[str, Any], expected: str) -> None:
    with pytest.raises(PolicyError) as refused:
        load_policy({"version": 1, "rules": [{"name": "low", "when": "perplexity < 2", "ladder": [written]}]})
    assert expected in str(refused.value)
    assert "Begin with" not in str(refused.value)

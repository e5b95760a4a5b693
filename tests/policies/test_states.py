"""`changed`: what `dataclasses.replace` would give."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from importlib import import_module
from typing import Any

import pytest

from collapse_guard.policies import Outcome

states = import_module("collapse_guard.policies.states")
changed = states.changed
STATES = [
    states.RuleState(held=3, spent={"alert": 1}, failed=("alert",)),
    states.CodebookState(judged=True),
    states.EngineState(attempts=2),
    states.Verdict(outcome=Outcome.FAILED, reason="it did not hold"),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_changed_state_is_another_object_that_differs_in_what_was_changed(state: Any) -> None:
    kept = repr(state)
    for each in fields(state):
        new = changed(state, **{each.name: "new"})
        assert new == replace(state, **{each.name: "new"}) != state
        assert type(new) is type(state)
        assert new == changed(new)
        assert new is not changed(new)
    assert repr(state) == kept


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_field_that_a_state_does_not_have_is_refused(state: Any) -> None:
    with pytest.raises(TypeError, match=rf"expected fields of {type(state).__name__}, got helt\."):
        changed(state, helt=1)


def test_a_changed_state_is_frozen_too() -> None:
    with pytest.raises(FrozenInstanceError):
        changed(STATES[0], held=1).held = 2

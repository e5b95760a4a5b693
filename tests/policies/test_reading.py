from __future__ import annotations

import dataclasses
import doctest
import importlib
import json

import pytest

from collapse_guard.policies import NUMERIC_FIELDS, Health, Outcome, Reading
from tests.policies.series import reading


def test_a_reading_survives_being_written_and_read() -> None:
    seen = reading(7, 3.5, loss=0.25, epoch=2, group="rvq", level=3)
    assert Reading.from_dict(json.loads(json.dumps(seen.as_dict()))) == seen


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert Reading.from_dict(reading(7).as_dict() | {"shape_of_things_to_come": 1}) == reading(7)


def test_every_field_but_the_names_can_be_compared() -> None:
    places = {"codebook", "stage", "group", "level", "causes"}
    assert set(NUMERIC_FIELDS) == {field.name for field in dataclasses.fields(Reading)} - places


def test_health_is_ordered() -> None:
    assert sorted(Health, reverse=True) == [Health.COLLAPSED, Health.DEGRADED, Health.HEALTHY, Health.UNKNOWN]
    assert Health.UNKNOWN < Health.HEALTHY <= Health.HEALTHY
    assert Health.COLLAPSED > Health.DEGRADED >= Health.DEGRADED


def test_words_are_looked_up_by_value_and_explain_themselves() -> None:
    assert Outcome("failed") is Outcome.FAILED
    assert Outcome.INCONCLUSIVE.message == "no usable reading could tell"


@pytest.mark.parametrize("module", ["condition", "duration", "errors", "references"])
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    """Run here, because `--doctest-modules` would import the folder a second time under another name."""
    outcome = doctest.testmod(importlib.import_module(f"collapse_guard.policies.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0

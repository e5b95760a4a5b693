from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Duration


@given(st.integers(0, 10**17), st.sampled_from(["steps", "readings", "epochs"]))
def test_a_duration_survives_being_written_and_read(count: int, unit: Any) -> None:
    assert Duration.parse(str(Duration(count, unit))) == Duration(count, unit)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("50 steps", "50 steps"),
        ("1 steps", "1 step"),
        (" 2epoch ", "2 epochs"),
        (Duration(0, "readings"), "0 readings"),
    ],
)
def test_a_duration_has_one_canonical_spelling(written: object, canonical: str) -> None:
    assert str(Duration.parse(written)) == canonical


@pytest.mark.parametrize(
    ("written", "got", "hint"),
    [
        (100, "100", "Write `100 steps`, or `readings` or `epochs`."),
        (True, "true", "Write a whole number, then steps, readings or epochs."),
        (None, "nothing", "Write a whole number, then steps, readings or epochs."),
        ("1.5 epochs", "'1.5 epochs'", "Write a whole number, then steps, readings or epochs."),
    ],
)
def test_what_is_no_duration_is_refused_with_the_next_move(written: object, got: str, hint: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Duration.parse(written)
    assert str(caught.value) == f"expected a duration with its unit, such as `50 steps`, got {got}. {hint}"


def test_an_unknown_unit_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected the unit steps, readings or epochs, got '5 minutes'\."):
        Duration.parse("5 minutes")

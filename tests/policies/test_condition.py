from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import NUMERIC_FIELDS, Comparison, Condition, Reading
from tests.policies.series import reading

FIELDS = ("perplexity", "usage", "loss")
SIGNS = ("<", "<=", ">", ">=", "==", "!=")
VALUES = (0.0, 1.0, 1.5, 2.0, None, math.nan)

comparisons = st.builds(Comparison, st.sampled_from(FIELDS), st.sampled_from(SIGNS), st.sampled_from((0.0, 1.0, 1.5)))
flat = st.builds(Condition, st.lists(comparisons, min_size=1, max_size=3).map(tuple), st.booleans())
parts = st.lists(st.one_of(comparisons, flat), min_size=1, max_size=4).map(tuple)
conditions = st.builds(Condition, parts, st.booleans())
readings = st.builds(
    lambda perplexity, usage, loss: reading(1, perplexity, usage=usage, loss=loss, ceiling=1.0, perplexity_ratio=1.0),
    st.sampled_from((0.0, 1.0, 1.5, 2.0)),
    st.sampled_from((0.0, 1.0)),
    st.sampled_from(VALUES),
)


def plain_answer(comparison: Comparison, seen: Reading) -> bool | None:
    """What a comparison says, spelled out."""
    value, threshold = getattr(seen, comparison.field), comparison.threshold
    if value is None or math.isnan(value):
        return None
    answers: dict[str, bool] = {
        "<": value < threshold,
        "<=": not value > threshold,
        ">": value > threshold,
        ">=": not value < threshold,
        "==": not value < threshold and not value > threshold,
        "!=": value < threshold or value > threshold,
    }
    return answers[comparison.sign]


def possible_answers(part: Comparison | Condition, seen: Reading) -> set[bool]:
    """Every answer that the condition could have, were each unknown comparison true or false."""
    if isinstance(part, Comparison):
        answer = plain_answer(part, seen)
        return {True, False} if answer is None else {answer}
    completions = itertools.product(*(possible_answers(each, seen) for each in part.parts))
    return {any(each) if part.any else all(each) for each in completions}


@given(conditions, readings)
def test_a_condition_is_known_exactly_where_no_unknown_could_change_it(condition: Condition, seen: Reading) -> None:
    possible = possible_answers(condition, seen)
    assert condition.compile()(seen) is (next(iter(possible)) if len(possible) == 1 else None)


@given(conditions, readings)
def test_the_negation_answers_the_opposite_wherever_the_condition_answers(condition: Condition, seen: Reading) -> None:
    answer = condition.compile()(seen)
    assert condition.negated().compile()(seen) is (None if answer is None else not answer)
    assert condition.negated().negated() == condition


@given(conditions)
def test_a_condition_survives_being_written_and_read(condition: Condition) -> None:
    assert Condition.parse(condition.plain()).plain() == condition.plain()


@given(st.sampled_from(NUMERIC_FIELDS), st.sampled_from(SIGNS), st.floats(allow_nan=False, allow_infinity=False))
def test_every_field_sign_and_number_can_be_written(field: str, sign: str, threshold: float) -> None:
    assert Comparison.parse(f" {field}{sign}  {threshold!r} ") == Comparison(field, sign, threshold)


@pytest.mark.parametrize(
    "written", ["perplexity < 1.5", " perplexity<1.50 ", "perplexity < +15e-1", ["perplexity < 1.5"]]
)
def test_spelling_does_not_matter(written: Any) -> None:
    assert Condition.parse(written).plain() == "perplexity < 1.5"


def test_a_condition_that_is_one_already_is_taken_as_it_is() -> None:
    condition = Condition.parse("usage < 0.5")
    assert Condition.parse(condition) is condition


@pytest.mark.parametrize(
    ("condition", "fields", "explained"),
    [
        ("perplexity < 1.5", {}, "perplexity 1.00 < 1.5"),
        (["perplexity < 1.5", "usage < 0.5"], {}, "perplexity 1.00 < 1.5 and usage 0.25 < 0.5"),
        ({"any": ["perplexity > 5", "usage < 0.5"]}, {}, "usage 0.25 < 0.5"),
        ("finite_fraction < 1", {"finite_fraction": 0.99997}, "finite_fraction 0.99997 < 1"),
        ("usage > 0.2503", {"usage": 0.25031}, "usage 0.25031 > 0.2503"),
        ("loss > 0", {"loss": 3e-12}, "loss 3e-12 > 0"),
        ("loss <= 0", {"loss": 0.0}, "loss 0.00 <= 0"),
        ("loss > 1", {"loss": math.inf}, "loss inf > 1"),
        ("tokens > 5", {}, "tokens 2048 > 5"),
        ("K == 256", {}, "K 256 == 256"),
        (
            [{"any": ["perplexity >= 10", ["usage >= 0.5", "relative_error <= 0.9"]]}, "relative_error < 1"],
            {"perplexity": 95.0, "usage": 0.1, "relative_error": 0.73},
            "perplexity 95.00 >= 10 and relative_error 0.73 < 1",
        ),
        (
            {"any": [["perplexity >= 10", "usage >= 0.5"], ["perplexity < 3", {"any": ["usage < 0.2", "K < 9"]}]]},
            {"perplexity": 2.0, "usage": 0.1},
            "perplexity 2.00 < 3 and usage 0.10 < 0.2",
        ),
    ],
)
def test_an_explanation_shows_numbers_that_bear_it_out(condition: Any, fields: dict[str, Any], explained: str) -> None:
    values: dict[str, Any] = {"usage": 0.25, "perplexity": 1.0} | fields
    seen = reading(1, values.pop("perplexity"), **values)
    assert Condition.parse(condition).explainer()(seen) == explained


def test_a_measurement_names_each_value_once_and_owns_up_to_what_is_unknown() -> None:
    condition = Condition.parse(["perplexity > 1", "perplexity < 5", "loss < 3"])
    assert condition.measure(reading(1, 2.0)) == "perplexity 2.00, loss unknown"
    assert condition.measure(reading(1, 2.0, loss=math.nan)) == "perplexity 2.00, loss nan"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("1.5 >= perplexity", "Put the field on the left: `perplexity <= 1.5`."),
        ("perplexity = 1", "Equality is written `==`."),
        ("perplexity < 1 or usage < 1", "For several comparisons write a list, or `any: [...]` where one is enough."),
        ("perplexity < 1 && usage < 1", "For several comparisons write a list, or `any: [...]` where one is enough."),
        ("1 < usage < 5", "Write one comparison for each side of a range, as a list."),
        ("usage < 5%", "Write a fraction: 0.5, not 50%."),
        ("usage < dead_fraction", "On the right stands a number; no field is compared with another."),
        ("usage ≤ 1", "Write <=, >= or !=."),
        ("usage =< 1", "Write <= or >=."),
        ("loss > nan", "What NaN counts for is said by the rule's `nan:`; a threshold is a number."),
        ("trend(loss, over: 5) > 0", "A trend counts readings: `over: 5 readings`."),
        ("", "Write a field, then < <= > >= == or !=, then a number."),
        (None, "Write a field, then < <= > >= == or !=, then a number."),
        (1.5, "Write a field, then < <= > >= == or !=, then a number."),
    ],
)
def test_a_text_that_is_no_comparison_is_told_what_it_should_be(written: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=r"expected a comparison such as `perplexity < 1.5`") as caught:
        Condition.parse(written)
    assert str(caught.value).endswith(hint)


def test_a_long_number_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match=r"expected a finite number, got 11111111111111111\.\.\.\."):
        Condition.parse("usage < " + "1" * 400)


def test_reading_a_hostile_text_takes_no_time() -> None:
    with pytest.raises(ValueError, match="expected a comparison"):
        Condition.parse("usage < " + "1" * 100_000 + "x")

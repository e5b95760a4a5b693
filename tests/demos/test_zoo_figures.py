"""The zoo: what recovered, fallen and a false alarm mean, in numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from collapse_guard.demos import zoo

CELL = zoo.CellResult("start-far-away", "nothing", 0, 800, "", 0.2, [10.0], [0.1], [[100.0], [40.0], [10.0], [10.0]])
TWIN = replace(CELL, arm="twin", error=0.1, perplexity=[100.0], trace=[[100.0]] * 4)
PATCHES = zoo.SCENARIOS["start-far-away"]


@pytest.mark.parametrize(
    ("change", "is_good"),
    [
        ({}, True),
        ({"error": 0.1099, "perplexity": [90.1]}, True),
        ({"error": 0.1101}, False),
        ({"perplexity": [89.9]}, False),
        ({"error": None}, False),
        ({"perplexity": [100.0, 100.0]}, False),
    ],
)
def test_recovered_means_within_a_tenth_of_the_twin(change: dict[str, object], is_good: bool) -> None:
    assert zoo.is_as_good(replace(TWIN, arm="default", **change), TWIN) is is_good  # type: ignore[arg-type]


def test_a_codebook_falls_in_the_first_window_below_half_of_its_twin_after_the_onset() -> None:
    assert zoo.fell_at(CELL, TWIN, onset=0) == 50
    assert zoo.fell_at(CELL, TWIN, onset=50) == 75
    assert zoo.fell_at(TWIN, TWIN, onset=0) is None
    assert zoo.fell_at(replace(CELL, trace=[[100.0], [], [], []]), TWIN, onset=0) == 50  # shows no code any more


def test_recovery_is_counted_from_the_onset_to_when_it_holds_for_good() -> None:
    healed = replace(CELL, trace=[[10.0], [95.0], [20.0], [91.0]])
    assert zoo.held_since(healed, TWIN, onset=25) == 75
    assert zoo.held_since(CELL, TWIN, onset=0) is None
    assert zoo.held_since(TWIN, TWIN, onset=0) == 25


def a_study(*cells: zoo.CellResult) -> zoo.Pairs:
    return zoo.Pairs(cells, zoo.SCENARIOS, ["own", "fsq"])


def test_a_pair_tells_delay_error_ratio_and_recovery() -> None:
    guarded = replace(CELL, arm="default", error=0.105, perplexity=[95.0], readings=[40, 50, 60, 70, 80])
    guarded = replace(guarded, alerts=[(60, "idle", "info"), (70, "collapsed", "critical"), (80, "astray", "critical")])
    peers = [replace(TWIN, arm="own", error=0.21), replace(TWIN, arm="fsq", error=0.15)]
    (pair,) = a_study(CELL, TWIN, guarded, *peers).of("default")
    assert pair.has_fallen
    told = (pair.fell_at, pair.detected_at, pair.delay, pair.delay_readings)
    assert told == (50, 70, 70, 4)  # from the cause, at step 0; what only informs is no alert
    assert pair.error_ratio == pytest.approx(0.105 / 0.15)
    assert pair.is_recovered
    (lost,) = a_study(CELL, TWIN, replace(guarded, error=None), *peers).of("default")
    assert lost.error_ratio == math.inf  # and not left out, which would flatter


def test_where_doing_nothing_ends_well_there_is_nothing_to_rescue() -> None:
    pairs = a_study(replace(TWIN, arm="nothing"), TWIN, replace(TWIN, arm="default"))
    assert pairs.of("default") == []
    assert pairs.harmless() == [("start-far-away", 0)]


def test_false_alarms_are_those_at_readings_of_healthy_codebooks() -> None:
    control = replace(CELL, scenario="plain-ema", arm="default", readings=[50, 100], codebooks=2)
    control = replace(control, alerts=[(100, "collapsed", "critical"), (100, "starving", "info")])
    jumped = replace(CELL, scenario="encoder-jump", arm="default", readings=[100, 150, 200], codebooks=1)
    jumped = replace(
        jumped, alerts=[(200, "collapsed", "critical")], interventions=[(200, "q", "reset_codes", "failed")]
    )
    assert a_study(control, jumped).healthy("default") == (2 * 2 + 2, 1, 0)


def test_intervals_draw_scenarios_and_seeds() -> None:
    assert zoo.mean_of_pairs({}) is None
    assert zoo.mean_of_pairs({("a", 0): 1.0, ("b", 0): 0.0}) == zoo.Interval(0.5, 0.5, 0.5, 1)
    by_scenario = zoo.mean_of_pairs({(name, seed): float(name == "a") for name in "ab" for seed in range(5)})
    by_seed = zoo.mean_of_pairs({(name, seed): float(seed == 0) for name in "ab" for seed in range(2)})
    assert by_scenario == zoo.Interval(0.5, 0.0, 1.0, 5)  # five seeds that agree say nothing of other scenarios
    assert by_seed == zoo.Interval(0.5, 0.0, 1.0, 2)
    alike = {(name, seed): float(ord(name)) for name in "aaa" for seed in range(3)}
    assert zoo.median_of_pairs(alike) == zoo.Interval(97.0, 97.0, 97.0, 3)
    lost = zoo.median_of_pairs({("a", 0): 1.0, ("b", 0): math.inf, ("a", 1): 1.0, ("b", 1): math.inf, ("c", 0): 2.0})
    assert lost is not None
    assert (lost.value, lost.low, lost.high) == (2.0, 1.0, math.inf)

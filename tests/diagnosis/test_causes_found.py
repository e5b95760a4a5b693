"""Each cause is found where it was built in, ahead of the one that looks most like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from collapse_guard.demos import FAULTS, SOUND, Scenario, run_diagnosis
from collapse_guard.diagnosis import Examiner, Facts, clinic, diagnose
from collapse_guard.policies import Cause, Diagnosis

NEIGHBOURS = {
    Cause.RUNAWAY_CODEBOOK: Cause.MISPLACED_CODEBOOK,
    Cause.SHRINKING_CODEBOOK: Cause.MISPLACED_CODEBOOK,
    Cause.MISPLACED_CODEBOOK: Cause.RUNAWAY_CODEBOOK,
    Cause.METRIC_CHANGED: Cause.CODEBOOK_LEFT_BEHIND,
    Cause.UNFITTED_CODEBOOK: Cause.STARVATION,
    Cause.CODEBOOK_LEFT_BEHIND: Cause.SHRINKING_CODEBOOK,
    Cause.ENCODER_COLLAPSE: Cause.FEW_MODES,
    Cause.STARVATION: Cause.FEW_MODES,
    Cause.FORGETFUL_AVERAGES: Cause.STARVATION,
    Cause.NO_GRADIENT: Cause.ENCODER_COLLAPSE,
    Cause.NON_FINITE: Cause.EXPLODING_GRADIENTS,
    Cause.EXPLODING_GRADIENTS: Cause.CODEBOOK_LEFT_BEHIND,
    Cause.ARTIFICIAL_RESHAPE: Cause.PADDED_TOKENS,
    Cause.STARVED_LEVEL: Cause.STARVATION,
    Cause.PADDED_TOKENS: Cause.FEW_MODES,
    Cause.FEW_MODES: Cause.STARVATION,
    Cause.REPLACEMENT_FAILS: Cause.STARVATION,
}
HOME = [each for each in FAULTS if each.name.endswith("/home")]
LIBRARY = [each for each in FAULTS if each.name.endswith("/library")]


def check(scenario: Scenario, seed: int) -> None:
    assert scenario.cause is not None
    run = run_diagnosis(scenario, seed)
    sure = dict(run.found)
    assert run.found[0][0] == scenario.cause.value
    assert sure[scenario.cause.value] > sure.get(NEIGHBOURS[scenario.cause].value, 0.0)


@pytest.mark.parametrize("scenario", HOME, ids=lambda each: each.name)
def test_a_cause_is_told_from_its_nearest_neighbour(scenario: Scenario) -> None:
    check(scenario, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scenario", LIBRARY, ids=lambda each: each.name)
def test_a_cause_is_told_from_its_nearest_neighbour_in_a_library_too(scenario: Scenario) -> None:
    check(scenario, 3)


def test_every_cause_has_a_scenario_of_each_family_and_a_neighbour() -> None:
    assert set(NEIGHBOURS) == {each.cause for each in LIBRARY}
    without_a_setting = {*NEIGHBOURS} - {Cause.METRIC_CHANGED}  # that would tell, as home-made quantizers are
    assert {each.cause for each in HOME} == without_a_setting


@pytest.mark.parametrize("name", ["four codes/home", "sorted/home", "small batches/home", "shift/home"])
def test_nothing_is_claimed_of_a_sound_run_that_looks_odd(name: str) -> None:
    (scenario,) = [each for each in SOUND if each.name == name]
    run = run_diagnosis(scenario, 3)
    assert run.rule == "inquest"
    assert all(confidence <= 0.5 for _, confidence in run.found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scenario", SOUND, ids=lambda each: each.name)
def test_nothing_is_claimed_of_a_sound_run(scenario: Scenario) -> None:
    assert all(confidence <= 0.5 for _, confidence in run_diagnosis(scenario, 4).found)


def test_a_special_cause_explains_a_general_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def finds(cause: Cause, confidence: float) -> Callable[[Facts], Diagnosis]:
        return lambda facts: Diagnosis(
            cause=cause, confidence=confidence, says="", evidence={}, advice="", line="", remedy=""
        )

    examiners = (
        Examiner((Cause.STARVATION,), finds(Cause.STARVATION, 0.8)),
        Examiner((Cause.NO_GRADIENT,), finds(Cause.NO_GRADIENT, 0.5)),
        Examiner((Cause.FEW_MODES,), finds(Cause.FEW_MODES, 0.6), explains=(Cause.STARVATION,)),
    )
    found: list[list[tuple[Cause, float]]] = []

    def asked(facts: Facts, *_: object) -> tuple[Diagnosis, ...]:
        causes = diagnose(facts, examiners)
        found.append([(each.cause, round(each.confidence, 6)) for each in causes])
        return causes

    monkeypatch.setattr(clinic, "diagnose", asked)
    (scenario,) = [each for each in FAULTS if each.name == "few_modes/home"]
    run_diagnosis(scenario, 0)
    assert found[0] == [(Cause.FEW_MODES, 0.6), (Cause.NO_GRADIENT, 0.5), (Cause.STARVATION, 0.32)]

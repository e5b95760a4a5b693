"""The clinic in a run: asked only when something is to be told, contained when it fails, the same after a resume."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard, read_events
from collapse_guard.demos import FAULTS, Course
from collapse_guard.diagnosis import EXAMINERS, Clinic, Examiner, Facts, clinic
from collapse_guard.policies import Cause, Diagnosis, load_policy, recordings_of_events, replay
from tests.interventions.scenes import modes, plain
from tests.loops import Recorder, digits_model, train

EVERY_STEP: dict[str, Any] = {
    "version": 1,
    "sample": {"every": "10 steps"},
    "rules": [{"name": "low", "when": "perplexity < 1.5", "for": 2, "severity": "critical"}],
}


def test_the_reference_collapse_is_explained_by_its_missing_factor() -> None:
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 40, guard)
    alert = recorder.of("alert")[0].fields
    first = alert["causes"][0]
    assert first["cause"] == "runaway_codebook"
    assert first["confidence"] > 0.9
    assert "the smoothed cluster size is not multiplied back by n" in alert["why"]
    assert first["line"].endswith("self.codebook = self.accumulated / size")
    assert first["evidence"]["table_over_quotient"] == pytest.approx(first["evidence"]["ema_total"], rel=0.05)


def test_nobody_is_asked_at_healthy_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Facts] = []

    def diagnose(facts: Facts, *_: object) -> tuple[Diagnosis, ...]:
        asked.append(facts)
        return ()

    monkeypatch.setattr(clinic, "diagnose", diagnose)
    with Guard(EVERY_STEP, console=False) as guard:
        train(digits_model(repaired=True), 60, guard)
    assert not asked
    with Guard(EVERY_STEP, console=False) as guard:
        train(digits_model(), 40, guard)
    assert len(asked) == 1


@pytest.mark.parametrize("is_counted", [False, True])
def test_steps_of_a_discriminator_are_not_taken_for_a_missing_straight_through(is_counted: bool) -> None:
    """Its step runs the generator with a graph, and no gradient goes back: felt alone, or before the other forward."""
    torch.manual_seed(0)
    model, judge = nn.Sequential(nn.Linear(8, 8), plain()), nn.Linear(8, 1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (model, judge)]
    rule = {"name": "any", "when": "step >= 40", "ladder": ["alert"]}
    recorder = Recorder()
    with Guard({**EVERY_STEP, "rules": [rule]}, console=False, sinks=[recorder]).attach(model, optimizers) as guard:
        for step in range(50):
            for optimizer in reversed(optimizers) if not is_counted else optimizers:
                output, loss, *_ = model(modes(step))
                real = optimizer is optimizers[0]
                (loss + output.square().mean() if real else judge(output.detach()).mean()).backward()
                optimizer.step()
                if real or is_counted:
                    guard.step()
    (alert,) = recorder.of("alert")
    assert Cause.NO_GRADIENT.value not in [each["cause"] for each in alert.fields["causes"]]


def test_codes_that_the_guard_put_back_are_not_taken_for_rewritten_by_the_quantizer() -> None:
    rule = {"name": "any", "when": "step >= 10", "verify": {"within": "10 steps", "success": "usage > 2"},
            "ladder": [{"reset_codes": {"scope": "all"}}]}  # fmt: skip
    recorder = Recorder()
    with Guard({**EVERY_STEP, "rules": [rule]}, console=False, sinks=[recorder]) as guard:
        train(digits_model(repaired=True), 40, guard)
        assert [(event.step, event.fields["undone"]) for event in recorder.of("outcome")] == [(30, [1])]
        marks = guard._shift._clinic._memories["quantizer"].marks
    assert [(mark.step, mark.version) for mark in marks if mark.step >= 10] == [(10, 0), (20, 1), (30, 1), (40, 2)]


def test_an_examiner_that_raises_is_told_once_and_asked_no_more() -> None:
    calls = []

    def raises(facts: Facts) -> Diagnosis | None:
        calls.append(facts)
        raise ZeroDivisionError("no spread")

    recorder = Recorder()
    guard = Guard(
        {**EVERY_STEP, "rules": [{"name": f"low_{step}", "when": f"step >= {step}"} for step in (10, 20, 30)]},
        console=False,
        sinks=[recorder],
    )
    broken = (Examiner((Cause.STARVATION,), raises), *EXAMINERS)
    model = digits_model()
    guard.attach(model)
    guard._shift._clinic = Clinic(guard._fault, broken)
    guard._shift._clinic.begin(guard._watch.probes, model)
    inputs = torch.rand(32, 64)
    for _ in range(30):
        model(inputs)[0].sum().backward()
        guard.step()
    guard.close()
    assert len(calls) == 1
    (fault,) = recorder.of("fault")
    assert fault.fields["reason"] == (
        "looking for starvation raised ZeroDivisionError: no spread; it is not looked for again"
    )
    assert len(recorder.of("alert")) == 3


def test_what_is_remembered_is_plain_and_survives_a_resume() -> None:
    guard, model = Guard(EVERY_STEP, console=False), digits_model(repaired=True)
    train(model, 35, guard)
    saved = io.BytesIO()
    torch.save(guard.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    guard.close()
    other = Guard(EVERY_STEP, console=False).attach(model)
    other.load_state_dict(state)
    old, new = (each._shift._clinic._memories["quantizer"].marks for each in (guard, other))
    assert [mark.step for mark in new] == [mark.step for mark in old] == [0, 10, 20, 30]
    assert all(torch.equal(a.codes, b.codes) and a.perplexity == b.perplexity for a, b in zip(old, new, strict=True))
    other.close()


def test_of_calm_readings_at_each_step_every_tenth_leaves_a_mark_and_one_that_is_asked_why_leaves_its_own() -> None:
    sample = {"every": "1 steps", "when_suspect": "1 steps", "min_tokens": 1}
    policy = {"version": 1, "mode": "observe", "sample": sample, "rules": [{"name": "late", "when": "step >= 25"}]}
    recorder = Recorder()
    with Guard(policy, console=False, sinks=[recorder]) as guard:
        train(digits_model(repaired=True), 25, guard)
        marks = guard._shift._clinic._memories["quantizer"].marks
        assert [mark.step for mark in marks] == [0, 1, 11, 21, 25]
        assert [mark.beat is not None for mark in marks] == [False, False, True, True, False]
    assert [event.step for event in recorder.of("alert")] == [25]


def test_a_run_that_chose_by_cause_is_replayed_exactly(tmp_path: Path) -> None:
    by_cause = {
        **EVERY_STEP,
        "rules": [
            {
                **EVERY_STEP["rules"][0],
                "ladder": [
                    {"decay_commitment": None, "on": {"cause": "encoder_collapse"}},
                    {"fallback_tokenizer": {"backend": "sklearn"}, "on": {"cause": "runaway_codebook"}},
                    "reset_codes",
                ],
            }
        ],
    }
    with Guard(by_cause, console=False, log_dir=tmp_path) as guard:
        train(digits_model(), 80, guard)
        done = [each["action"] for each in guard.interventions]
    records = list(read_events(tmp_path))
    (recording,) = recordings_of_events(records)
    decided = replay(load_policy(by_cause), recording)
    assert done == ["fallback_tokenizer"]
    assert [each.action for each in decided.decisions if each.kind.value == "act"] == done
    assert decided.counts()["alert"] == sum(record["event"] == "alert" for record in records)
    alert = next(record for record in records if record["event"] == "alert")
    assert json.loads(json.dumps(alert["causes"])) == alert["causes"]


def test_data_of_few_modes_withdraws_the_alert_which_is_told_and_counted() -> None:
    (scenario,) = [each for each in FAULTS if each.name == "few_modes/home"]
    course = Course(scenario, 3)
    plain = load_policy("default").model_dump(mode="json", by_alias=True)
    course.run({**plain, "sample": {**plain["sample"], "every": "10 steps"}})
    told = [event for event in course.events if event.event == "withdrawn"]
    assert len(told) == 1
    assert told[0].fields["causes"][0]["cause"] == "few_modes"
    assert not [event for event in course.events if event.event in ("alert", "intervention")]
    (summary,) = [event for event in course.events if event.event == "summary"]
    assert summary.fields["withdrawn"] == {"quantizer": 1}
    assert summary.fields["codebooks"][0]["health"] == "healthy"


BY_METRIC: dict[str, Any] = {
    "version": 1,
    "sample": {"every": "10 steps"},
    "rules": [
        {
            "name": "late",
            "when": "step >= 60",
            "verify": {"within": "10 steps"},
            "ladder": [{"disable_normalisation": None, "on": {"cause": "metric_changed"}}, "alert"],
        }
    ],
}


@pytest.mark.parametrize("is_cosine", [False, True])
def test_a_resume_that_compares_by_angle_is_told_from_one_that_compares_as_before(*, is_cosine: bool) -> None:
    def train_on(guard: Guard, state: dict[str, Any] | None = None, *, is_cosine: bool = False) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=is_cosine))
        optimizer = torch.optim.Adam(model.parameters())
        guard.attach(model, optimizer)
        if state is not None:
            guard.load_state_dict(state)
        for _ in range(40):
            loss = model(torch.randn(64, 4, 8))[2].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step()

    with Guard(BY_METRIC, console=False) as guard:
        train_on(guard)
        state = guard.state_dict()
    recorder = Recorder()
    with Guard(BY_METRIC, console=False, sinks=[recorder]) as guard:
        train_on(guard, state, is_cosine=is_cosine)
        done = [each["action"] for each in guard.interventions]
    (alert,) = recorder.of("alert")
    causes = [each["cause"] for each in alert.fields.get("causes", [])]
    assert ("metric_changed" in causes) is is_cosine
    assert done[0] == ("disable_normalisation" if is_cosine else "alert")
    if is_cosine:
        assert alert.fields["causes"][0]["line"] == "use_cosine_sim=False"
        assert "compared by distance at step 0" in alert.fields["why"]

"""Built cases of evaluation-only collapse: found at the first validation, named, repaired, and put back bit-equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard import Guard
from collapse_guard.demos import (
    EVALUATION_CASES,
    HEALTHY_EVALUATIONS,
    LOOKS,
    CaseQuantizer,
    DigitsAutoencoder,
    EvaluationCase,
    digits_loaders,
    look_at,
    run_evaluation_case,
)
from collapse_guard.evaluation.causes import causes_of
from collapse_guard.evaluation.compare import Comparison, Facts
from tests.loops import Recorder


@pytest.mark.parametrize("case", EVALUATION_CASES, ids=lambda case: case.name)
def test_each_built_case_is_found_at_the_first_validation_with_its_cause(case: EvaluationCase) -> None:
    found = run_evaluation_case(case, seed=0, epochs=2)
    assert (found.validation, found.cause) == (1, case.cause)
    assert found.confidence >= 0.5
    assert found.before < 0.5
    if case.cause == "eval_shift":
        assert found.outcome == "refused"
    elif case.repaired is None:
        assert found.outcome == "recovered"
        assert found.after >= 0.8


@pytest.mark.parametrize(("costlier", "remedy"), [(None, "eval_fix"), (1.2, "eval_fix"), (3.5, "")])
def test_codes_that_serve_well_are_not_drawn_at_random_in_evaluation(costlier: float | None, remedy: str) -> None:
    modes = {"training": 80.0, "evaluating": 20.0, "one_of": {"quantizer": 80.0}, "all_but": {"quantizer": 20.0}}
    facts = Facts(perplexity=20.0, trained=80.0)
    (found,) = causes_of(Comparison(facts=facts, **modes, resampled=0.9, costlier=costlier))  # type: ignore[arg-type]
    assert (found.cause.value, found.remedy) == ("eval_sampling", remedy)
    assert ("3.5 times as far from the latents" in found.advice) is (remedy == "")


@pytest.mark.parametrize("case", HEALTHY_EVALUATIONS, ids=lambda case: case.name)
def test_healthy_models_raise_nothing(case: EvaluationCase) -> None:
    found = run_evaluation_case(case, seed=1, epochs=3)
    assert found.alerts == 0
    assert found.before > 0.5  # after 22 steps, beside the one reading that there was, of the tenth: latents move on
    assert found.after > 0.75


def test_three_looks_tell_a_collapse_in_training_from_one_in_evaluation_alone() -> None:
    reference, random = (look_at(LOOKS[name], epochs=1) for name in list(LOOKS)[0:3:2])
    assert max(reference.training, reference.evaluation) < 3
    assert random.training > 20
    assert random.evaluation < 5
    assert random.quantizer_training > 20


def fixed_by(method: str) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "name": "apart",
        "stage": "eval",
        "when": "eval_to_train < 0.5",
        "ladder": [{"eval_fix": {"method": method}}],
    }
    # What nothing can meet, so that each remedy is undone at the next validation.
    rule |= {"clear": {"when": "eval_to_train > 1000"}, "verify": {"within": "1 readings"}}
    return {"version": 1, "rules": [rule]}


def hooks_of(model: nn.Module) -> list[int]:
    tables = (vars(part) for part in model.modules())
    return [
        len(table) for each in tables for name, table in each.items() if name.endswith("_hooks") and table is not None
    ]


def plain_state(model: nn.Module) -> dict[str, Any]:
    rates = {f"{path}.p": each.p for path, each in model.named_modules() if isinstance(each, nn.Dropout)}
    return {name: value.clone() for name, value in model.state_dict().items()} | rates


def same(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names that differ."""
    return [
        name
        for name, value in one.items()
        if not (torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name])
    ]


def trained(
    before: nn.Module, guard: Guard, quantizer: CaseQuantizer, offers: bool = True
) -> tuple[DigitsAutoencoder, Tensor]:
    torch.manual_seed(0)
    model = DigitsAutoencoder(quantizer, before)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guard.attach(model, optimizer)
    train, test = digits_loaders(0)
    for batch in train:
        if offers:
            guard.offer(batch)
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
        guard.step()
    return model.eval(), next(iter(test))[0]


METHODS: dict[str, tuple[Callable[[], nn.Module], Callable[[], CaseQuantizer]]] = {
    "statistics": (lambda: nn.BatchNorm1d(32, momentum=0.0005), CaseQuantizer),
    "dropout": (lambda: nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.9)), CaseQuantizer),
    "assignment": (nn.Identity, lambda: CaseQuantizer(temperature=4.0)),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_undone_remedy_leaves_no_bit_behind(method: str) -> None:
    before, quantizer = METHODS[method]
    sink = Recorder()
    guard = Guard(fixed_by(method), console=False, sinks=[sink])
    model, images = trained(before(), guard, quantizer())
    hooks, start = hooks_of(model), plain_state(model)

    def validate() -> None:
        with guard.evaluate(), torch.no_grad():
            for part in images.split(60):
                guard.offer((part, part))
                model.loss_of(part)

    validate()
    (act,) = sink.of("intervention")
    assert act.fields["result"] == "applied", act.fields["summary"]
    assert {each["name"] for each in act.fields["manifest"]} >= {
        "statistics": {"encoder.3.running_mean", "encoder.3.running_var", "statistics_before_evaluation"},
        "dropout": {"encoder.3.1.p", "table"},
        "assignment": {"assignment_in_evaluation"},
    }[method]
    changed = same(start, plain_state(model))
    assert bool(changed) is (method != "assignment")
    validate()
    assert [each.fields["outcome"] for each in sink.of("outcome")] == ["failed"]
    assert sink.of("outcome")[0].fields["undone"] == [1]
    assert same(start, plain_state(model)) == []
    assert hooks_of(model) == hooks
    assert not sink.of("fault")


def test_the_remedy_evaluates_as_training_does_and_writes_nothing_and_draws_from_streams_of_its_own() -> None:
    guard = Guard({**fixed_by("assignment")}, console=False)
    model, images = trained(nn.Identity(), guard, CaseQuantizer(temperature=4.0))
    with guard.evaluate(), torch.no_grad():
        for part in images.split(60):
            model.loss_of(part)
    assert guard.interventions[0]["result"] == "applied"
    before, stream = plain_state(model), torch.get_rng_state()
    seen: list[Tensor] = []
    model.quantizer.register_forward_hook(lambda _, __, output: seen.append(output[1].flatten()))
    with torch.no_grad():
        model.loss_of(images)
    assert len(seen[0].unique()) > 50
    assert same(before, plain_state(model)) == []
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(part.training for part in model.modules())
    guard.close()
    with torch.no_grad():
        model.loss_of(images)
    assert len(seen[1].unique()) < 10


def test_what_an_evaluation_wrote_into_the_codebook_is_put_back_by_the_remedy() -> None:
    policy = fixed_by("auto")
    sink = Recorder()
    guard = Guard(policy, console=False, sinks=[sink])
    model, images = trained(nn.BatchNorm1d(32), guard, CaseQuantizer(updates_always=True))
    before = plain_state(model)
    with guard.evaluate(), torch.no_grad():
        for part in images.split(30):
            guard.offer((part, part))
            model.loss_of(part)
    assert sink.of("alert")[0].fields["reading"]["causes"][0]["cause"] == "eval_update"
    assert "what the last evaluation wrote was put back" in sink.of("intervention")[0].fields["summary"]
    assert same(before, plain_state(model)) == []


def test_a_resumed_run_keeps_the_remedy_in_force() -> None:
    policy: Any = fixed_by("assignment") | {"name": "kept"}
    policy["rules"][0] |= {"verify": {"within": "9 readings"}}
    first = Guard(policy, console=False)
    model, images = trained(nn.Identity(), first, CaseQuantizer(temperature=4.0))
    with first.evaluate(), torch.no_grad():
        model.loss_of(images)
    state = first.state_dict()
    first.close()
    second = Guard(policy, console=False)
    second.attach(model, ())
    second.load_state_dict(state)
    seen: list[Tensor] = []
    model.quantizer.register_forward_hook(lambda _, __, output: seen.append(output[1].flatten()))
    with second.evaluate(), torch.no_grad():
        model.loss_of(images)
    assert len(seen[0].unique()) > 50
    second.close()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("statistics", "no batch normalisation that trains runs before the quantizer"),
        ("dropout", "no dropout that is on runs before the quantizer"),
    ],
)
def test_a_method_that_has_nothing_to_act_on_is_refused_with_the_reason(method: str, reason: str) -> None:
    sink = Recorder()
    guard = Guard(fixed_by(method), console=False, sinks=[sink])
    model, images = trained(nn.Identity(), guard, CaseQuantizer(temperature=4.0))
    with guard.evaluate(), torch.no_grad():
        model.loss_of(images)
    assert (sink.of("intervention")[0].fields["result"], sink.of("intervention")[0].fields["summary"]) == (
        "refused",
        reason,
    )


def test_what_runs_before_the_quantizer_and_was_not_seen_is_no_cause_that_is_claimed() -> None:
    sink = Recorder()
    guard = Guard(fixed_by("auto"), console=False, sinks=[sink])
    model, images = trained(nn.BatchNorm1d(32, momentum=0.0005), guard, CaseQuantizer(), offers=False)
    with guard.evaluate(), torch.no_grad():
        for part in images.split(60):
            model.loss_of(part)
    (alert,) = sink.of("alert")
    (cause,) = alert.fields["reading"]["causes"]
    assert cause["confidence"] < 0.5
    assert "that was not seen" in cause["says"]
    assert cause["line"] == "guard.offer(batch)"
    assert sink.of("intervention")[0].fields["result"] == "refused"

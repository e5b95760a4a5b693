"""Injected collapses, against what a plain look at the tables says."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from collapse_guard import Guard, NoQuantizerError
from collapse_guard.cli import app
from collapse_guard.testing import Fired, Injection, inject
from tests import quantizers
from tests.loops import Recorder


def table_of(quantizer: quantizers.Plain) -> torch.Tensor:
    return quantizer.omega


def run(injection: Injection, calls: int = 4, quantizer: nn.Module | None = None) -> tuple[Any, list[Fired]]:
    torch.manual_seed(0)
    model = nn.Sequential(quantizer if quantizer is not None else quantizers.Plain()).train()
    with inject(model, injection) as injector:
        for _ in range(calls):
            model(torch.randn(4, 6, 8))
    return model[0], injector.fired


def test_scale_makes_all_codes_but_one_a_hundred_times_as_long_as_the_median_was() -> None:
    quantizer, fired = run(Injection("scale", at=3))
    lengths = table_of(quantizer).norm(dim=-1)
    assert fired == [Fired(3, "0", "scale")]
    assert torch.allclose(lengths[1:], lengths[1].expand(15))
    assert 30 < float(lengths[1] / lengths[0]) < 1000
    assert torch.allclose(quantizer.alpha[1:], quantizer.omega[1:] * quantizer.rho[1:, None], rtol=1e-4)


def test_a_point_mass_is_one_vector_k_times() -> None:
    quantizer, _ = run(Injection("point_mass", at=3))
    assert len(table_of(quantizer).unique(dim=0)) == 1


def test_nan_and_starve_take_their_share_of_the_codes() -> None:
    quantizer, _ = run(Injection("nan", at=3, strength=0.25))
    assert int(table_of(quantizer).isnan().any(dim=-1).sum()) == 4
    quantizer, _ = run(Injection("starve", at=3))
    codes = quantizer.eval()(torch.randn(64, 8))[2]
    assert int(codes.max()) < 4


def test_noise_moves_every_code_and_only_by_a_stream_of_its_own() -> None:
    quiet, _ = run(Injection("noise", at=99))
    before = torch.random.get_rng_state()
    noisy, _ = run(Injection("noise", at=3))
    assert torch.equal(before, torch.random.get_rng_state())
    again, _ = run(Injection("noise", at=3))
    assert bool((table_of(quiet) != table_of(noisy)).any(dim=-1).all())
    assert torch.equal(table_of(noisy), table_of(again))


def test_a_frozen_codebook_no_longer_follows() -> None:
    still, fired = run(Injection("freeze"))
    torch.manual_seed(0)
    assert torch.equal(table_of(still), quantizers.Plain().omega)
    assert len(fired) == 4
    held, _ = run(Injection("freeze", until=3))
    assert not torch.equal(table_of(held), table_of(still))


def test_a_frozen_learnable_codebook_gets_no_gradient() -> None:
    quantizer = quantizers.Learnable()
    model = nn.Sequential(quantizer).train()
    with inject(model, Injection("freeze", until=1)):
        for grads in (0.0, 1.0):
            model.zero_grad()
            model(torch.randn(4, 8))[1].backward()
            gradient = quantizer.embedding.weight.grad
            assert gradient is not None
            assert bool(gradient.abs().sum() > 0) is bool(grads)


@pytest.mark.parametrize(("schedule", "expected"), [
    ({"at": 1}, [1]),
    ({"at": 1, "until": 4}, [1, 2, 3]),
    ({"at": 1, "until": 6, "every": 2}, [1, 3, 5]),
])  # fmt: skip
def test_the_schedule_counts_training_forwards(schedule: dict[str, Any], expected: list[int]) -> None:
    _, fired = run(Injection("noise", **schedule), 7)
    assert [each.call for each in fired] == expected


def test_evaluation_and_recomputed_forwards_do_not_count() -> None:
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(quantizers.Plain()).train()
    with inject(model, Injection("noise", at=1)) as injector:
        model.eval()(torch.randn(2, 8))
        x = torch.randn(2, 8, requires_grad=True)
        checkpoint(lambda y: model.train()(y)[0], x, use_reentrant=False).sum().backward()
        assert injector.fired == []
        model(x)
        assert len(injector.fired) == 1


def test_what_cannot_be_injected_is_refused_with_the_reason() -> None:
    from vector_quantize_pytorch import FSQ, VectorQuantize

    for quantizer, kind, why in (
        (FSQ([5, 4, 3]), "noise", "noise cannot be injected into 0"),
        (VectorQuantize(dim=8, codebook_size=16, use_cosine_sim=True), "scale", "compared by angle"),
    ):
        with pytest.raises(ValueError, match=why), inject(nn.Sequential(quantizer), Injection(kind)):  # type: ignore[arg-type]
            pass
    with (
        pytest.raises(ValueError, match=r"expected a codebook for \('deep',\), got 0"),
        inject(nn.Sequential(quantizers.Plain()), Injection("noise", codebooks=("deep",))),
    ):
        pass
    with pytest.raises(NoQuantizerError), inject(nn.Linear(2, 2), Injection("noise")):
        pass


@pytest.mark.parametrize("fields", [
    {"kind": "explode"}, {"kind": "noise", "at": -1}, {"kind": "noise", "at": 3, "until": 3},
    {"kind": "noise", "every": 0},
    {"kind": "freeze", "strength": 1.0}, {"kind": "nan", "strength": 2.0}, {"kind": "scale", "strength": 0.0},
])  # fmt: skip
def test_an_injection_that_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Injection(**fields)


def test_afterwards_the_model_is_as_it_was_and_its_copies_are_never_spoilt() -> None:
    model = nn.Sequential(quantizers.Plain()).train()
    before = type(model[0])
    with inject(model, Injection("point_mass", until=99)):
        twin = copy.deepcopy(model)
        twin(torch.randn(8, 8))
        assert len(table_of(cast(quantizers.Plain, twin[0])).unique(dim=0)) == 16
    assert type(model[0]) is before
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("guard_first", [True, False])
def test_a_guard_keeps_a_broken_update_out_whoever_came_first(guard_first: bool) -> None:
    from collapse_guard.testing.rehearsal import RehearsalModel

    torch.manual_seed(0)
    model, recorder = RehearsalModel(32).train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    centres = 3 * torch.randn(24, 16)
    injecting = inject(model, Injection("point_mass", at=60, until=10_000))
    with Guard("default", console=False, sinks=[recorder]) as guard:
        if guard_first:
            guard.attach(model, optimizer)
        with injecting as injector:
            if not guard_first:
                guard.attach(model, optimizer)
            for _ in range(260):
                loss, _ = model(centres[torch.randint(24, (256,))] + 0.1 * torch.randn(256, 16))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                guard.step(loss=loss.detach())
    assert len(injector.fired) == 200
    assert [event.fields["action"] for event in recorder.of("intervention")] == ["reset_codes", "fallback_tokenizer"]
    assert [event.fields["outcome"] for event in recorder.of("outcome")] == ["failed", "recovered"]
    assert recorder.of("fault") == []


def test_rehearse_says_what_a_policy_did_and_exits_accordingly(tmp_path: Any) -> None:
    def told(*arguments: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, ["rehearse", *arguments, "--format", "json"])
        return done.exit_code, json.loads(done.output)["rehearsals"] if done.exit_code < 2 else done.output

    short = ("--steps", "320", "--at", "100", "--codes", "32")
    code, (calm, broken) = told("default", "--inject", "none", "--inject", "scale", *short)
    assert (code, calm["verdict"], calm["interventions"]) == (0, "no harm was done", [])
    assert [each["action"] for each in broken["interventions"]] == ["reset_codes", "fallback_tokenizer"]
    assert broken["perplexity"]["lowest"] < 1.5 < 10 < broken["perplexity"]["last"]
    blind = tmp_path / "blind.yaml"
    blind.write_text("version: 1\nname: blind\nrules:\n  - {name: low, when: perplexity < 0.5}\n")
    code, (missed,) = told(str(blind), "--inject", "scale", *short)
    assert (code, missed["verdict"]) == (1, "NOT SEEN")
    assert told("nothing")[0] == 2
    assert told("default", "--steps", "50", "--at", "60")[0] == 2

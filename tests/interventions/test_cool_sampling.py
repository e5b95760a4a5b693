"""`cool_sampling` on quantizers of vector-quantize-pytorch that draw their codes at random in training."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import Guard, discover
from collapse_guard.interventions import Site, find_intervention, ladders_on
from collapse_guard.policies import CoolSampling, load_policy
from collapse_guard.probe import Probe
from collapse_guard.sums import Sums, sum_up
from collapse_guard.window import Window
from tests.loops import Recorder, policy_of

D, K = 8, 16
HOT: dict[str, Any] = {
    "name": "hot",
    "when": "sampling_ratio > 1.25",
    "for": 2,
    "clear": {"when": "sampling_ratio < 1.1", "for": 1},
    "verify": {"within": "10 steps"},
    "ladder": [{"cool_sampling": {"factor": 0.1}, "repeat": 3}],
}


def quantizer(kind: str = "one", *, temperature: float = 1.0, **options: Any) -> Any:
    torch.manual_seed(0)
    made = {"dim": D, "codebook_size": K, "decay": 0.95, "kmeans_init": True, "stochastic_sample_codes": True}
    made |= {"sample_codebook_temp": temperature} | options
    return ResidualVQ(num_quantizers=2, **made) if kind == "levels" else VectorQuantize(**made)


def batch(step: int) -> Tensor:
    return torch.randn(4, 32, D, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, guard: Guard, steps: int, **call: Any) -> None:
    for _ in range(steps):
        model(batch(guard.steps), **call)
        guard.step()


def guarded(model: nn.Module, **rule: Any) -> tuple[Guard, Recorder]:
    recorder = Recorder()
    return Guard(policy_of({**HOT, **rule}), console=False, sinks=[recorder]).attach(model), recorder


def temperatures(model: Any) -> list[float]:
    layers: Any = model.layers if isinstance(model, ResidualVQ) else [model]
    return [each._codebook.sample_codebook_temp for each in layers]


def fail(error: Exception) -> None:
    raise error


def ratios(recorder: Recorder) -> list[float | None]:
    return [event.fields["sampling_ratio"] for event in recorder.of("reading")]


# What is seen


@pytest.mark.parametrize("is_cosine", [False, True])
def test_the_ratio_is_that_of_the_last_forwards_by_a_plain_loop(is_cosine: bool) -> None:
    model: Any = quantizer(use_cosine_sim=is_cosine, temperature=1.0 if not is_cosine else 0.3)
    (view,) = discover(model).views
    probe = Probe(view, seed=0, on_error=fail)
    probe.install()
    seen = []
    for step in range(6):
        x = batch(step)
        codes = model(x)[1].reshape(-1)
        latents = x.reshape(-1, D)
        seen.append((torch.nn.functional.normalize(latents, dim=-1) if is_cosine else latents, codes))
    probe.remove()
    table, given, nearest = model.codebook.double(), 0.0, 0.0
    for latents, codes in seen[-2:]:  # 128 tokens each: the last 256
        for latent, code in zip(latents.double(), codes.tolist(), strict=True):
            given += float((latent - table[code]).square().sum())
            nearest += float((latent - table).square().sum(dim=-1).min())
    assert sum_up(probe.window, view).drawn == pytest.approx([given, nearest], rel=1e-4)
    assert given > 1.25 * nearest


def test_few_tokens_a_forward_are_only_those_of_the_last_four() -> None:
    model: Any = quantizer(kmeans_init=False)
    (view,) = discover(model).views
    window = Window(K, D)
    for step in range(10):
        window.add(torch.zeros(8, dtype=torch.int64), torch.full((8, D), float(step)))
    expected = sum(
        8 * float((torch.full((D,), float(step)) - view.codebook()[0]).square().sum()) for step in range(6, 10)
    )
    assert sum_up(window, view).drawn[0] == pytest.approx(expected, rel=1e-4)


def test_what_is_no_token_or_not_finite_is_left_out_and_ranks_add_up() -> None:
    model = quantizer(kmeans_init=False)
    (view,) = discover(model).views
    window, odd = Window(K, D), Window(K, D)
    codes, latents = torch.arange(12) % K, torch.randn(12, D)
    window.add(codes, latents)
    spoiled = torch.cat([latents, torch.full((2, D), float("nan")), torch.ones(3, D)])
    odd.add(torch.cat([codes, torch.tensor([0, 1, -1, -1, K])]), spoiled)
    alone, other = sum_up(window, view, size=2), sum_up(odd, view, size=2)
    assert other.drawn == pytest.approx(alone.drawn, rel=1e-5)
    packed = alone.pack(0, 2) + other.pack(1, 2)
    assert Sums.unpack(packed, K, D, 2).drawn == pytest.approx(2 * alone.drawn, rel=1e-5)


def test_a_quantizer_that_draws_nothing_is_not_asked() -> None:
    for model in (quantizer(stochastic_sample_codes=False), quantizer(temperature=0.0)):
        (view,) = discover(model).views
        assert view.temperature is None
        window = Window(K, D)
        window.add(torch.arange(12) % K, torch.randn(12, D))
        assert (sum_up(window, view).drawn == np.zeros(2)).all()


def test_nothing_is_drawn_in_evaluation_so_that_nothing_is_said_of_it() -> None:
    model = quantizer()
    guard, recorder = guarded(model, ladder=[])
    with guard:
        train(model, guard, 5)
        model.eval()
        with guard.evaluate():
            model(batch(0))
    assert [(event.fields["stage"], event.fields["sampling_ratio"] is None) for event in recorder.of("reading")] == [
        ("train", False),
        ("eval", True),
    ]


# What is done


def test_it_is_cooled_until_near_codes_are_drawn_and_the_run_ends_with_what_is_in_force() -> None:
    model = quantizer()
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 40)
        assert [each["result"] for each in guard.interventions] == ["recovered"]
        assert not recorder.of("fault")
    assert temperatures(model) == [0.1]
    seen = [each for each in ratios(recorder) if each is not None]
    assert min(seen[:2]) > 1.25
    assert seen[-1] < 1.1
    (act,) = recorder.of("intervention")
    assert "sampling temperature 1 -> 0.1" in str(act.fields["summary"])
    assert act.fields["manifest"] == [{"name": "sampling_temperature", "before": 1.0, "after": 0.1}]
    (summary,) = recorder.of("summary")
    assert "sampling_temperature is 0.1, 1 before" in str(summary.fields)


def test_a_second_try_goes_on_where_the_first_one_stands_and_levels_are_cooled_by_themselves() -> None:
    model = quantizer("levels", temperature=10.0)
    guard, recorder = guarded(model)
    with guard:
        train(model, guard, 80)
        assert not recorder.of("fault")
    assert all(each <= 0.1 + 1e-9 for each in temperatures(model))
    assert all(event.fields["sampling_ratio"] < 1.1 for event in recorder.of("reading")[-2:])


def test_a_temperature_that_the_loop_gives_itself_wins_and_all_tries_are_undone() -> None:
    model = quantizer()
    guard, _ = guarded(model)
    with guard:
        train(model, guard, 80, sample_codebook_temp=1.0)
        assert [(each["result"], each["undone"]) for each in guard.interventions] == 3 * [("failed", True)]
    assert temperatures(model) == [1.0]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_resumed_run_has_the_temperature_and_can_still_undo_it(is_open: bool) -> None:
    ladder = [{"cool_sampling": {"factor": 0.1}}]
    verify = {"within": "20 steps", **({"success": "perplexity > 1000"} if is_open else {})}
    model = quantizer()
    guard, _ = guarded(model, verify=verify, ladder=ladder)
    with guard:
        train(model, guard, 13 if is_open else 40)
        kept = io.BytesIO()
        torch.save({"model": model.state_dict(), "guard": guard.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    model = quantizer()
    model.load_state_dict(state["model"])
    guard, recorder = guarded(model, verify=verify, ladder=ladder)
    with guard:
        guard.load_state_dict(state["guard"])
        assert temperatures(model) == [0.1]
        train(model, guard, 30)
        assert temperatures(model) == ([1.0] if is_open else [0.1])
        assert not recorder.of("fault")


def test_it_is_refused_with_the_reason_and_nobody_misses_it_where_nothing_is_drawn() -> None:
    def refused(model: nn.Module) -> str | None:
        (view,) = discover(nn.ModuleDict({"vq": model})).views
        site = Site(view, Window(view.K, view.D), [], np.zeros(view.K), seed=1)
        if view.temperature is not None and view.name == "vq":
            assert find_intervention("cool_sampling")(CoolSampling(), site).refusal() is None
            view.temperature.set(0.0)
        return find_intervention("cool_sampling")(CoolSampling(), site).refusal()

    assert refused(quantizer()) == "nothing is drawn: the temperature is 0"
    still = quantizer(stochastic_sample_codes=False)
    assert refused(still) == "this quantizer draws no codes at random"
    soft = refused(quantizer(straight_through=True, rotation_trick=False))
    assert soft is not None
    assert "gradients go through the softmax" in soft
    (ladder,) = ladders_on(load_policy(policy_of(HOT)), discover(still).views)
    assert ladder.powerless_on == ()

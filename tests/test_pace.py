"""Which steps are recorded: the last ones of a calm window, and every step where anything is in doubt."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import Guard, Reading, pace
from collapse_guard.ceiling import perplexity_ceiling
from collapse_guard.pace import Pace
from collapse_guard.statistics import perplexity
from collapse_guard.testing import Recorder
from collapse_guard.window import Window
from tests.crew import Crew
from tests.loops import digits_model, train
from tests.policies import series as policies

K, D, N = 16, 8, 512
POLICY: dict[str, Any] = {
    "version": 1,
    "sample": {"every": "50 steps", "when_suspect": "10 steps", "min_tokens": 64},
    "rules": [{"name": "collapsed", "when": "perplexity < 3", "for": 2}],
}


class Model(nn.Module):
    """Latents in 12 clusters, and a quantizer that follows them by its own averages."""

    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.centres = torch.randn(12, D)
        self.scale = nn.Parameter(torch.ones(1))
        self.quantizer: nn.Module = (
            VectorQuantize(D, K) if levels == 1 else ResidualVQ(dim=D, codebook_size=K, num_quantizers=levels)
        )
        self.codes: list[Tensor] = []

    def forward(self, step: int, n: int = N) -> Tensor:
        stream = torch.Generator().manual_seed(step)
        latents = self.centres[torch.randint(12, (n,), generator=stream)]
        latents = (latents + 0.1 * torch.randn(n, D, generator=stream)) * self.scale
        quantised, codes, _ = self.quantizer(latents.unsqueeze(0))
        self.codes.append(codes.flatten())
        loss: Tensor = (quantised - latents).square().mean()
        return loss


class Run:
    """A guarded run, in which it is noted at which steps how many forwards were recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: Any = POLICY, levels: int = 1) -> None:
        self.model, self.recorder, self.step = Model(levels).train(), Recorder(), 0
        self.recorded: list[int] = []
        add = Window.add

        def noted(window: Window, *args: Any, **kwargs: Any) -> None:
            self.recorded.append(self.step + 1)
            add(window, *args, **kwargs)

        monkeypatch.setattr(Window, "add", noted)
        self.guard = self.guarded(policy)

    def guarded(self, policy: Any = POLICY) -> Guard:
        return Guard(policy, console=False, sinks=[self.recorder]).attach(self.model)

    def go(self, steps: int, forward: Callable[[int], None] | None = None) -> list[Reading]:
        """Train for some steps; return the readings that were taken at them, of the first codebook."""
        readings = []
        for _ in range(steps):
            if forward is None:
                self.model(self.step).backward()
            else:
                forward(self.step)
            self.guard.step()
            self.step += 1
            reading = next(iter(self.guard.readings.values()), None)
            if reading is not None and reading.step == self.step:
                readings.append(reading)
        return readings

    def during(self, first: int, last: int) -> list[int]:
        return [step for step in self.recorded if first <= step <= last]


def test_of_a_calm_window_the_last_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    readings = run.go(160)
    assert [each.step for each in readings] == [10, 60, 110, 160]
    assert run.during(1, 10) == list(range(1, 11))  # nothing was read before
    for first, reading in zip((11, 61, 111), readings[1:], strict=True):
        assert run.during(first, reading.step) == list(range(reading.step - 9, reading.step + 1))
        assert reading.tokens == N * 10


def test_its_perplexity_is_that_of_all_steps_within_what_sampling_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    *_, reading = run.go(110)
    counts = torch.bincount(torch.cat(run.model.codes[60:]), minlength=K)
    assert int(counts.sum()) == 50 * N > 4 * reading.tokens
    # The entropy of n tokens has a standard deviation of sqrt(Var[ln p] / n), here below 0.01.
    assert reading.perplexity == pytest.approx(perplexity(counts), rel=0.03)
    ratio = perplexity(counts) / perplexity_ceiling(50 * N, K)
    assert reading.perplexity_ratio == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize(("at", "all_recorded", "last_recorded"), [(65, 120, 120), (100, 170, 120), (102, 170, 120)])
def test_a_collapse_is_alerted_no_later_than_if_all_steps_were_recorded(
    monkeypatch: pytest.MonkeyPatch, at: int, all_recorded: int, last_recorded: int
) -> None:
    alerts = []
    for per_code in (16, 10**6):
        with monkeypatch.context() as patch:
            patch.setattr(pace, "_TOKENS_PER_CODE", per_code)
            run = Run(patch)
            run.go(at)
            with torch.no_grad():
                run.model.scale.zero_()
            run.go(180 - at)
            assert (len(run.during(11, 60)) == 50) is (per_code > 16)
            alerts.append([event.step for event in run.recorder.of("alert")])
            (first,) = alerts[-1]
            assert run.during(first - 9, first) == list(range(first - 9, first + 1))  # suspect
    assert alerts == [[last_recorded], [all_recorded]]


@pytest.mark.parametrize("cut", [7, 33, 87, 110])
def test_a_resumed_run_records_the_same_steps_and_reads_the_same(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    with monkeypatch.context() as patch:
        whole = Run(patch)
        expected = whole.go(160)
    run = Run(monkeypatch)
    readings = run.go(cut)
    file = io.BytesIO()
    torch.save(run.guard.state_dict(), file)
    run.guard.close()
    run.guard = run.guarded()
    run.guard.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert readings + run.go(160 - cut) == expected
    assert run.recorded == whole.recorded


def test_a_state_from_before_there_was_a_pace_has_every_step_recorded_until_the_next_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch)
    run.go(30)
    state = run.guard.state_dict()
    del state["pace"]
    run.guard.close()
    run.guard = run.guarded()
    run.guard.load_state_dict(state)
    run.go(80)
    assert run.during(31, 60) == list(range(31, 61))
    assert len(run.during(61, 110)) <= 12


@pytest.mark.parametrize(("n", "least", "most"), [(4, 50, 50), (8, 32, 36), (40, 10, 12)])
def test_as_many_steps_are_recorded_as_give_enough_tokens(
    monkeypatch: pytest.MonkeyPatch, n: int, least: int, most: int
) -> None:
    run = Run(monkeypatch, POLICY | {"sample": {"every": "50 steps", "when_suspect": "10 steps", "min_tokens": 32}})
    *_, reading = run.go(110, lambda step: run.model(step, n).backward())
    assert least <= len(run.during(61, 110)) <= most
    assert reading.tokens >= min(50 * n, 16 * K)


def test_all_forwards_of_a_step_are_recorded_or_none_and_all_levels_see_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, levels=3)

    def accumulate(step: int) -> None:
        for part in range(2):
            run.model(2 * step + part).backward()

    run.go(110, accumulate)
    steps = run.during(61, 110)
    assert 10 <= len(set(steps)) <= 12
    assert all(steps.count(step) == 2 * 3 for step in steps)
    assert {reading.tokens for reading in run.guard.readings.values()} == {2 * N * len(set(steps))}


@pytest.mark.parametrize("odd", [0, 1])
def test_a_codebook_that_is_called_in_every_second_step_is_recorded_as_often_as_any_other(
    monkeypatch: pytest.MonkeyPatch, odd: int
) -> None:
    run = Run(monkeypatch)
    run.go(310, lambda step: run.model(step).backward() if step % 2 == odd else None)
    assert 22 <= len(run.during(61, 310)) <= 32  # of 125 forwards, as many as of any other: a fifth


def test_the_pulse_is_felt_and_evaluation_counted_in_full_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.go(63)
    (probe,) = run.guard._watch.probes.values()
    assert probe.rests
    before = len(run.recorded)
    with run.guard.evaluate():
        run.model.eval()
        for step in range(5):
            run.model(step)
    run.model.train()
    assert len(run.recorded) == before + 5
    assert run.recorder.of("reading")[-1].fields["tokens"] == 5 * N
    run.go(47)
    (marks,) = run.guard.state_dict()["clinic"]["memories"].values()
    assert [(mark["step"], mark["beat"]["arrived"]) for mark in marks[-2:]] == [(60, 1.0), (110, 1.0)]


def test_what_goes_into_a_graph_is_recorded_whatever_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.go(64)
    assert run.recorded[-1] == 60
    monkeypatch.setattr("collapse_guard.probe.is_capturing", lambda: True)
    run.go(1)
    assert run.recorded[-1] == 65


def test_while_the_guard_keeps_a_codebook_up_every_step_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    add = Window.add
    guard = Guard("default", console=False)

    def noted(window: Window, *args: Any, **kwargs: Any) -> None:
        recorded.append(guard.steps + 1)
        add(window, *args, **kwargs)

    monkeypatch.setattr(Window, "add", noted)
    with guard:
        train(digits_model(), 260, guard)
        assert not guard._shift.engine.is_suspect
        assert [each["action"] for each in guard._shift.ledger.in_force()] == ["fallback_tokenizer"]
    assert recorded == list(range(1, 261))


def reading(tokens: int) -> Reading:
    return policies.reading(10, K=K, D=D, tokens=tokens)


@pytest.mark.parametrize(
    ("tokens", "min_tokens", "has_all", "steps"),
    [
        ([5120], 64, True, 10),
        ([160], 64, True, 16),  # 16 a step: 256 tokens want 16 steps
        ([160], 200, True, 25),  # twice 200
        ([5120, 80], 64, True, 32),  # the one that is called least decides
        ([20], 64, True, None),
        ([5120], 64, False, None),
        ([], 64, True, None),
    ],
)
def test_how_many_steps_follows_from_the_last_readings(
    tokens: list[int], min_tokens: int, has_all: bool, steps: int | None
) -> None:
    it = Pace()
    for left in reversed(range(9)):
        assert not it.turn(left, is_calm=False)
    it.note([reading(each) for each in tokens], every=50, min_tokens=min_tokens, has_all=has_all)
    assert it.steps == steps


def test_a_codebook_that_was_missed_gets_more_steps_from_then_on() -> None:
    it = Pace()
    wanted = []
    for has_all in (True, False, True, False, False, True):
        it.note([reading(5120)], every=50, min_tokens=64, has_all=has_all)
        wanted.append(it.steps)
    assert wanted == [10, None, 20, None, None, 40]  # that it shows nothing with all steps recorded is another matter


def test_a_window_that_goes_on_is_not_taken_for_that_of_the_last_steps_alone() -> None:
    it = Pace()
    it.note([reading(40)], every=50, min_tokens=64, has_all=True)  # 40 tokens in one step: too few
    assert it.steps == 10
    for left in reversed(range(9)):
        it.turn(left, is_calm=False)
    it.note([reading(80)], every=50, min_tokens=64, has_all=True)  # 40 more in nine steps
    assert it.steps == 32


def rested(rank: int, size: int) -> list[bool]:
    """Train for some steps on as many tokens as the rank's number says, and return at which steps it rested."""
    guard, model, seen = Guard(POLICY, console=False), Model().train(), []
    with guard.attach(model):
        (probe,) = guard._watch.probes.values()
        for step in range(110):
            seen.append(probe.rests)
            model(step, 4 + 20 * rank).backward()
            guard.step()
        torch.distributed.barrier()
    return seen


def test_all_ranks_record_the_same_steps_whatever_their_own_tokens(crew: Crew) -> None:
    first, second = crew.run(rested, 2)
    assert first == second
    assert 2 * 38 <= sum(first) <= 2 * 40  # 28 tokens a step on both together: 256 want ten steps of each fifty

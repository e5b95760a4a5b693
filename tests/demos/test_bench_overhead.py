"""The overhead bench: that its double counts what waits for a device, and that the guard waits at readings alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from collapse_guard import Guard
from collapse_guard.demos import (
    Costs,
    DeviceLine,
    SmallModel,
    SyncCounter,
    Turns,
    cost_of_guarding,
    count_syncs,
    device_as_markdown,
    mean_of_cycle,
    one_hot_perplexity,
    overhead_as_markdown,
    own_cost,
    time_arms,
    time_callbacks,
    time_models,
)
from collapse_guard.probe import Probe


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: bool((x > 0).any())),
        ("_local_scalar_dense", lambda x: int(x[0])),
        ("cpu", lambda x: x.cpu()),
        ("numpy", lambda x: x.numpy()),
        ("tolist", lambda x: x.tolist()),
        ("to the host", lambda x: x.to("cpu")),
        ("nonzero", lambda x: torch.nonzero(x)),
        ("_unique2", lambda x: torch.unique(x)),
        ("index by mask", lambda x: x[x > 1]),
    ],
)
def test_what_asks_a_device_for_a_value_is_counted(name: str, ask: Callable[[Tensor], object]) -> None:
    with SyncCounter() as syncs:
        ask(torch.arange(4.0))
    assert syncs.counts[name] >= 1


def test_what_only_gives_it_work_is_not_counted() -> None:
    with SyncCounter() as syncs:
        x = torch.arange(4.0)
        y = torch.where(x > 1, x, 0.0)[torch.tensor([0, 1])].sum()
        x.scatter_add_(0, torch.tensor([1]), y.unsqueeze(0))
    assert syncs.total == 0


def test_the_guard_waits_for_no_device_on_steps_without_a_reading() -> None:
    found = count_syncs(every=10, steps=25)
    assert set(found) == {1, 10, 20}  # the first forward checks, once, that codes are in range
    assert found[20]["cpu"] == 2  # one copy for each of the two codebooks


def test_the_one_hot_perplexity_is_the_usual_one() -> None:
    codes = torch.tensor([0, 0, 1, 3])
    assert one_hot_perplexity(codes, 8) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), rel=1e-5)


def test_the_cost_of_a_setting_is_measured_and_told() -> None:
    cost = cost_of_guarding(16, 2, 32, steps=100)
    assert set(cost.seconds) == {1, 10, 50}
    assert cost.bytes > 2 * 4096 * 32 * 4  # the latents of two rings
    assert cost.one_hot is not None
    models = {"tiny": {"plain": 0.01, "guard 1": 0.0103, "guard 10": 0.0102, "guard 50": 0.0101, "one-hot": 0.02}}
    known = Costs(16, 2, 32, {1: 3e-4, 10: 2e-4, 50: 1e-4}, 2e-3, 3 * 2**20)
    page = overhead_as_markdown(models, [known], {"nothing": 0.002, "Guard": 0.00201}, {1: {"cpu": 2}})
    assert "| tiny | 10.00 ms | +3.00% | +2.00% | +1.00% | +100.00% |" in page
    assert "| 16 | 2 | 32 | 300 | 200 | 100 | 2000 | 20 | 3.0 MiB |" in page
    assert "| Guard | 2.01 ms | +0.50% |" in page
    assert "are at steps 1 (2), and at no other" in page


def test_the_steps_of_a_model_are_timed_read_recorded_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[bool]] = {}
    record = Probe._record

    def noted(probe: Probe, *call: Any) -> None:
        seen.setdefault(id(probe), []).append(probe.rests)
        record(probe, *call)

    monkeypatch.setattr(Probe, "_record", noted)
    found = time_models(lambda: SmallModel(16), 16, steps=10)
    assert list(found) == ["plain", "guard 1", "guard 10", "guard 50", "one-hot"]
    assert min(found.values()) > 0
    reads, records, rests = sorted(seen.values(), key=sum)  # two record all of their steps
    assert (any(reads), any(records)) == (False, False)
    assert (len(rests), rests[0]) == (15, False)
    assert sum(rests) >= 12


def test_one_at_a_time_has_the_baton_each_once_in_a_round_and_who_leaves_never_again() -> None:
    turns, lock = Turns("abc"), threading.Lock()
    seen: list[str] = []

    def run(name: str, times: int) -> None:
        for left in reversed(range(times)):
            turns.await_turn(name)
            assert lock.acquire(blocking=False)  # nobody else is at work
            seen.append(name)
            lock.release()
            turns.pass_on(name, leaves=left == 0)

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(run, name, times) for name, times in (("a", 20), ("b", 20), ("c", 5))]
        for each in running:
            each.result()
    rounds = ["".join(seen[at : at + 3]) for at in range(0, 15, 3)]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) > 1  # not always in the same order
    assert all(sorted(seen[at : at + 2]) == list("ab") for at in range(15, 45, 2))


def test_what_is_done_in_one_step_of_fifty_counts_and_what_happens_once_does_not() -> None:
    bursts = ([0.0] * 49 + [5.0]) * 3
    assert mean_of_cycle(bursts) == pytest.approx(0.1)
    assert mean_of_cycle([9.0, *bursts[1:]]) == pytest.approx(0.1)
    assert mean_of_cycle([1.0, 3.0]) == 2.0


def test_trainers_take_turns_step_by_step_under_each_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Guard.step

    def noted(guard: Guard, **said: Any) -> None:
        steps.append(threading.get_ident())
        step(guard, **said)

    monkeypatch.setattr(Guard, "step", noted)
    found = time_callbacks(steps=3, warm=2)
    assert {"nothing", "nothing, again", "CollapseGuard (observe)", "SpikeDetection"} <= set(found)
    assert min(found.values()) > 0
    assert len(steps) == 6  # with the last one, which only ends the one before
    assert set(steps).isdisjoint({threading.get_ident()})


def test_the_section_of_a_gpu_is_measured_and_told() -> None:
    arms = list(time_arms(lambda: SmallModel(16), 16, "cpu", rounds=1))
    assert [each["arm"] for each in arms] == ["plain", "plain again", "one-hot", "guard 1", "guard 10", "guard 50"]
    assert all(each["value"] > 0 for each in arms)
    own = list(own_cost(16, 2, "cpu", rounds=1))
    assert [each["arm"] for each in own] == ["plain", "guard 1", "guard 10", "guard 50", "one-hot"]
    seconds = {"plain": 0.01, "plain again": 0.0101, "one-hot": 0.012, "guard 1": 0.011, "guard 10": 0.0101}
    seconds["guard 50"] = 0.01
    lines = [DeviceLine("card", "2.0", "models", "tiny", arm, value) for arm, value in seconds.items()]
    lines += [DeviceLine("card", "2.0", "own", "16 | 2", arm, 0.01 + value) for arm, value in seconds.items()]
    lines.append(DeviceLine("card", "2.0", "own", "16 | 2", "guard 1", 0.0223, held=3 * 2**20, peak=2**20))
    lines.append(DeviceLine("card", "2.0", "waits", "two", "1", 4.0))
    page = device_as_markdown(lines)
    assert "| tiny | 10.00 ms | +1.0% | +10.0% | +1.0% | +0.0% | +20.0% |" in page
    assert "| 16 | 2 | 2300 | 100 | 0 | 22000 | 3.0 | 1.0 |" in page
    assert "one card, torch 2.0" in page
    assert "at steps 1 (4), and at no" in page

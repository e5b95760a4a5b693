"""`restart_optimizer` and what optimizers remember, on ranks that hold copies of a model, or shards of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from collapse_guard import Event, Guard
from collapse_guard.testing import Recorder
from tests.crew import Crew
from tests.ranks import loops
from tests.ranks.test_acting_together import acts, assert_alike, faults, policy

IN_VAIN = policy(
    {"restart_optimizer": {}}, when="step >= 6", verify={"within": "8 steps", "success": "perplexity > 99"}
)
IN_VAIN["rules"][0] |= {"for": 1, "cooldown": "100 steps"}


def ratios(told: dict[str, Any]) -> list[float | None]:
    return [fields.get("moment_ratio") for _, fields in told["readings"]]


def test_copies_are_restarted_and_put_back_alike_and_read_the_same(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, policy=IN_VAIN, spoil_at=(), steps=24)
    assert_alike(told)
    assert [each[1:] for each in acts(told[0])] == [("restart_optimizer", "applied"), ("restart_optimizer", "failed")]
    assert faults(told[0]) == []
    before, after = ratios(told[0])[:2], ratios(told[0])[2:]
    assert before == [None, None]
    assert all(isinstance(each, float) for each in after)


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return copies of what this rank holds."""
    return [
        (each.to_local() if isinstance(each, DTensor) else each).clone()
        for state in optimizer.state.values()
        for each in state.values()
    ]


class Witness(Recorder):
    """Keeps what is remembered at the alert, before anything is done, and at the outcome, when it is undone."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._optimizer = optimizer
        self.seen: dict[str, list[Tensor]] = {}

    def write(self, event: Event) -> None:
        super().write(event)
        self.seen.setdefault(event.event, moments(self._optimizer))


def by_hand(optimizer: torch.optim.Optimizer) -> float:
    """Return the ratio from whole tensors, gathered from the ranks that hold a shard each."""
    remembered = shown = 0.0
    for state in optimizer.state.values():
        whole = {key: each.full_tensor() if isinstance(each, DTensor) else each for key, each in state.items()}
        steps = float(whole["step"])
        remembered += float(whole["exp_avg_sq"].double().sum()) / (1 - 0.999**steps)
        shown += float(whole["exp_avg"].double().square().sum()) * 19 / (1 - 0.9 ** (2 * steps))
    return math.sqrt(remembered / shown)


def sharded(size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model of which all but the quantizer, which has no parameters, is sharded."""
    torch.manual_seed(0)
    model = loops.Autoencoder(loops.quantizer("ema"))
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, guard: Guard, steps: range, rank: int) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(loops.batch(step, rank)).backward()
        optimizer.step()
        guard.step()


def sharded_run(rank: int, size: int) -> dict[str, Any]:
    model, optimizer = sharded(size)
    witness = Witness(optimizer)
    with Guard(copy.deepcopy(IN_VAIN), console=False, sinks=[witness]).attach(model, optimizer) as guard:
        go_on(model, optimizer, guard, range(6), rank)
        forgotten = all(not each.any() for each in moments(optimizer))
        go_on(model, optimizer, guard, range(6, 10), rank)
        ratio = witness.of("reading")[-1].fields["moment_ratio"], by_hand(optimizer)
        go_on(model, optimizer, guard, range(10, 20), rank)
    same = [torch.equal(*pair) for pair in zip(witness.seen["alert"], witness.seen["outcome"], strict=True)]
    held = [isinstance(state["exp_avg"], DTensor) for state in optimizer.state.values()]
    return loops.told(witness) | {"same": same, "held": held, "forgotten": forgotten, "ratio": ratio}


@pytest.mark.filterwarnings("ignore")
def test_shards_are_restarted_and_put_back_bit_equal_and_summed_over_the_ranks(crew: Crew) -> None:
    told = crew.run(sharded_run, 2)
    assert [told[0][part] for part in ("readings", "story")] == [told[1][part] for part in ("readings", "story")]
    assert [each[1:] for each in acts(told[0])] == [("restart_optimizer", "applied"), ("restart_optimizer", "failed")]
    assert faults(told[0]) == []
    for each in told:
        assert each["forgotten"]
        assert each["held"] == [True] * 4
        assert each["same"] == [True] * 12
        found, hand = each["ratio"]
        assert found == pytest.approx(hand, rel=1e-4)


def resumed(rank: int, size: int, *, file: str) -> dict[str, Any]:
    """Cut a run whose verification is open, and go on in another one with the guard's state of the first rank."""
    model, optimizer = sharded(size)
    with Guard(copy.deepcopy(IN_VAIN), console=False).attach(model, optimizer) as guard:
        go_on(model, optimizer, guard, range(10), rank)
        state = guard.state_dict(together=True)
    if rank == 0:
        torch.save(state, file)
    torch.distributed.barrier()
    recorder = Recorder()
    with Guard(copy.deepcopy(IN_VAIN), console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        guard.load_state_dict(torch.load(file, weights_only=True))
        go_on(model, optimizer, guard, range(10, 20), rank)
        undone = [entry["undone"] for entry in guard.interventions]
    steps = {int(each["step"]) for each in optimizer.state.values()}
    return loops.told(recorder) | {"undone": undone, "steps": steps}


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_says_that_it_cannot_put_shards_back(crew: Crew, tmp_path: Path) -> None:
    told = crew.run(resumed, 2, file=str(tmp_path / "guard.ckpt"))
    for each in told:
        ((_, reason),) = faults(each)
        assert "InterventionError: 8 moments were sharded over the ranks (DTensor)" in reason
        assert each["undone"] == [False]
        assert each["steps"] == {14}

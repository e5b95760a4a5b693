"""FSDP2 on two CPU ranks: a sharded table is refused with a reason; one that is left out is guarded in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional

from collapse_guard import Guard
from collapse_guard.adapters import CodebookView, NoQuantizerError, TensorRef
from collapse_guard.adapters.refs import Derived
from collapse_guard.testing import Recorder
from tests.contract.all_cases import CASES
from tests.contract.case import Case
from tests.crew import Crew
from tests.ranks import loops, trainers
from tests.ranks.test_acting_together import acts, faults
from tests.test_execution import BUSY


class Learnable(nn.Module):
    """A quantizer of the plainest kind: an embedding, searched exactly, moved by its optimizer."""

    def __init__(self, K: int, D: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, D)
        self.beta = 0.25

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = z.reshape(-1, z.shape[-1])
        codes = torch.cdist(flat, self.embedding.weight).argmin(dim=-1)
        found = self.embedding(codes).view_as(z)
        loss = functional.mse_loss(found, z.detach()) + self.beta * functional.mse_loss(z, found.detach())
        return z + (found - z).detach(), codes, loss


def left_out_run(rank: int, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    quantizer = Learnable(16, loops.DIM)
    model = loops.Autoencoder(quantizer)
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model, mesh=mesh, ignored_params=set(quantizer.parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    recorder = Recorder()
    with Guard(dict(loops.POLICY), console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(24):
            if step == 6:
                with torch.no_grad():  # all rows far away: the nearest of them takes every token
                    quantizer.embedding.weight.mul_(0.01).add_(100.0)
            loss = model(loops.batch(step, rank))
            optimizer.zero_grad()
            loss.backward()
            for parameter in quantizer.parameters():
                torch.distributed.all_reduce(parameter.grad)
            optimizer.step()
            guard.step()
    return loops.told(recorder) | {"end": quantizer.embedding.weight.tolist()}


def refused(rank: int, size: int) -> str:
    quantizer = Learnable(16, loops.DIM)
    model = loops.Autoencoder(quantizer)
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    try:
        Guard("default", console=False).attach(model)
    except NoQuantizerError as error:
        return str(error)
    return ""


def spread_run(rank: int, size: int) -> dict[str, Any]:
    """Train with an optimizer that keeps the state of each parameter on one rank only."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns of what it imports

    torch.manual_seed(0)
    quantizer = Learnable(16, loops.DIM)
    model = loops.Autoencoder(quantizer)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=1e-2)
    recorder = Recorder()
    slow = {"name": "slow", "when": "step >= 1", "ladder": [{"lower_lr": {"factor": 0.1}}]}
    policy = dict(loops.POLICY) | {"rules": [*loops.POLICY["rules"], slow]}
    with Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(24):
            if step == 6:
                with torch.no_grad():
                    quantizer.embedding.weight.mul_(0.01).add_(100.0)
            loss = model(loops.batch(step, rank))
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
            optimizer.step()
            guard.step()
    return loops.told(recorder) | {"end": quantizer.embedding.weight.tolist()}


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_that_spreads_its_state_is_told_of_and_what_needs_it_is_refused(crew: Crew) -> None:
    told = crew.run(spread_run, 2)
    assert told[0] == told[1]
    assert ("lower_lr", "refused") in [each[1:] for each in acts(told[0])]
    assert ("reset_codes", "applied") in [each[1:] for each in acts(told[0])]
    (where, reason), *others = faults(told[0])
    assert (where, others) == ("optimizer", [])
    assert reason.startswith("ZeroRedundancyOptimizer spreads its state over the ranks")


@pytest.mark.filterwarnings("ignore")
def test_a_table_that_is_sharded_is_refused_on_every_rank_with_what_to_write(crew: Crew) -> None:
    said = crew.run(refused, 2)
    assert said[0] == said[1]
    assert said[0].endswith("fully_shard(model, ignored_params=set(quantizer.parameters()))")


@pytest.mark.filterwarnings("ignore")
def test_a_codebook_that_is_left_out_of_the_sharding_is_repaired_alike(crew: Crew) -> None:
    told = crew.run(left_out_run, 2)
    assert told[0] == told[1]
    assert [each[1:] for each in acts(told[0])][:1] == [("reset_codes", "applied")]


@pytest.mark.parametrize("kind", ["ema", "learnable"])
def test_under_lightnings_model_parallel_strategy_a_quantizer_that_is_left_out_is_repaired_alike(
    crew: Crew, tmp_path: Path, kind: str
) -> None:
    told = crew.run(trainers.sharded_fit, 2, kind=kind, folder=str(tmp_path))
    assert told[0] == told[1]
    assert [each[1:] for each in acts(told[0])] == [("reset_codes", "applied"), ("reset_codes", "recovered")]
    assert faults(told[0]) == []
    assert told[0]["sharded"] == ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]


OFTEN = {**BUSY, "rules": [{**BUSY["rules"][0], "ladder": [*BUSY["rules"][0]["ladder"], "fallback_tokenizer"]}]}
IN_BRIEF = (
    "encodec VectorQuantization",
    "moshi VectorQuantization",
    "descript-audio-codec VectorQuantize",
    "taming-transformers VectorQuantizer2",
    "transformers ChameleonVQVAEVectorQuantizer",
    "nsvq NSVQ",
    "vector-quantize-pytorch VectorQuantize learnable",
    "vector-quantize-pytorch VectorQuantize bridge",
    "vector-quantize-pytorch SimVQ",
)
"""One case or more of every family of adapters; the others are slow for their number."""


class Scaled(nn.Module):
    """A case's quantizer behind an encoder of one weight, which can be sharded."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.quantizer = case.build()
        self._case = (case,)  # in a tuple: no part of the module's state

    def forward(self, x: Tensor) -> Tensor:
        run = self._case[0].run(self.quantizer, x * self.scale)
        return self.scale.square().sum() + (run.loss if run.loss is not None else 0.0)


def holds_shards(view: CodebookView) -> bool:
    """Whether this rank holds a part only of what the table is, or is computed from."""
    if isinstance(view.table, Derived):
        return any(isinstance(each, DTensor) for each in view.table.maker.parameters())
    ref = view.table if isinstance(view.table, TensorRef) else view.table.sum
    return isinstance(ref.whole(), DTensor)


def local(parameter: Tensor) -> Tensor:
    """Return the part that this rank holds."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def sharded_whole(rank: int, size: int, *, place: int) -> dict[str, Any]:
    """Shard everything, the quantizer too, and train with a guard that acts as often as it can."""
    case = CASES[place]
    torch.manual_seed(0)
    model = Scaled(case).train()
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # nothing but the guard would move a parameter
    recorder = Recorder()
    guard = Guard(OFTEN, console=False, sinks=[recorder], adapters=case.adapters)
    try:
        guard.attach(model, optimizer)
    except NoQuantizerError as error:
        return {"unrecognised": str(error)}
    with guard:
        views = [probe.view for probe in guard._watch.probes.values()]
        held = {view.name: holds_shards(view) for view in views}
        before = [local(parameter).clone() for parameter in model.parameters()]
        for _ in range(12):
            optimizer.zero_grad()
            model(case.batch()).backward()
            optimizer.step()
            guard.step()
        moved = [not torch.equal(old, local(new)) for old, new in zip(before, model.parameters(), strict=True)]
    return loops.told(recorder) | {"held": held, "moved": any(moved)}


def assert_shards_are_left_alone(told: list[dict[str, Any]]) -> None:
    """What lies in parts on the ranks is refused with what to do, by every action, on all of them."""
    first, second = told
    assert first == second
    if "unrecognised" in first:
        assert first["unrecognised"].endswith("fully_shard(model, ignored_params=set(quantizer.parameters()))")
        return
    done = [fields for _, event, fields in first["story"] if event == "intervention"]
    assert done != []
    for fields in done:
        if any(first["held"][name] for name in fields.get("codebooks") or [fields["codebook"]]):
            assert fields["result"] == "refused"
            assert "its table is sharded over the ranks (DTensor)" in fields["summary"]
    if any(first["held"].values()):
        assert {fields["action"] for fields in done} == {"reset_codes", "fallback_tokenizer"}
        assert not first["moved"]
        assert faults(first) == []
        assert len(first["readings"]) >= 6  # codes are counted all the while


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, id=case.id, marks=() if case.id in IN_BRIEF else pytest.mark.slow)
        for place, case in enumerate(CASES)
    ],
)
def test_of_a_quantizer_that_is_sharded_codes_are_counted_and_nothing_is_written(crew: Crew, place: int) -> None:
    assert_shards_are_left_alone(crew.run(sharded_whole, 2, place=place))

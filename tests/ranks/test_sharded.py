"""FSDP2 on two CPU ranks: a sharded table is refused with a reason; one that is left out is guarded in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from collapse_guard import Guard
from collapse_guard.adapters import NoQuantizerError
from collapse_guard.testing import Recorder
from tests.crew import Crew
from tests.ranks import loops
from tests.ranks.test_acting_together import acts


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

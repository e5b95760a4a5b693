"""FSDP2 on two CPU ranks: a sharded table is counted and left alone with a reason; one left out is guarded in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from collapse_guard import Guard
from tests.crew import Crew
from tests.loops import Recorder
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


def sharded_run(rank: int, size: int, *, leave_out: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    quantizer = Learnable(16, loops.DIM)
    model = loops.Autoencoder(quantizer)
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model, mesh=mesh, ignored_params=set(quantizer.parameters()) if leave_out else None)
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
            if leave_out:
                for parameter in quantizer.parameters():
                    torch.distributed.all_reduce(parameter.grad)
            optimizer.step()
            guard.step()
    told = loops.told(recorder)
    weight: Any = quantizer.embedding.weight
    return told | {"end": (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).tolist()}


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_codebook_is_counted_and_every_write_refused_with_the_reason(crew: Crew) -> None:
    told = crew.run(sharded_run, 2, leave_out=False)
    assert told[0] == told[1]
    step, reading = told[0]["readings"][0]
    assert step == 2
    assert reading["tokens"] == 192
    assert reading["perplexity"] > 1
    assert (reading["norm_ratio"], reading["relative_error"], reading["codebook_rank"]) == (None, None, None)
    assert reading["latent_variance"] > 0
    refused = [fields for _, event, fields in told[0]["story"] if event == "intervention"]
    assert {fields["result"] for fields in refused} == {"refused"}
    assert all("its table is sharded over the ranks (DTensor)" in fields["summary"] for fields in refused)


@pytest.mark.filterwarnings("ignore")
def test_a_codebook_that_is_left_out_of_the_sharding_is_repaired_alike(crew: Crew) -> None:
    told = crew.run(sharded_run, 2, leave_out=True)
    assert told[0] == told[1]
    assert [each[1:] for each in acts(told[0])][:1] == [("reset_codes", "applied")]

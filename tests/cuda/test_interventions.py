"""What is written on a CUDA device: consistent, in place, and put back bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard
from collapse_guard.interventions import Site, Transaction, find_intervention
from collapse_guard.policies import (
    DecayCommitment,
    FallbackTokenizer,
    ResetCodes,
    Rollback,
    TakeOverUpdates,
)
from collapse_guard.testing import Recorder

from .scenes import KINDS, D, K, Run, acting, batch, observing

ACTIONS: dict[str, Any] = {
    "reset all, kmeans": ResetCodes(scope="all", source="kmeans"),
    "reset dead, kmeans": ResetCodes(scope="dead", source="kmeans"),
    "reset dead, reservoir": ResetCodes(scope="dead", source="reservoir"),
    "reset dead, distortion": ResetCodes(scope="dead", source="distortion"),
    "fallback": FallbackTokenizer(),
    "decay_commitment": DecayCommitment(),
    "take_over_updates": TakeOverUpdates(),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.usefixtures("deterministic")
def test_undo_puts_every_bit_back(device: torch.device, kind: str, action: str) -> None:
    run = Run(kind, device, observing(1000))
    run.train(3)
    assert run.guard is not None
    probe = next(iter(run.guard._watch.probes.values()))
    counts = np.zeros(probe.view.K, dtype=np.int64)
    counts[:3] = 50
    site = Site(view=probe.view, window=probe.window, optimizers=[run.optimizer], counts=counts, seed=1)
    params = ACTIONS[action]
    intervention = find_intervention(params.action)(params, site)
    if (kind, action) == ("learnable", "decay_commitment"):
        assert "learnable codebook" in str(intervention.refusal())
        return
    assert intervention.refusal() is None
    before = everything(run)
    addresses = {name: tensor.data_ptr() for name, tensor in run.model.state_dict(keep_vars=True).items()}
    transaction = Transaction(intervention.parts())
    assert intervention.apply()
    transaction.check()
    assert transaction.manifest()
    assert probe.view.codebook().device.type == device.type
    assert {name: each.data_ptr() for name, each in run.model.state_dict(keep_vars=True).items()} == addresses
    transaction.undo()
    assert not transaction.manifest()
    after = everything(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def everything(run: Run) -> dict[str, torch.Tensor]:
    """Return copies of all weights, buffers and optimizer moments."""
    found = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for index, state in enumerate(run.optimizer.state.values()):
        found |= {f"{index}.{key}": each.clone() for key, each in state.items() if isinstance(each, torch.Tensor)}
    return found


LADDERS: dict[str, dict[str, Any]] = {
    "reset_codes": {"scope": "all", "source": "kmeans"},
    "reset_codes of dead ones": {"scope": "dead", "source": "distortion"},
    "fallback_tokenizer": {"refit_every": "4 steps"},
    "decay_commitment": {},
    "take_over_updates": {},
    "upkeep": {"every": "4 steps"},
}


@pytest.mark.parametrize("kind", ["ema", "learnable", "residual", "home-made"])
@pytest.mark.parametrize("action", LADDERS)
def test_a_run_goes_on_under_each_intervention(device: torch.device, kind: str, action: str) -> None:
    run = Run(kind, device, acting({action.partition(" ")[0]: LADDERS[action]}))
    run.train(24)
    assert not run.recorder.of("fault")
    assert ("refused" if (kind, action) == ("learnable", "decay_commitment") else "applied") in run.results()
    for view in run.views:
        table = view.codebook()
        assert table.device.type == device.type
        assert bool(table.isfinite().all())
    assert run.guard is not None
    run.guard.close()


class Mixing(nn.Module):
    """Takes positions for features, and pulls no latent towards its code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        self.quantizer = VectorQuantize(dim=D, codebook_size=K, decay=0.9, commitment_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        mixed = self.encoder(x).transpose(1, 2).reshape(x.shape)
        quantised, _, own = self.quantizer(mixed)
        back = quantised.reshape(len(x), D, -1).transpose(1, 2)
        loss: Tensor = functional.mse_loss(back, x) + own.sum()
        return loss


@pytest.mark.parametrize(
    ("when", "action"), [("reshaped == 1", "restore_layout"), ("commitment_weight < 0.02", "raise_commitment")]
)
def test_what_is_done_in_each_forward_is_done_on_the_device(device: torch.device, when: str, action: str) -> None:
    torch.manual_seed(0)
    recorder, model = Recorder(), Mixing().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    policy = acting({action: {}}, every=4)
    policy["rules"][0] |= {"when": when, "clear": {"when": "perplexity > 1000000"}, "verify": {"within": "100 steps"}}
    with Guard(policy, console=False, sinks=[recorder]) as guard:
        guard.attach(model, optimizer)
        for step in range(24):
            optimizer.zero_grad()
            loss = model(batch(step, device))
            loss.backward()
            optimizer.step()
            guard.step()
            if step == 20:
                assert torch.isfinite(loss)
                assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in model.parameters())
    assert not recorder.of("fault")
    assert next(each["action"] for each in guard.interventions) == action
    last = recorder.of("reading")[-1].fields
    assert (last["reshaped"] == 0) is (action == "restore_layout")
    assert (last["commitment_weight"] == 0.25) is (action == "raise_commitment")


@pytest.mark.parametrize("kind", ["ema", "learnable", "home-made"])
def test_a_rolled_back_run_is_as_it_was_when_it_was_healthy(device: torch.device, kind: str) -> None:
    quiet = acting({"rollback": {"every": "1 steps"}}, every=2)
    quiet["rules"][0] |= {"when": "loss > 1000000", "clear": {"when": "loss < 1000000", "for": 1}}
    run = Run(kind, device, quiet)
    run.train(10)
    assert run.guard is not None
    kept = run.guard._shift._snapshots
    assert kept is not None
    assert kept.held is not None
    healthy = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train(1)
    (view,) = run.views
    site = Site(
        view=view,
        window=next(iter(run.guard._watch.probes.values())).window,
        optimizers=[run.optimizer],
        counts=np.ones(view.K, dtype=np.int64),
        seed=1,
        model=run.model,
        views=run.views,
        snapshots=kept,
    )
    intervention = find_intervention("rollback")(Rollback(), site)
    assert intervention.refusal() is None
    transaction = Transaction(intervention.parts())
    before = everything(run)
    intervention.apply()
    assert all(torch.equal(healthy[name], each) for name, each in run.model.state_dict().items())
    transaction.undo()
    after = everything(run)
    assert all(torch.equal(before[name], after[name]) for name in before)

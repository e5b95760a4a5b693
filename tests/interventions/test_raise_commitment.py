"""`raise_commitment` on residuals of vector-quantize-pytorch that were made without: all levels, undone, resumed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import Guard, discover
from collapse_guard.adapters import CodebookView
from collapse_guard.interventions import Site, Transaction, find_intervention
from collapse_guard.policies import RaiseCommitment
from collapse_guard.window import Window
from tests.loops import Recorder, policy_of

D = 8
FIRST = "vq.layers.0"
HELD: dict[str, Any] = {"when": "commitment_weight < 0.02", "clear": {"when": "commitment_weight >= 0.02", "for": 1}}


class Model(nn.Module):
    """An encoder whose loss lets latents grow for ever, and a residual of two levels that holds them or not."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, D)
        made = {"num_quantizers": 2, "codebook_size": 16, "decay": 0.95, "commitment_weight": 0.0, "kmeans_init": True}
        self.vq = ResidualVQ(dim=D, **(made | options))

    def loss(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        loss: Tensor = self.vq(z)[2].sum() - z.norm(dim=-1).mean()
        return loss


def train(model: Model, guard: Guard, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = model.loss(torch.randn(8, 16, D, generator=torch.Generator().manual_seed(guard.steps)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step(loss=loss.detach())


def guarded(rule: dict[str, Any], model: Model, to: float = 1.0) -> tuple[Guard, torch.optim.Optimizer, Recorder]:
    recorder, optimizer = Recorder(), torch.optim.SGD(model.parameters(), lr=0.3)
    policy = policy_of({"name": "outgrown", "for": 1, "ladder": [{"raise_commitment": {"to": to}}], **rule})
    guard = Guard(policy, console=False, sinks=[recorder])
    return guard.attach(model, optimizer), optimizer, recorder


def weights(guard: Guard) -> list[float | None]:
    views = [probe.view for probe in guard._watch.probes.values()]
    return [view.commitment.get() if view.commitment is not None else None for view in views]


def hook_count(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) for each in model.modules())


def site(view: CodebookView, views: Sequence[CodebookView]) -> Site:
    return Site(view=view, window=Window(view.K, view.D), optimizers=(), counts=torch.zeros(view.K).numpy(), seed=1,
                views=views)  # fmt: skip


def test_levels_that_ask_together_get_one_intervention_that_raises_all_of_them() -> None:
    model = Model()
    guard, optimizer, recorder = guarded(HELD, model)
    with guard:
        train(model, guard, optimizer, 40)
        assert weights(guard) == [1.0, 1.0]
        assert {each["attempt"] for each in guard.interventions} == {1}
        assert [(each["codebook"], each["result"]) for each in guard.interventions] == [
            (FIRST, "recovered"),
            ("vq.layers.1", "postponed"),
        ]
        (act,) = recorder.of("intervention")
        assert "0 -> 1, 0 -> 1 of vq.layers.1" in str(act.fields)
        assert "commitment_weight of vq.layers.1" in str(act.fields)
        assert not recorder.of("fault")
    (summary,) = recorder.of("summary")
    assert "commitment_weight is 1, 0 before; commitment_weight of vq.layers.1 is 1, 0 before" in str(summary.fields)
    assert hook_count(model) == 0  # what was added to the loss ends with the guard


def test_a_level_that_asks_alone_raises_the_others_too() -> None:
    model = Model()
    guard, optimizer, _ = guarded({**HELD, "codebooks": "vq.layers.1"}, model)
    with guard:
        train(model, guard, optimizer, 20)
        assert weights(guard) == [1.0, 1.0]
        assert [(each["codebook"], each["result"]) for each in guard.interventions] == [("vq.layers.1", "recovered")]


def test_latents_that_outgrow_their_codes_are_held() -> None:
    norms = []
    for is_guarded in (False, True):
        model = Model()
        rule = HELD if is_guarded else {"when": "step < 0", "ladder": []}
        guard, optimizer, recorder = guarded(rule, model)
        with guard:
            train(model, guard, optimizer, 120)
            norms.append(float(model.encoder(torch.randn(99, D)).detach().norm(dim=-1).mean()))
            assert not recorder.of("fault")
    assert norms[0] > 2 * norms[1]


def test_what_did_not_help_is_undone_at_every_level() -> None:
    model = Model()
    rule = {**HELD, "codebooks": FIRST, "verify": {"within": "10 steps", "success": "perplexity > 1000"}}
    guard, optimizer, _ = guarded(rule, model)
    with guard:
        watched = hook_count(model)
        train(model, guard, optimizer, 8)
        assert weights(guard) == [1.0, 1.0]
        assert hook_count(model) == watched + 4  # of the quantizer and of its search, twice
        train(model, guard, optimizer, 20)
        assert guard.interventions[0]["undone"]
        assert weights(guard) == [0.0, 0.0]
        assert hook_count(model) == watched


@pytest.mark.parametrize("is_open", [True, False])
def test_a_resumed_run_has_the_weights_of_all_levels_and_can_still_undo_them(is_open: bool) -> None:
    success = {"success": "perplexity > 1000"} if is_open else {}
    rule = {**HELD, "codebooks": FIRST, "verify": {"within": "20 steps", **success}}
    model = Model()
    guard, optimizer, _ = guarded(rule, model)
    with guard:
        train(model, guard, optimizer, 10 if is_open else 30)
        assert weights(guard) == [1.0, 1.0]
        kept = io.BytesIO()
        torch.save({"model": model.state_dict(), "guard": guard.state_dict()}, kept)
    kept.seek(0)
    state = torch.load(kept, weights_only=True)
    model = Model()
    model.load_state_dict(state["model"])
    guard, optimizer, recorder = guarded(rule, model)
    with guard:
        guard.load_state_dict(state["guard"])
        assert weights(guard) == [1.0, 1.0]
        train(model, guard, optimizer, 30)
        assert weights(guard) == ([0.0, 0.0] if is_open else [1.0, 1.0])
        assert not recorder.of("fault")


def test_only_levels_below_the_target_are_raised_and_each_gets_back_its_own() -> None:
    model = nn.ModuleDict({"vq": ResidualVQ(dim=D, num_quantizers=3, codebook_size=16, commitment_weight=0.1)})
    levels: Any = model["vq"].layers
    levels[1].commitment_weight = 2
    views = discover(model).views
    raised = find_intervention("raise_commitment")(RaiseCommitment(to=0.5), site(views[2], views))
    transaction = Transaction(raised.parts())
    assert raised.refusal() is None
    assert raised.apply() == "commitment weight 0.1 -> 0.5, 0.1 -> 0.5 of vq.layers.0"
    transaction.check()
    assert [each["name"] for each in transaction.manifest()] == [
        "commitment_weight",
        "commitment_weight of vq.layers.0",
    ]
    assert [each.commitment_weight for each in levels] == [0.5, 2, 0.5]
    transaction.undo()
    assert [each.commitment_weight for each in levels] == [0.1, 2, 0.1]
    assert type(levels[1].commitment_weight) is int


def test_quantizers_that_are_no_levels_of_one_residual_are_left_alone() -> None:
    model = nn.ModuleDict({name: VectorQuantize(dim=D, codebook_size=16, commitment_weight=0.0) for name in "ab"})
    one, other = discover(model).views
    find_intervention("raise_commitment")(RaiseCommitment(), site(one, (one, other))).apply()
    assert one.commitment is not None
    assert other.commitment is not None
    assert (one.commitment.get(), other.commitment.get()) == (0.25, 0.0)


def test_a_quantizer_that_has_no_such_weight_refuses_with_its_reason() -> None:
    module = VectorQuantize(dim=D, codebook_size=16, learnable_codebook=True, ema_update=False)
    (view,) = discover(module).views
    refused = find_intervention("raise_commitment")(RaiseCommitment(), site(view, (view,))).refusal()
    assert refused is not None
    assert "learnable codebook" in refused

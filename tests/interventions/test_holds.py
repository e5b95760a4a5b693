"""What is held within optimizer steps: against plain loops without a guard, with schedulers, closures and scalers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset
from vector_quantize_pytorch import ResidualVQ

from collapse_guard import Guard
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.policies import ClipGradients, FreezeEncoder, LowerLr, RaiseCodebookLr, Substitute
from collapse_guard.window import Window
from tests.interventions.scenes import D, Small, modes, plain
from tests.loops import Recorder, policy_of


def model_with(kind: Callable[..., Optimizer] = Adam, **options: Any) -> tuple[Small, Optimizer]:
    torch.manual_seed(0)
    model = Small(plain()).train()
    model.weights |= {"drift": 1.0}
    groups: Any = [{"params": [model.encoder.weight]}, {"params": [model.encoder.bias], "lr": 0.03}]
    return model, kind(groups, lr=0.01, **options)


def site_of(model: Small, optimizers: list[Optimizer]) -> Site:
    from collapse_guard import discover

    (view,) = discover(model).views
    parameters = list(model.encoder.parameters())
    return Site(view=view, window=Window(view.K, view.D), optimizers=optimizers, counts=np.ones(view.K), seed=0,
                model=model, views=[view], encoder=lambda: parameters)  # fmt: skip


def train(model: Small, optimizer: Optimizer, steps: int, scheduler: LRScheduler | None = None) -> list[float]:
    rates = []
    for step in range(steps):
        loss = model.loss(modes(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 20),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_lowered_rate_is_the_schedules_times_the_factor_and_the_schedule_does_not_notice(schedule: str) -> None:
    alone, plainly = model_with(SGD)
    make = SCHEDULES[schedule]
    held = site_of(model_with(SGD)[0], [])
    model, optimizer = model_with(SGD)
    scheduler, other = make(optimizer), make(plainly)
    lowered = find_intervention("lower_lr")(LowerLr(factor=0.5), site_of(model, [optimizer]))
    assert held.model is not None
    lowered.apply()
    rates = train(model, optimizer, 12, scheduler)
    # The same by hand: half the gradient is half the rate, where an optimizer is plain SGD.
    expected = []
    for step in range(12):
        loss = alone.loss(modes(step))
        plainly.zero_grad()
        (0.5 * loss).backward()
        plainly.step()
        other.step()
        expected.append(float(plainly.param_groups[0]["lr"]))
    assert rates == expected
    torch.testing.assert_close(model.encoder.weight, alone.encoder.weight)
    torch.testing.assert_close(model.encoder.bias, alone.encoder.bias)


def test_tries_in_a_row_multiply_and_each_is_undone_by_itself() -> None:
    model, optimizer = model_with(SGD)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: None)
    place = site_of(model, [optimizer])
    first, second = (find_intervention("lower_lr")(LowerLr(factor=0.1), place) for _ in range(2))
    first.apply()
    second.apply()
    last = optimizer.register_step_pre_hook(lambda it, *_: seen.append([group["lr"] for group in it.param_groups]))
    train(model, optimizer, 1)
    assert seen == [pytest.approx([0.0001, 0.0003])]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.03]
    last.remove()
    second.release()
    optimizer.register_step_pre_hook(lambda it, *_: seen.append([group["lr"] for group in it.param_groups]))
    train(model, optimizer, 1)
    assert seen[1] == pytest.approx([0.001, 0.003])


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_one_parameter_of_a_group_gets_a_rate_of_its_own_and_the_groups_are_as_they_were(
    kind: Callable[..., Optimizer],
) -> None:
    def trained(factor: float | None) -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(D, 4), nn.Linear(4, 1))
        first = module[0]
        assert isinstance(first, nn.Linear)
        own = cast(nn.Parameter, first.weight)
        if factor is None:  # by hand: a group of its own
            rest = [each for each in module.parameters() if each is not first.weight]
            optimizer = kind([{"params": rest}, {"params": [first.weight], "lr": 0.1}], lr=0.01)
        else:
            optimizer = kind(module.parameters(), lr=0.01)
            from collapse_guard.interventions.learning_rate import ScaledRates

            ScaledRates("rate", [optimizer], [own], factor).install()
        for step in range(5):
            optimizer.zero_grad()
            module(modes(step)).square().mean().backward()
            optimizer.step()
        return module, optimizer

    (scaled, optimizer), (by_hand, _) = trained(10.0), trained(None)
    for one, other in zip(scaled.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(optimizer.param_groups) == 1
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == list(map(id, scaled.parameters()))


def test_clipping_equals_torchs_own_and_a_gradient_that_is_not_finite_moves_nothing() -> None:
    model, optimizer = model_with(SGD)
    other, plainly = model_with(SGD)
    find_intervention("clip_gradients")(ClipGradients(max_norm=0.05), site_of(model, [optimizer])).apply()
    train(model, optimizer, 5)
    for step in range(5):
        loss = other.loss(modes(step))
        plainly.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        plainly.step()
    torch.testing.assert_close(model.encoder.weight, other.encoder.weight)
    before = model.encoder.weight.detach().clone()
    optimizer.zero_grad()
    (model.loss(modes(9)) * float("inf")).backward()
    optimizer.step()
    assert torch.equal(model.encoder.weight.detach(), before)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_frozen_encoder_is_moved_neither_by_momentum_nor_by_decay_and_keeps_its_gradients(to_none: bool) -> None:
    model, optimizer = model_with(AdamW, weight_decay=0.1)
    train(model, optimizer, 5)
    frozen = find_intervention("freeze_encoder")(FreezeEncoder(module="encoder"), site_of(model, [optimizer]))
    assert frozen.refusal() is None
    frozen.apply()
    before = [each.detach().clone() for each in model.encoder.parameters()]
    for step in range(5):
        optimizer.zero_grad(set_to_none=to_none)
        model.loss(modes(step)).backward()
        optimizer.step()
        assert all(each.grad is not None for each in model.encoder.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.encoder.parameters(), strict=True))
    frozen.release()
    train(model, optimizer, 1)
    assert not torch.equal(before[0], model.encoder.weight.detach())


class Wrapped(Optimizer):
    """A wrapper as Accelerate's: an optimizer by name, whose own part was never made."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_of_a_wrapped_optimizer_the_one_inside_is_held() -> None:
    model, optimizer = model_with(SGD)
    rule = {"name": "all", "when": "step > 0", "ladder": [{"freeze_encoder": {"module": "encoder"}}]}
    policy = policy_of(rule, every=1, min_tokens=1)
    with Guard(policy, console=False).attach(model, Wrapped(optimizer)) as guard:
        moved = []
        for step in range(3):
            optimizer.zero_grad()
            model.loss(modes(step)).backward()
            before = model.encoder.bias.detach().clone()
            Wrapped(optimizer).step()
            moved.append(not torch.equal(before, model.encoder.bias.detach()))
            guard.step()
        assert moved == [True, False, False]


def test_what_cannot_be_done_is_refused_with_the_reason() -> None:
    model, optimizer = model_with()
    place = site_of(model, [optimizer])
    unknown = find_intervention("freeze_encoder")(FreezeEncoder(module="backbone"), place)
    assert unknown.refusal() == "the model has no module 'backbone'; it has: encoder, quantizer"
    moved = find_intervention("raise_codebook_lr")(RaiseCodebookLr(), place).refusal()
    assert moved == "no optimizer moves the rows of this codebook (ema): it has no learning rate of its own"
    relative = SGD(model.parameters(), lr=0.1)
    relative.param_groups[0]["lr"] = None  # as Adafactor's, which computes its own
    for lower in (LowerLr(), LowerLr(of="encoder")):
        why = find_intervention("lower_lr")(lower, site_of(model, [relative])).refusal()
        assert why == "SGD has no learning rate `lr` that could be scaled"
    whole = site_of(model, [LBFGS([*model.parameters(), nn.Parameter(torch.zeros(1))])])
    for action, rung in (("lower_lr", LowerLr(of="encoder")), ("freeze_encoder", FreezeEncoder())):
        assert "LBFGS moves all its parameters by one direction" in (
            find_intervention(action)(rung, whole).refusal() or ""
        )
    assert find_intervention("lower_lr")(LowerLr(), whole).refusal() is None
    assert find_intervention("substitute")(Substitute(), whole).refusal() == "LBFGS takes no parameters that come later"
    mute = site_of(model, [Wrapped(SGD(model.parameters(), lr=0.1))])
    for action, params in (("clip_gradients", ClipGradients()), ("lower_lr", LowerLr()), ("substitute", Substitute())):
        why = find_intervention(action)(params, mute).refusal()
        assert why == "Wrapped takes no hooks: give the optimizer inside of it to `attach`"
    without = site_of(model, [])
    for action, params in (("clip_gradients", ClipGradients()), ("lower_lr", LowerLr())):
        assert "give it to `attach(model, optimizers)`" in (find_intervention(action)(params, without).refusal() or "")


def test_levels_that_act_together_each_get_a_rate_for_their_own_table() -> None:
    torch.manual_seed(0)
    model = ResidualVQ(dim=D, codebook_size=16, num_quantizers=2, learnable_codebook=True, ema_update=False)
    tables: list[Any] = [layer._codebook.embed for layer in cast(Any, model).layers]
    optimizer = SGD(model.parameters(), lr=0.1)
    rule = {"name": "all", "when": "step > 0", "ladder": [{"raise_codebook_lr": {"factor": 4.0}}]}
    policy = policy_of(rule, every=1, min_tokens=1)
    with Guard(policy, console=False).attach(model, optimizer) as guard:
        for factor in (1.0, 4.0):
            optimizer.zero_grad()
            model(modes(0)[None])[2].sum().backward()
            before = [table.detach().clone() for table in tables]
            optimizer.step()
            guard.step()
            for table, old in zip(tables, before, strict=True):
                torch.testing.assert_close(old - table.detach(), factor * 0.1 * table.grad)
        assert [each["result"] for each in guard.interventions] == ["applied", "applied"]


def test_a_further_try_says_that_the_one_before_still_scales() -> None:
    model, optimizer = model_with(SGD)
    rule = {"name": "all", "when": "step > 0", "verify": {"within": "4 steps", "success": "usage > 2"},
            "ladder": [{"lower_lr": {"factor": 0.1}, "repeat": 2}]}  # fmt: skip
    policy = policy_of(rule, every=1, min_tokens=1)
    recorder = Recorder()
    with Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(8):
            optimizer.zero_grad()
            model.loss(modes(step)).backward()
            optimizer.step()
            guard.step()
    rate = "the learning rate of all parameters is 0.1 times what the optimizer's groups say"
    assert [event.fields["summary"] for event in recorder.of("intervention")] == [
        f"{rate} from now on", f"{rate}, and times 0.1 by another try, from now on"
    ]  # fmt: skip


class Lit(pl.LightningModule):
    """A Lightning module, whose Trainer hands the optimizer a closure that computes the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small(plain())
        self.inner.weights |= {"drift": 100.0}
        self.moved: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.moved.append(float(self.inner.encoder.bias.detach().norm()))
        return self.inner.loss(batch[0])

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("rung", "bound"), [
    ({"clip_gradients": {"max_norm": 0.01}}, 0.0011), ({"freeze_encoder": {"for": "100 steps"}}, 0.0),
    ({"lower_lr": {"factor": 0.001}}, 0.01),
])  # fmt: skip
def test_under_lightning_what_is_held_acts_on_the_gradients_of_the_step(rung: Any, bound: float, tmp_path: Any) -> None:
    rules = [{"name": "at_once", "when": "step >= 10", "ladder": [rung],
              "verify": {"success": "usage > 2", "within": "100 steps"}}]  # fmt: skip
    sample = {"every": "10 steps", "min_tokens": 1}
    model = Lit()
    trainer = pl.Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[CollapseGuard({"version": 1, "sample": sample, "rules": rules}, console=False)],
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(torch.cat([modes(step) for step in range(20)])), batch_size=64))
    steps = [abs(after - before) for before, after in zip(model.moved, model.moved[1:], strict=False)]
    assert min(steps[:9]) > 0.1
    assert max(steps[10:]) <= bound

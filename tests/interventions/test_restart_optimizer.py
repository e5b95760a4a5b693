"""`restart_optimizer`: as before the first step, of what moves the encoder alone, and back bit-equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from vector_quantize_pytorch import ResidualVQ

from collapse_guard import Guard
from collapse_guard.interventions import Site, Transaction, find_intervention
from collapse_guard.policies import RestartOptimizer
from collapse_guard.probe import Probe
from tests.interventions.scenes import D, Scene, modes, plain
from tests.loops import Recorder
from tests.test_moments import ADAMS, OTHERS, parameters

Make = Callable[[list[nn.Parameter]], Optimizer]


def site(optimizers: Sequence[Optimizer], encoder: Sequence[nn.Parameter] = ()) -> Site:
    (view,) = Guard("observe", console=False).attach(nn.Sequential(plain())).views(["0"])
    window = Probe(view, seed=0, on_error=lambda error: None).window
    return Site(view, window, optimizers, np.zeros(view.K), seed=0, encoder=lambda: encoder)


def restart(optimizers: Sequence[Optimizer], encoder: Sequence[nn.Parameter] = ()) -> Any:
    return find_intervention("restart_optimizer")(RestartOptimizer(), site(optimizers, encoder))


def go_on(optimizer: Optimizer, steps: range, size: float = 1.0) -> None:
    """Take steps on noise, the same at the same step of each run."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for each in (own for group in optimizer.param_groups for own in group["params"]):
            each.grad = (size * torch.randn(each.shape, generator=generator)).to(each.dtype)
        optimizer.step()


def copied(held: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(each.detach().clone()) for each in held]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ADAMS)
def test_an_optimizer_that_was_restarted_steps_as_a_new_one(kind: str, dtype: torch.dtype) -> None:
    held = parameters(dtype)
    optimizer = ADAMS[kind](held)
    go_on(optimizer, range(5), size=1000.0)
    weights = copied(held)
    act = restart([optimizer])
    assert act.refusal() is None
    assert act.apply().endswith("begins anew: the moments of 2 parameters, of 5 steps, are forgotten")
    assert all(torch.equal(one, other) for one, other in zip(held, weights, strict=True))
    new = ADAMS[kind](weights)
    for each in (optimizer, new):
        go_on(each, range(5, 15))
    assert all(torch.equal(one, other) for one, other in zip(held, weights, strict=True))


@pytest.mark.parametrize("kind", ADAMS)
def test_one_that_is_undone_steps_as_if_nothing_had_been(kind: str) -> None:
    held = parameters()
    optimizer = ADAMS[kind](held)
    go_on(optimizer, range(5), size=1000.0)
    weights = copied(held)
    twin = ADAMS[kind](weights)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    act = restart([optimizer])
    transaction = Transaction(act.parts())
    act.apply()
    transaction.check()
    (record,) = transaction.manifest()
    assert record["name"] == "optimizer"
    assert record["tensors"] >= 6
    transaction.undo()
    assert transaction.manifest() == []
    for each in (optimizer, twin):
        go_on(each, range(5, 15))
    assert all(torch.equal(one, other) for one, other in zip(held, weights, strict=True))


def test_it_is_refused_without_an_optimizer() -> None:
    assert "no optimizer is known to the guard" in restart([]).refusal()


@pytest.mark.parametrize(
    ("kind", "keeps"), [("SGD", "SGD keeps momentum_buffer"), ("Adamax", "Adamax keeps exp_avg, exp_inf, step")]
)
def test_it_is_refused_where_other_things_are_kept(kind: str, keeps: str) -> None:
    optimizer = OTHERS[kind](parameters())
    go_on(optimizer, range(2))
    assert restart([optimizer]).refusal() == (
        f"{keeps} of each parameter: what can be forgotten are the tensors exp_avg, exp_avg_sq and step, as Adam keeps "
        "them, with nothing unknown beside them"
    )


def test_it_is_refused_before_the_first_step() -> None:
    assert restart([ADAMS["Adam"](parameters())]).refusal().startswith("Adam keeps nothing yet of each parameter")


@pytest.mark.parametrize("change", ["a master copy", "steps in the group"])
def test_it_is_refused_where_state_is_not_understood(change: str) -> None:
    optimizer = ADAMS["Adam"](parameters())
    go_on(optimizer, range(2))
    for parameter, state in optimizer.state.items():
        if change == "a master copy":
            state["master"] = parameter.detach().float().clone()
        else:
            del state["step"]
    why = restart([optimizer]).refusal()
    kept = "exp_avg, exp_avg_sq, master, step" if change == "a master copy" else "exp_avg, exp_avg_sq"
    assert why.startswith(f"Adam keeps {kept} of each parameter")


class Adversarial(nn.Module):
    """An encoder with a quantizer, and a discriminator of what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.judge = nn.Linear(D, 1)
        self.encoder = nn.Linear(D, D)
        self.quantizer = plain()

    def optimizers(self) -> list[Optimizer]:
        """The discriminator's comes first."""
        return [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.judge, self.encoder)]


def rule(**more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "sample": {"every": "5 steps", "when_suspect": "5 steps", "min_tokens": 64},
        "rules": [
            {
                "name": "trouble",
                "when": "step >= 10",
                "for": 1,
                "clear": {"for": 2},
                "verify": {"within": "30 steps", "success": "perplexity > 1000"},
                "ladder": ["restart_optimizer"],
                **more,
            }
        ],
    }


def fight(model: Adversarial, optimizers: Sequence[Optimizer], guard: Guard, steps: range) -> None:
    for step in steps:
        quantized, _, loss = model.quantizer(model.encoder(modes(step)))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss.sum() + model.judge(quantized).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
        guard.step()


def steps_of(optimizer: Optimizer) -> set[int]:
    return {int(state["step"]) for state in optimizer.state.values()}


def test_a_discriminator_keeps_what_it_remembers() -> None:
    model, recorder = Adversarial().train(), Recorder()
    optimizers = model.optimizers()
    with Guard(rule(), console=False, sinks=[recorder]).attach(model, optimizers) as guard:
        fight(model, optimizers, guard, range(12))
        assert [steps_of(each) for each in optimizers] == [{12}, {2}]
        fight(model, optimizers, guard, range(12, 45))
        assert steps_of(optimizers[0]) == {45}
    (outcome,) = recorder.of("outcome")
    assert outcome.fields["undone"] == [1]
    assert recorder.of("fault") == []


def test_a_resumed_run_puts_back_the_moments_of_the_right_optimizer(tmp_path: Path) -> None:
    """Before its first forward it does not know which optimizer that is."""
    ends = []
    for cut in (None, 20):
        model = Adversarial().train()
        optimizers = model.optimizers()
        guard = Guard(rule(), console=False).attach(model, optimizers)
        fight(model, optimizers, guard, range(cut or 60))
        if cut is not None:
            state = {"guard": guard.state_dict(), "optimizers": [each.state_dict() for each in optimizers]}
            torch.save(state | {"model": model.state_dict()}, tmp_path / "run.ckpt")
            guard.close()
            state = torch.load(tmp_path / "run.ckpt", weights_only=True)
            model = Adversarial().train()
            model.load_state_dict(state["model"])
            optimizers = model.optimizers()
            for each, saved in zip(optimizers, state["optimizers"], strict=True):
                each.load_state_dict(saved)
            guard = Guard(rule(), console=False).attach(model, optimizers)
            guard.load_state_dict(state["guard"])
            fight(model, optimizers, guard, range(cut, 60))
        assert [entry["undone"] for entry in guard.interventions] == [True]
        guard.close()
        ends.append([model.state_dict(), *(each.state_dict()["state"] for each in optimizers)])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, D)
        self.quantizer = ResidualVQ(dim=D, num_quantizers=3, codebook_size=16, decay=0.9)

    def forward(self, x: Tensor) -> Tensor:
        quantized, _, losses = self.quantizer(self.encoder(x).unsqueeze(0))
        loss: Tensor = (quantized - x).square().mean() + losses.sum()
        return loss


def test_codebooks_that_one_encoder_feeds_have_it_restarted_once() -> None:
    """The first level has it done; the others wait, and their trouble is over before their turn comes."""
    model, recorder = Residual().train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    alert = {"name": "first", "when": "step == 10", "severity": "info", "ladder": ["alert"]}
    policy = rule(when="moment_ratio > 5", clear={"when": "moment_ratio < 3", "for": 1}, verify={"within": "30 steps"})
    policy["rules"].append(alert)
    with Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(80):
            optimizer.zero_grad()
            loss: Any = model(modes(step)) * (1e4 if 20 <= step < 23 else 1.0)
            loss.backward()
            optimizer.step()
            guard.step()
        acts = [event for event in recorder.of("intervention") if event.fields["action"] == "restart_optimizer"]
        assert len(acts) == 1
        assert steps_of(optimizer) == {80 - acts[0].step}
    (outcome,) = (event for event in recorder.of("outcome") if event.fields["action"] == "restart_optimizer")
    assert outcome.fields["outcome"] == "recovered"
    assert recorder.of("fault") == []


def ratios(scene: Scene) -> list[float | None]:
    return [event.fields.get("moment_ratio") for event in scene.recorder.of("reading")]


def spiked(optimizer: Callable[..., Optimizer]) -> Scene:
    return Scene(plain(), optimizer=optimizer, blow=lambda step: 1e4 * (step == 20))


def test_readings_say_how_much_larger_gradients_are_remembered_once_the_guard_has_intervened() -> None:
    scene = spiked(torch.optim.Adam)
    with scene.guarded({"when": "step >= 10", "ladder": ["alert"]}) as guard:
        scene.train(120, guard)
    found = ratios(scene)
    assert found[:2] == [None, None]
    after = [each for each in found if each is not None]
    assert len(after) == len(found) - 2
    assert max(after[:2]) < 10 < 100 < after[-1]


@pytest.mark.parametrize(
    ("optimizer", "when", "action"),
    [
        pytest.param(torch.optim.Adam, "step < 0", "alert", id="nothing was done"),
        pytest.param(torch.optim.Adam, "step >= 10", "upkeep", id="upkeep is no repair"),
        pytest.param(torch.optim.SGD, "step >= 10", "alert", id="no Adam"),
    ],
)
def test_readings_say_nothing_of_it_without_a_repair_or_an_adam(
    optimizer: Callable[..., Optimizer], when: str, action: str
) -> None:
    scene = spiked(optimizer)
    with scene.guarded({"when": when, "ladder": [action]}) as guard:
        scene.train(40, guard)
    assert set(ratios(scene)) == {None}
    assert scene.recorder.of("fault") == []


def test_an_intervention_of_a_package_that_is_gone_counts_as_one() -> None:
    """So it stands in the ledger of a run that was resumed without the package."""
    scene = spiked(torch.optim.Adam)
    with scene.guarded({"when": "step >= 10", "ladder": ["alert"]}) as guard:
        scene.train(30, guard)
        (entry,) = guard._shift.ledger.entries
        entry.action = "somebody_elses"
        scene.train(10, guard)
        assert ratios(scene)[-1] is not None
        entry.result = "refused"
        scene.train(10, guard)
        assert ratios(scene)[-1] is None
    assert scene.recorder.of("fault") == []


def test_moments_that_cannot_be_read_are_told_once_and_readings_go_on() -> None:
    scene = spiked(torch.optim.Adam)
    with scene.guarded({"when": "step >= 10", "ladder": ["alert"]}) as guard:
        scene.train(15, guard)
        for state in scene.optim.state.values():
            state["exp_avg_sq"] = state["exp_avg_sq"].to_sparse()
        for step in range(10):
            scene.model.loss(modes(step))
            guard.step()
    (fault,) = scene.recorder.of("fault")
    assert fault.fields["where"] == "moments"
    assert fault.fields["reason"].startswith("what optimizers remember cannot be read: ")
    assert len(scene.recorder.of("reading")) >= 3

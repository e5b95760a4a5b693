"""`bridge_gradient`: the gradient that a straight-through estimator would have given, and no other value anywhere."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import ResidualVQ

from collapse_guard import Guard, discover
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.policies import BridgeGradient, Reading
from collapse_guard.window import Window
from tests.interventions.cut_coders import (
    C,
    Coder,
    D,
    Images,
    K,
    Plain,
    averaged,
    batch,
    checkpointed,
    copied,
    detached,
    encoder_gradient,
    learnable,
    loss_of,
    lucidrains,
    plainly,
    policy,
    results,
    stepped,
    straight_through,
    trained,
    turned,
    turned_and_copied,
)
from tests.loops import Recorder

CUT: list[tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = [
    # the quantizer, what the model decodes, what it ought to
    (learnable, lambda quantized, z: quantized, straight_through),
    (learnable, detached, straight_through),
    (averaged, lambda quantized, z: quantized, straight_through),
    (averaged, lambda quantized, z: quantized.reshape(-1, 5, D)[:, None].squeeze(1), straight_through),
    (Images, detached, lambda quantized, z: quantized),
    (Images, lambda quantized, z: quantized.detach()[None].squeeze(0), straight_through),
    (lucidrains, detached, lambda quantized, z: quantized),
    (lucidrains, lambda quantized, z: quantized.detach().flatten(0, 1).unflatten(0, (16, 5)), straight_through),
]


@pytest.mark.parametrize("decode", [plainly, turned])
@pytest.mark.parametrize(("make", "hand", "right"), CUT)
def test_the_encoder_gets_what_a_straight_through_estimator_gives(
    make: Callable[[], nn.Module], hand: Any, right: Any, decode: Any
) -> None:
    recorder, model = Recorder(), Coder(make(), hand, decode)
    guard, _ = trained(model, range(40), recorder=recorder)
    assert results(guard) == [("bridge_gradient", "recovered")]
    shares = [share for event in recorder.of("reading") if (share := event.fields["task_gradient"]) is not None]
    assert shares[0] < 2e-3 < 1e-2 < min(shares[-2:])
    owned = Coder(make(), right)
    owned.load_state_dict(model.state_dict())
    bridged, values = encoder_gradient(model), model.eval()(batch(3))
    model.train()
    torch.testing.assert_close(bridged, encoder_gradient(owned), rtol=1e-5, atol=1e-8)
    assert not recorder.of("fault")
    guard.close()
    torch.testing.assert_close(values, model.eval()(batch(3)), rtol=0, atol=0)


@pytest.mark.parametrize(("make", "right"), [(averaged, straight_through), (Images, None), (lucidrains, None)])
def test_in_mixed_precision_it_is_the_same_gradient(make: Callable[[], nn.Module], right: Any) -> None:
    autocast = torch.autocast("cpu", torch.bfloat16)
    recorder, model = Recorder(), Coder(make(), detached)
    guard, _ = trained(model, range(40), recorder=recorder, within=autocast)
    assert results(guard) == [("bridge_gradient", "recovered")]
    owned = Coder(make(), right or (lambda quantized, z: quantized))
    owned.load_state_dict(model.state_dict())
    mine, its = encoder_gradient(model, autocast), encoder_gradient(owned, autocast)
    assert mine.dtype == torch.float32
    assert float((mine - its).norm() / its.norm()) < 0.02
    assert not recorder.of("fault")
    guard.close()


@pytest.mark.parametrize("make", [learnable, averaged, Images])
def test_no_value_of_a_forward_changes_and_no_other_gradient(make: Callable[[], nn.Module]) -> None:
    model = Coder(make(), detached)
    guard, _ = trained(model, range(30))
    assert results(guard) == [("bridge_gradient", "recovered")]
    other = Coder(make(), detached)
    other.load_state_dict(model.state_dict())
    found = []
    for each in (model, other):
        each.zero_grad()
        made, own = each.train()(batch(99))
        (functional.mse_loss(made, batch(99)) + own).backward()
        grads = {name: it.grad for name, it in each.named_parameters() if not name.startswith("encoder")}
        found.append((made, own, grads))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    guard.close()


def test_losses_that_the_model_makes_of_the_codes_stay_its_own() -> None:
    """Handed on, the gradient of a codebook loss would push the latents away from their codes."""

    class Outside(Coder):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.encoder(x)
            quantized, _, _ = self.quantizer(z)
            own = functional.mse_loss(quantized, z.detach()) + 0.25 * functional.mse_loss(z, quantized.detach())
            return self.decoder(self.hand(quantized, z)), own

    model, right = Outside(Plain(learns=True)), Outside(Plain(learns=True), straight_through)
    guard, _ = trained(model, range(30))
    assert results(guard) == [("bridge_gradient", "recovered")]
    right.load_state_dict(model.state_dict())
    torch.testing.assert_close(encoder_gradient(model), encoder_gradient(right), rtol=1e-5, atol=1e-8)
    guard.close()


class Functional(Coder):
    """Decodes by functions: no module is given the codes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        quantized, _, own = self.quantizer(z)
        first, _, last = cast("Any", self.decoder)
        return functional.linear(functional.linear(quantized, first.weight).tanh(), last.weight), own


@pytest.mark.parametrize(
    "make",
    [lambda: Coder(Images(), copied), lambda: Functional(averaged()), lambda: Coder(learnable(), turned_and_copied)],
)
def test_what_was_copied_on_the_way_is_not_met_and_that_is_told(make: Callable[[], Coder]) -> None:
    """Nothing is handed on at the quantizer's own output: losses made of it would push latents from their codes."""
    recorder, model = Recorder(), make()
    guard, _ = trained(model, range(60), recorder=recorder)
    assert results(guard) == [("bridge_gradient", "failed")]
    (fault,) = recorder.of("fault")
    assert "what the quantizer returned was not met again: it was copied on the way" in fault.fields["reason"]
    assert not any(each._forward_pre_hooks for each in model.decoder.modules())
    guard.close()


class Whole(Coder):
    """Computes all that follows the encoder anew within the backward, or encoder and all."""

    def __init__(self, quantizer: nn.Module, *, encodes: bool) -> None:
        super().__init__(quantizer, detached)
        self.encodes = encodes

    def forward(self, x: Tensor) -> Any:
        def rest(z: Tensor) -> Any:
            quantized, _, own = self.quantizer(z)
            return self.decoder(quantized.detach()), own

        if self.encodes:
            return checkpoint(lambda x: rest(self.encoder(x)), x, use_reentrant=False)
        return checkpoint(rest, self.encoder(x), use_reentrant=False)


@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("quantizer", [learnable, averaged, Images, lucidrains])
@pytest.mark.parametrize("part", ["decoder", "rest", "all"])
def test_what_checkpointing_computes_anew_is_left_alone(
    part: str, quantizer: Callable[[], nn.Module], forwards: int
) -> None:
    """A bridge would make another graph of it than the forward did, and torch would end the run."""
    recorder = Recorder()
    model = (
        Coder(quantizer(), detached, checkpointed) if part == "decoder" else Whole(quantizer(), encodes=part == "all")
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Guard(policy(), console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(60):
            loss = torch.stack([loss_of(model, 10 * step + each) for each in range(forwards)]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step()
    assert results(guard) in ([("bridge_gradient", "failed")], [])  # felt nowhere where all is computed anew
    assert all("activation checkpointing" in each.fields["reason"] for each in recorder.of("fault"))


def test_an_encoder_that_is_computed_anew_is_handed_its_gradient_all_the_same() -> None:
    model = Coder(Images(), detached)
    encoder = model.encoder
    model.encoder = cast("Any", Checkpointed(encoder))
    guard, _ = trained(model, range(40))
    assert results(guard) == [("bridge_gradient", "recovered")]
    model.zero_grad()
    loss_of(model, 99).backward()
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.abs().sum() > 0
    guard.close()


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def test_all_that_decode_and_all_calls_of_a_step_are_handed_on() -> None:
    class Two(Coder):
        def __init__(self) -> None:
            super().__init__(Images(), detached)
            self.head = nn.Linear(D, C)
            self.other = nn.Linear(C, D)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            (first, _, own), (second, _, its) = (self.quantizer(encode(x)) for encode in (self.encoder, self.other))
            made = (
                self.head(self.hand(first, x)) + self.decoder(self.hand(first, x)) + self.decoder(self.hand(second, x))
            )
            return made, own + its

    model, right = Two(), Two()
    right.hand = lambda quantized, z: quantized
    guard, _ = trained(model, range(40))
    assert results(guard) == [("bridge_gradient", "recovered")]
    right.load_state_dict(model.state_dict())
    for each in (model, right):
        each.zero_grad()
        loss_of(each, 99).backward()
    for mine, its in ((model.encoder, right.encoder), (model.other, right.other)):
        torch.testing.assert_close(mine.weight.grad, its.weight.grad, rtol=1e-5, atol=1e-8)
    guard.close()


def test_who_decodes_no_more_is_missed_and_that_is_told() -> None:
    recorder, model = Recorder(), Coder(Images(), detached)
    guard, optimizer = trained(model, range(30), recorder=recorder)
    assert results(guard) == [("bridge_gradient", "recovered")]
    model.hand = copied
    for step in range(30, 60):
        guard.step(loss=stepped(model, optimizer, step))
    fault = recorder.of("fault")[0]  # its rule tries anew, and looks for another
    assert "what the quantizer returned was not met any more by decoder" in fault.fields["reason"]
    guard.close()


def test_nothing_of_a_step_is_held_on_to_once_it_is_over() -> None:
    model = Coder(Images(), detached)
    guard, optimizer = trained(model, range(30))
    kept: list[weakref.ref[Tensor]] = []
    handle = model.quantizer.register_forward_hook(lambda module, given, output: kept.append(weakref.ref(output[0])))
    stepped(model, optimizer, 30)
    handle.remove()
    gc.collect()
    assert [each() for each in kept] == [None]
    guard.close()


def test_undone_and_without_the_guard_the_model_is_its_owners() -> None:
    recorder, model = Recorder(), Coder(Images(), detached)
    before = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()]
    cut = encoder_gradient(model)
    verify = {"within": "10 steps", "success": "perplexity > 1000", "undo": "always"}
    guard, _ = trained(model, range(25), recorder=recorder, verify=verify)
    assert recorder.of("outcome")[0].fields["undone"] == [1]
    assert recorder.of("reading")[-1].fields["task_gradient"] < 2e-3
    guard.close()
    assert [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()] == before
    recorder, model = Recorder(), Coder(Images(), detached)
    guard, _ = trained(model, range(25), recorder=recorder)
    copied_model = copy.deepcopy(model)
    guard.close()
    (told,) = recorder.of("summary")[0].fields["in_force"]
    assert "quantized = latents + (quantized - latents).detach()" in told["meaning"]
    for each in (model, copied_model):
        other = Coder(Images(), detached)
        other.load_state_dict(each.state_dict())
        assert torch.equal(encoder_gradient(each), encoder_gradient(other))
    assert not torch.equal(cut, torch.zeros_like(cut))


@pytest.mark.parametrize("cut", [4, 5, 6, 7, 10, 23])
@pytest.mark.parametrize(("make", "hand"), [(averaged, detached), (Images, detached), (Images, copied)])
def test_a_resumed_run_is_the_uninterrupted_one(
    make: Callable[[], nn.Module], hand: Callable[[Tensor, Tensor], Tensor], cut: int, tmp_path: Path
) -> None:
    whole = Coder(make(), hand)
    guard, optimizer = trained(whole, range(cut))
    parts = {"model": whole.state_dict(), "optimizer": optimizer.state_dict(), "guard": guard.state_dict()}
    torch.save(parts, tmp_path / "run.ckpt")
    for step in range(cut, 40):
        guard.step(loss=stepped(whole, optimizer, step))
    resumed = Coder(make(), hand)
    its_optimizer = torch.optim.Adam(resumed.parameters(), lr=1e-3)
    other = Guard(policy(), console=False).attach(resumed.train(), its_optimizer)
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    other.load_state_dict(state["guard"])
    resumed.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    for step in range(cut, 40):
        other.step(loss=stepped(resumed, its_optimizer, step))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert other.interventions == guard.interventions
    guard.close()
    other.close()


def test_observing_changes_no_bit_and_says_what_it_sees() -> None:
    ends = []
    for mode in (None, "observe"):
        recorder, model = Recorder(), Coder(Images(), detached)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        guard = Guard(policy() | {"mode": "observe"}, console=False, sinks=[recorder])
        if mode is not None:
            guard.attach(model, optimizer)
        for step in range(20):
            stepped(model, optimizer, step)
            guard.step()
        guard.close()
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    (cause,) = [each for each in recorder.of("alert")[0].fields["causes"] if each["cause"] == "no_gradient"]
    assert cause["remedy"] == "bridge_gradient"


@dataclass
class Case:
    """A quantizer, what was read of it, and why it is refused."""

    make: Callable[[], nn.Module]
    share: float | None
    why: str | None


CASES = {
    "cut": Case(lucidrains, 0.0, None),
    "whole": Case(lucidrains, 0.8, "0.8 of the task's gradient arrives at its input already"),
    "unknown": Case(lucidrains, None, "nobody knows that the task's gradient is missing"),
    "level": Case(
        lambda: ResidualVQ(dim=D, codebook_size=K, num_quantizers=2), 0.0, "it is a level of a residual"
    ),
}  # fmt: skip


def site_of(watched: nn.Module, share: float | None, **known: Any) -> Site:
    view = discover(watched).views[0]
    figures: dict[str, Any] = dict.fromkeys(
        ("perplexity", "ceiling", "perplexity_ratio", "usage", "dead_fraction", "top_share"), 0.5
    )
    reading = Reading(step=1, codebook=view.name, K=K, D=D, tokens=1, task_gradient=share, **figures)
    window = Window(view.K, view.D)
    optimizers = known.pop("optimizers", [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)])
    further: dict[str, Any] = {"model": watched} | known
    return Site(view, window, optimizers, torch.ones(view.K).numpy(), seed=0, reading=reading, **further)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_the_reason(name: str) -> None:
    case = CASES[name]
    refusal = find_intervention("bridge_gradient")(
        BridgeGradient(), site_of(nn.Sequential(case.make()), case.share)
    ).refusal()
    assert (refusal is None) is (case.why is None)
    assert case.why is None or str(refusal).startswith(case.why)


def test_past_its_forward_without_a_model_and_where_it_is_in_force_it_is_refused() -> None:
    kind = find_intervention("bridge_gradient")
    model = nn.Sequential(lucidrains())
    first = kind(BridgeGradient(), site_of(model, 0.0))
    again = kind(BridgeGradient(), site_of(model, 0.0, standing=lambda: [first]))
    assert again.refusal() == "its gradient is handed on already"
    stepless = kind(BridgeGradient(), site_of(model, 0.0, optimizers=[]))
    assert stepless.refusal() == "no optimizer is known, by whose steps it is told when a step is over"
    alone = kind(BridgeGradient(), site_of(model, 0.0, model=None))
    assert alone.refusal() == "no module 0 is known of the model"
    with pytest.raises(ValueError, match="the model has no quantizer 0"):
        alone.load_state_dict({"met": [], "is_looking": True, "steps": 0})
    past = site_of(model, 0.0)
    past.view.readers = {"encode": past.view.readers["forward"]}
    assert kind(BridgeGradient(), past).refusal() == (
        "its codes are assigned in encode(), which is called past every hook"
    )

"""`restore_layout`: what a permutation in the code would have made of the run, and nothing that outlives the guard."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import Event, Guard, discover
from collapse_guard.interventions import Site, find_intervention
from collapse_guard.interventions.layout_hold import LayoutHold
from collapse_guard.mix import Mix
from collapse_guard.policies import RestoreLayout
from collapse_guard.window import Window
from tests.loops import Recorder, policy_of

T, C, D, K = 12, 6, 8, 32
RULE: dict[str, Any] = {
    "name": "reshaped",
    "when": "reshaped == 1",
    "for": 1,
    "clear": {"when": "reshaped == 0", "for": 2},
    "verify": {"within": "40 steps", "undo": "unless_better"},
    "ladder": ["restore_layout"],
}


def vq(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    module: nn.Module = VectorQuantize(dim=D, codebook_size=K, decay=0.9, rotation_trick=False, **options)
    return module


class Coder(nn.Module):
    """Encoder of each position, quantizer, decoder; between them (B, T, D) tokens, mixed up or not.

    Args:
        quantizer: of (B, T, D). mixes: whether `reshape` stands where nothing, or a permutation, was due.
    """

    def __init__(self, quantizer: nn.Module, *, mixes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(C, D), nn.Linear(D, C)
        self.quantizer = quantizer
        self.mixes = mixes

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        quantized, codes, own = self.quantizer(z.mT.reshape(z.shape) if self.mixes else z, **options)
        if self.mixes:
            quantized = quantized.reshape(len(x), D, T).mT
        return self.decoder(quantized), codes, own.sum()


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, T, 1, generator=generator) * torch.linspace(1, 2, C) + torch.randn(
        16, T, C, generator=generator
    )


def stepped(model: Coder, optimizer: torch.optim.Optimizer, step: int, **options: Any) -> float:
    x = batch(step)
    made, _, own = model(x, **options)
    loss = functional.mse_loss(made, x) + own
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def policy(**changes: Any) -> dict[str, Any]:
    return policy_of(RULE | changes)


def trained(
    model: Coder, steps: range, *, recorder: Recorder | None = None, guard: Guard | None = None, **changes: Any
) -> tuple[Guard, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sinks = [recorder] if recorder is not None else []
    guard = guard or Guard(policy(**changes), console=False, sinks=sinks)
    guard.attach(model.train(), optimizer)
    for step in steps:
        guard.step(loss=stepped(model, optimizer, step))
    return guard, optimizer


def twin_of(model: Coder) -> Coder:
    """A model of the same weights and codebook that permutes, as its owner should have written it."""
    right = Coder(vq(), mixes=False)
    right.load_state_dict(model.state_dict())
    return right.train(model.training)


def test_the_model_is_from_then_on_one_that_permutes_in_training_and_in_evaluation() -> None:
    recorder, model = Recorder(), Coder(vq(), mixes=True)
    guard, _ = trained(model, range(60), recorder=recorder)
    assert [event.fields["reshaped"] for event in recorder.of("reading")] == [1] + 11 * [0]
    assert [(each["action"], each["result"]) for each in guard.interventions] == [("restore_layout", "recovered")]
    (placed,) = recorder.of("tended")
    assert placed.fields["summary"].startswith(f"{K} codes placed by reservoir on ")
    assert not recorder.of("fault")
    right = twin_of(model)
    for is_training in (True, False):
        results = []
        for each in (model, right):
            each.train(is_training)
            each.zero_grad()
            made, codes, own = each(batch(99))
            (functional.mse_loss(made, batch(99)) + own).backward()
            results.append((made, codes, own, *(parameter.grad for parameter in each.parameters())))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
        assert results[0][1].shape == (16, T)
    guard.close()


def test_without_the_guard_the_model_is_its_owners_and_the_end_says_what_to_write() -> None:
    recorder, model = Recorder(), Coder(vq(), mixes=True)
    before = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()]
    guard, _ = trained(model, range(30), recorder=recorder)
    saved = {name: each.clone() for name, each in model.state_dict().items()}
    guard.close()
    assert [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()] == before
    torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)
    (told,) = recorder.of("summary")[0].fields["in_force"]
    assert "unless the reshape before it, and the one after it, become permutations" in told["meaning"]


def test_a_copy_of_the_model_is_not_rearranged() -> None:
    model = Coder(vq(), mixes=True)
    guard, _ = trained(model, range(30))
    copied = copy.deepcopy(model).eval()
    guard.close()
    for one, other in zip(copied(batch(3)), model.eval()(batch(3)), strict=True):
        assert torch.equal(one, other)


def test_observing_changes_no_bit_and_says_what_it_sees() -> None:
    ends = []
    for mode in (None, "observe"):
        recorder, model = Recorder(), Coder(vq(), mixes=True)
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
    alert = recorder.of("alert")[0]
    assert alert.fields["why"].startswith("the 8 features of a latent are a run of positions")
    (cause,) = [each for each in alert.fields["causes"] if each["cause"] == "artificial_reshape"]
    assert cause["remedy"] == "restore_layout"
    assert "movedim(1, -1)" in cause["line"]


@pytest.mark.parametrize("source", ["reservoir", "kmeans", "distortion"])
@pytest.mark.parametrize("cut", [11, 12, 37])
def test_a_resumed_run_is_the_uninterrupted_one(source: str, cut: int, tmp_path: Path) -> None:
    """Cut before, and right after, the codes are placed, and when all is settled."""
    ladder = [{"restore_layout": {"source": source}}]
    whole = Coder(vq(), mixes=True)
    guard, optimizer = trained(whole, range(cut), ladder=ladder)
    parts = {"model": whole.state_dict(), "optimizer": optimizer.state_dict(), "guard": guard.state_dict()}
    torch.save(parts, tmp_path / "run.ckpt")
    for step in range(cut, 50):
        guard.step(loss=stepped(whole, optimizer, step))
    recorder, resumed = Recorder(), Coder(vq(), mixes=True)
    its_optimizer = torch.optim.Adam(resumed.parameters(), lr=1e-2)
    other = Guard(policy(ladder=ladder), console=False, sinks=[recorder]).attach(resumed.train(), its_optimizer)
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    other.load_state_dict(state["guard"])  # also where the weights come only after it
    resumed.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    for step in range(cut, 50):
        other.step(loss=stepped(resumed, its_optimizer, step))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert other.interventions == guard.interventions
    assert not recorder.of("fault")
    guard.close()
    other.close()


def test_what_did_not_help_is_undone_bit_equal() -> None:
    class Frozen(Recorder):
        """Keeps the codebook as it was at the alert, and at the outcome."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.kept = model, dict[str, dict[str, Tensor]]()

        def write(self, event: Event) -> None:
            super().write(event)
            self.kept[event.event] = {name: each.clone() for name, each in self.model.state_dict().items()}

    model = Coder(vq(), mixes=True)
    recorder = Frozen(model.quantizer)
    verify = {"within": "10 steps", "success": "perplexity > 1000", "undo": "always"}
    guard, _ = trained(model, range(25), recorder=recorder, verify=verify)
    assert recorder.of("outcome")[0].fields["undone"] == [1]
    torch.testing.assert_close(recorder.kept["outcome"], recorder.kept["alert"], rtol=0, atol=0)
    assert [event.fields["reshaped"] for event in recorder.of("reading")][-1] == 1
    guard.close()


def test_a_mask_ends_it_and_the_run_goes_on_as_its_owner_wrote_it() -> None:
    recorder, model = Recorder(), Coder(vq(), mixes=True)
    guard, optimizer = trained(model, range(5), recorder=recorder)
    hooks = len(model.quantizer._forward_pre_hooks)
    for step in range(5, 20):
        guard.step(loss=stepped(model, optimizer, step))
    assert len(model.quantizer._forward_pre_hooks) == hooks
    mask = torch.ones(16, T, dtype=torch.bool)
    for step in range(20, 90):
        guard.step(loss=stepped(model, optimizer, step, mask=mask))
    assert [each["result"] for each in guard.interventions] == ["recovered", "refused"]
    (fault,) = recorder.of("fault")
    assert (
        "tending restore_layout raised ValueError: expected VectorQuantize to be given latents alone"
        in (fault.fields["reason"])
    )
    refused = recorder.of("intervention")[1]
    assert refused.fields["summary"].startswith("it is given more than latents, such as a mask")
    assert len(model.quantizer._forward_pre_hooks) == hooks - 1
    guard.close()


def site_of(model: nn.Module, mix: Mix | None, place: int = 0) -> Site:
    view = discover(model).views[place]
    window = Window(view.K, view.D)
    return Site(view, window, [], torch.ones(view.K).numpy(), seed=0, model=model, mix=lambda: mix)


def rvq(**options: Any) -> nn.Module:
    module: nn.Module = ResidualVQ(dim=D, codebook_size=K, num_quantizers=2, **options)
    return module


def shared() -> nn.Module:
    return rvq(shared_codebook=True)


SEEN = Mix(channels_first=True, positions=T)


@pytest.mark.parametrize(
    ("make", "mix", "why"),
    [
        (vq, None, "its graph does not show that positions are taken for features"),
        (vq, Mix(True, T, is_told=False), "whose shape does not say which positions are of one sample"),
        (vq, Mix(True, T, is_alone=False), "it is given more than latents, such as a mask"),
        (shared, SEEN, "0.layers.1._codebook searches its codebook, too"),
        (rvq, SEEN, "it is a level of a residual"),
        (lambda: vq(heads=2, separate_codebook_per_head=True, codebook_dim=D), SEEN, "one of several of one module"),
        (lambda: vq(codebook_dim=4), SEEN, "what its forward takes and returns is not understood"),
        (vq, SEEN, None),
        (lambda: vq(accept_image_fmap=True), SEEN, None),
        (lambda: vq(channel_last=False), SEEN, None),
        (lambda: vq(use_cosine_sim=True), SEEN, None),
    ],
)
def test_what_is_not_understood_is_refused_with_its_reason(
    make: Callable[[], nn.Module], mix: Mix | None, why: str | None
) -> None:
    remedy = find_intervention("restore_layout")(RestoreLayout(), site_of(nn.Sequential(make()), mix))
    refusal = remedy.refusal()
    assert (refusal is None) is (why is None)
    assert why is None or why in str(refusal)


def test_codes_that_are_assigned_past_its_forward_are_refused() -> None:
    site = site_of(nn.Sequential(vq()), SEEN)
    site.view.readers = {"encode": site.view.readers["forward"]}
    assert find_intervention("restore_layout")(RestoreLayout(), site).refusal() == (
        "its codes are assigned in encode(), which is called past every hook"
    )


def test_a_codebook_that_cannot_be_written_is_refused() -> None:
    model = nn.Sequential(vq(affine_param=True, sync_affine_param=False))
    refusal = find_intervention("restore_layout")(RestoreLayout(), site_of(model, SEEN)).refusal()
    assert "because of affine_param" in str(refusal)


def test_without_a_model_and_where_it_is_in_force_it_is_refused() -> None:
    model = nn.Sequential(vq())
    site = site_of(model, SEEN)
    alone = Site(site.view, site.window, [], site.counts, seed=0, mix=lambda: SEEN)
    assert find_intervention("restore_layout")(RestoreLayout(), alone).refusal() == "the model is not known here"
    first = find_intervention("restore_layout")(RestoreLayout(), site)
    again = Site(site.view, site.window, [], site.counts, seed=0, model=model, mix=lambda: SEEN,
                 standing=lambda: [first])  # fmt: skip
    assert find_intervention("restore_layout")(RestoreLayout(), again).refusal() == (
        "its latents are rearranged already"
    )


def test_a_resume_without_the_quantizer_is_refused() -> None:
    site = site_of(nn.Sequential(vq()), SEEN)
    alone = Site(site.view, site.window, [], site.counts, seed=0)
    remedy = find_intervention("restore_layout")(RestoreLayout(), alone)
    with pytest.raises(ValueError, match="the model has no quantizer 0"):
        remedy.load_state_dict({"mix": {}, "is_last": True, "is_placed": False})


class Past(nn.Module):
    """Calls its quantizer past the hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = vq()

    def forward(self, x: Tensor) -> Any:
        return type(self.quantizer).forward(self.quantizer, x)


def test_a_quantizer_that_is_called_past_its_hooks_ends_it_and_that_is_told() -> None:
    recorder, model = Recorder(), Coder(Past(), mixes=True)
    guard, _ = trained(model, range(20), recorder=recorder)
    (fault,) = recorder.of("fault")
    assert "quantizer.quantizer is called past its hooks: nothing was rearranged" in fault.fields["reason"]
    guard.close()


class Echo(nn.Module):
    """Returns what it is given, or something else."""

    def __init__(self, *, alike: bool = True) -> None:
        super().__init__()
        self.alike = alike

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return (x if self.alike else x.flatten(1)), {"loss": x.mean(), "kept": x * 2, "name": "echo"}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("shape", [(2, T, D), (2, 3, 4, D), (2, D, T), (2, D, 3, 4)])
def test_what_is_given_and_returned_is_rearranged_wherever_channels_lie(shape: tuple[int, ...], first: bool) -> None:
    is_last = shape[-1] == D
    module, right = Echo(), torch.randn(shape)
    mix = Mix(channels_first=first, positions=T)
    tokens = right if is_last else right.movedim(1, -1)
    mixed = mix.made(tokens.reshape(2, T, D)).reshape(tokens.shape)
    wrong = mixed if is_last else mixed.movedim(-1, 1)
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    hold = LayoutHold(module, D)
    hold.mix, hold.is_last = mix, is_last
    hold.install()
    output, more = module(wrong)
    hold.raise_failure()
    assert torch.equal(seen[0], right)
    assert torch.equal(output, wrong)
    assert output.is_contiguous()
    assert torch.equal(more["kept"], 2 * wrong)
    assert more["name"] == "echo"
    hold.remove()
    assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("module", "given", "why"),
    [
        (Echo(), torch.randn(6, D), r"expected Echo to be given \(B, ..., 8\), got \(6, 8\)"),
        (Echo(), torch.randn(2, T, D + 1), r"got \(2, 12, 9\)"),
        (Echo(alike=False), torch.randn(2, T, D), "found none"),
    ],
)
def test_a_hook_that_fails_lets_the_call_go_on_and_says_so(module: Echo, given: Tensor, why: str) -> None:
    module.register_forward_hook(lambda module, args, output: (output[0], None))
    hold = LayoutHold(module, D)
    hold.mix = SEEN
    hold.install()
    output, _ = module(given)
    assert output.numel() == given.numel()
    module(given)
    with pytest.raises(ValueError, match=why):
        hold.raise_failure()
    assert not hold.is_in_force

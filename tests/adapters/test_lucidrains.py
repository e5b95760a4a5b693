"""vector-quantize-pytorch, the real package: observed, written and frozen in each of its modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import NoQuantizerError, discover
from collapse_guard.adapters import CodebookView, Observation

MODES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ema": ({}, (2, 10, 8)),
    "cosine": ({"use_cosine_sim": True}, (2, 10, 8)),
    "learnable": ({"learnable_codebook": True, "ema_update": False}, (2, 10, 8)),
    "channel first": ({"channel_last": False}, (2, 8, 10)),
    "images": ({"accept_image_fmap": True}, (2, 8, 4, 3)),
    "two-dimensional": ({}, (20, 8)),
    "projected": ({"codebook_dim": 4}, (2, 10, 8)),
    "shared heads": ({"heads": 2, "codebook_dim": 4}, (2, 10, 8)),
    "separate heads": ({"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}, (2, 10, 8)),
}


def build(mode: str) -> tuple[VectorQuantize, torch.Tensor]:
    options, shape = MODES[mode]
    torch.manual_seed(0)
    return VectorQuantize(dim=8, codebook_size=16, **options), torch.randn(shape)


def observe(view: CodebookView, model: nn.Module, x: torch.Tensor, **kwargs: Any) -> tuple[Observation, Any]:
    seen: list[Observation] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        observation = view.readers["forward"](args, kwargs, output)
        assert observation is not None
        seen.append(observation)

    handle = view.module.register_forward_hook(record, with_kwargs=True)
    output = model(x, **kwargs)
    handle.remove()
    return seen[-1], output


@pytest.mark.parametrize("mode", MODES)
def test_codes_and_latents_agree_with_an_independent_search_in_eval(mode: str) -> None:
    model, x = build(mode)
    for view in discover(nn.Sequential(model)).views:
        assert view.adapter == "vector-quantize-pytorch"
        observation, _ = observe(view, model.eval(), x)
        assert observation.latents is not None
        latents, table = (t.double().numpy() for t in (observation.latents, view.codebook()))
        assert latents.shape[1] == view.D
        nearest = ((latents[:, None] - table[None]) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(observation.codes.numpy(), nearest)


def test_separate_heads_are_two_codebooks_and_their_codes_are_the_librarys_own() -> None:
    model, x = build("separate heads")
    views = discover(nn.Sequential(model)).views
    assert [view.name for view in views] == ["0.0", "0.1"]
    for head, view in enumerate(views):
        observation, output = observe(view, model.eval(), x)
        assert torch.equal(observation.codes, output[1][..., head].flatten())


@pytest.mark.parametrize("mode", MODES)
def test_observing_changes_no_bit_of_ten_training_steps(mode: str) -> None:
    states = []
    for watched in (False, True):
        model, x = build(mode)
        optimizer = torch.optim.Adam(nn.ModuleList([model, nn.Linear(1, 1)]).parameters(), lr=1e-2)
        views = discover(model).views if watched else ()
        for _ in range(10):
            if views:
                _, output = observe(views[0], model, x)
            else:
                output = model(x)
            optimizer.zero_grad()
            (output[2] + output[0].square().sum() * 0).sum().requires_grad_().backward()
            optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("mode", ["ema", "cosine", "learnable", "separate heads", "shared heads"])
def test_written_rows_survive_the_next_training_forward(mode: str) -> None:
    model, x = build(mode)
    model.train()
    view = discover(model).views[0]
    rows = torch.arange(5)
    vectors = torch.randn(5, view.D, generator=torch.Generator().manual_seed(1)) + 30
    if view.metric == "cosine":
        vectors = -functional.normalize(x.reshape(-1, view.D).mean(0), dim=-1).expand(5, -1) + 0.01 * torch.randn(
            5, view.D
        )
    view.write_rows(rows, vectors, torch.full((5,), 2.0))
    written = view.codebook()[rows].clone()
    observation, _ = observe(view, model, x)
    unhit = torch.tensor([row not in observation.codes for row in rows])
    assert unhit.sum() >= 3
    torch.testing.assert_close(view.codebook()[rows][unhit], written[unhit], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_codebook_is_bit_equal_while_the_model_trains_on(mode: str) -> None:
    model, x = build(mode)
    model.train()
    optimizer = torch.optim.Adam([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)
    for view in discover(model).views:
        view.freeze()
        kept = {role: tensor.clone() for role, tensor in view.tensors()}
        for _ in range(3):
            _, output = observe(view, model, x.clone().requires_grad_())
            optimizer.zero_grad()
            (output[0].sum() + output[2].sum()).backward()
            optimizer.step()
            view.hold()
        assert all(torch.equal(kept[role], tensor) for role, tensor in view.tensors())
        view.unfreeze()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("heads", [1, 2])
def test_masked_tokens_are_no_tokens(heads: int) -> None:
    options: dict[str, Any] = {"heads": heads, "codebook_dim": 4} if heads > 1 else {}
    model = VectorQuantize(dim=8, codebook_size=16, **options).eval()
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 4:] = False
    view = discover(model).views[0]
    observation, output = observe(view, model, torch.randn(2, 10, 8), mask=mask)
    assert int((observation.codes >= 0).sum()) == 14 * heads
    kept = observation.codes[observation.codes >= 0]
    counted = torch.bincount(kept, minlength=16)
    assert torch.equal(counted, torch.bincount(output[1][output[1] >= 0].flatten(), minlength=16))


def test_the_commitment_weight_is_set_live() -> None:
    model, x = build("ema")
    view = discover(model).views[0]
    assert view.commitment is not None
    model.train()
    view.freeze()
    first = float(model(x)[2].detach())
    view.commitment.set(0.25)
    assert float(model(x)[2].detach()) == pytest.approx(first / 4)


def test_what_a_mode_does_not_allow_is_said_with_the_reason() -> None:
    affine = VectorQuantize(dim=8, codebook_size=16, affine_param=True)
    assert "affine_param" in (discover(affine).views[0].why_not("reset") or "")


def test_residual_levels_are_one_codebook_each_and_a_shared_one_is_found_once() -> None:
    levels = discover(nn.Sequential(ResidualVQ(dim=8, num_quantizers=3, codebook_size=16))).views
    assert [view.name for view in levels] == ["0.layers.0", "0.layers.1", "0.layers.2"]
    shared = ResidualVQ(dim=8, num_quantizers=3, codebook_size=16, shared_codebook=True)
    assert len(discover(shared).views) == 1


def test_a_codebook_that_waits_for_its_kmeans_start_says_so() -> None:
    model = VectorQuantize(dim=8, codebook_size=16, kmeans_init=True)
    (view,) = discover(model).views
    assert not view.is_initialised()
    model.train()(torch.randn(4, 20, 8))
    assert view.is_initialised()


def test_one_code_cannot_collapse() -> None:
    with pytest.raises(NoQuantizerError, match="K = 1"):
        discover(VectorQuantize(dim=8, codebook_size=1))


def test_a_codebook_that_is_compared_otherwise_from_some_step_on_is_followed_and_put_back() -> None:
    model, x = build("ema")
    (view,) = discover(nn.Sequential(model)).views
    leaf: Any = model._codebook
    assert (view.metric, view.normalisation) == ("l2", None)
    leaf.use_cosine_sim, leaf.transform_input = True, functional.normalize
    assert [view.follow(), view.follow()] == [True, False]
    assert view.metric_by_design == view.metric == "cosine"
    view.disable_normalisation()
    assert not view.follow()  # what the guard has set is its own
    assert (view.metric, view.metric_by_design, leaf.use_cosine_sim) == ("l2", "cosine", False)
    model.eval()
    observation, _ = observe(view, model, x)
    assert observation.latents is not None
    assert torch.equal(observation.latents, x.reshape(-1, 8))
    view.restore_normalisation()
    view.follow()
    assert (view.metric, leaf.use_cosine_sim) == ("cosine", True)
    leaf.use_cosine_sim = False
    view.follow()
    assert (view.metric, view.normalisation) == ("l2", None)

"""vector-quantize-pytorch made with commitment_weight=0: what is added to its loss is what the package would have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import GroupedResidualVQ, HierarchicalVQ, ResidualVQ, VectorQuantize

from collapse_guard import Guard, discover
from collapse_guard.adapters import CodebookView
from collapse_guard.adapters.commitment import LeftOutCommitment

WEIGHT = 0.3
SEQUENCE = (4, 10, 8)
MASK = torch.arange(10) < torch.tensor([10, 4, 1, 7]).unsqueeze(1)
PROJECTED: dict[str, Any] = {"codebook_dim": 4}
HEADS: dict[str, Any] = {"codebook_dim": 4, "heads": 2}
OWN_HEADS: dict[str, Any] = {**HEADS, "separate_codebook_per_head": True}
MODES: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "ema": ({}, SEQUENCE, {}),
    "no rotation": ({"rotation_trick": False}, SEQUENCE, {}),
    "cosine": ({"use_cosine_sim": True}, SEQUENCE, {}),
    "channel first": ({"channel_last": False}, (4, 8, 10), {}),
    "images": ({"accept_image_fmap": True}, (4, 8, 4, 3), {}),
    "two-dimensional": ({}, (40, 8), {}),
    "projected": (PROJECTED, SEQUENCE, {}),
    "shared heads": (HEADS, SEQUENCE, {}),
    "separate heads": (OWN_HEADS, SEQUENCE, {}),
    "cosine heads": ({**HEADS, "use_cosine_sim": True}, SEQUENCE, {}),
    "affine": ({"affine_param": True}, SEQUENCE, {}),
    "diverse": ({"codebook_diversity_loss_weight": 0.1}, SEQUENCE, {}),
    "orthogonal": ({"orthogonal_reg_weight": 1.0}, SEQUENCE, {}),
    "dead codes replaced": ({"threshold_ema_dead_code": 2}, SEQUENCE, {}),
    "k-means start": ({"kmeans_init": True}, SEQUENCE, {}),
    "frozen": ({"freeze_codebook": True}, SEQUENCE, {}),
    "mask": ({}, SEQUENCE, {"mask": MASK}),
    "lens": ({}, SEQUENCE, {"lens": MASK.sum(1)}),
    "loss in parts": ({}, SEQUENCE, {"return_loss_breakdown": True}),
}


def single(weight: float, **options: Any) -> VectorQuantize:
    torch.manual_seed(0)
    return VectorQuantize(dim=8, codebook_size=16, commitment_weight=weight, **options).train()


def residual(weight: float, **options: Any) -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(dim=8, codebook_size=16, commitment_weight=weight, **options).train()


def batch(seed: int = 0, shape: tuple[int, ...] = SEQUENCE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pull(module: nn.Module, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return the loss of one call, summed over levels, and its gradient with respect to x."""
    given = x.clone().requires_grad_()
    torch.manual_seed(1)
    loss = module(given, **kwargs)[2].sum()
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.detach(), gradient


def left_out(view: CodebookView) -> LeftOutCommitment:
    assert isinstance(view.commitment, LeftOutCommitment)
    return view.commitment


def raise_all(module: nn.Module) -> None:
    for view in discover(module).views:
        left_out(view).set(WEIGHT)


def hooks_of(module: nn.Module) -> list[int]:
    return [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()]


def assert_the_same_pull(made: nn.Module, without: nn.Module, shape: tuple[int, ...], **kwargs: Any) -> None:
    """Compare a module that was made with the weight and one that was made without and raised, while codes move."""
    raise_all(without)
    for seed in range(3):
        x = batch(seed, shape)
        (loss, gradient), (own_loss, own_gradient) = pull(without, x, **kwargs), pull(made, x, **kwargs)
        assert own_gradient.norm() > 0
        assert_close(loss, own_loss)
        assert_close(gradient, own_gradient)
    states = (each.state_dict().values() for each in (made, without))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_pull_are_those_of_a_module_that_was_made_with_the_weight(mode: str) -> None:
    options, shape, kwargs = MODES[mode]
    assert_the_same_pull(single(WEIGHT, **options), single(0.0, **options), shape, **kwargs)


@pytest.mark.parametrize(
    ("options", "kwargs"),
    [
        ({"num_quantizers": 3}, {}),
        ({"num_quantizers": 3, "codebook_dim": 4}, {}),
        ({"num_quantizers": 3, "use_cosine_sim": True}, {}),
        ({"num_quantizers": 3}, {"mask": MASK}),
        ({"num_quantizers": 4, "quantize_dropout": True}, {"rand_quantize_dropout_fixed_seed": 1}),
    ],
)
def test_a_residual_raised_at_every_level_is_one_that_was_made_with_the_weight(
    options: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    assert_the_same_pull(residual(WEIGHT, **options), residual(0.0, **options), SEQUENCE, **kwargs)


def _groups(weight: float) -> nn.Module:
    module: nn.Module = GroupedResidualVQ(dim=8, groups=2, num_quantizers=2, codebook_size=16, commitment_weight=weight)
    return module


def _scales(weight: float) -> nn.Module:
    options: dict[str, Any] = {"scales": (4, 8), "kmeans_init": False, "commitment_weight": weight}
    module: nn.Module = HierarchicalVQ(dim=8, codebook_size=16, **options)
    return module


@pytest.mark.parametrize(("build", "shape"), [(_groups, SEQUENCE), (_scales, (4, 8, 8))])
def test_groups_and_scales_have_their_pull_too(build: Callable[[float], nn.Module], shape: tuple[int, ...]) -> None:
    made, without = ((torch.manual_seed(0), build(weight).train())[1] for weight in (WEIGHT, 0.0))
    assert_the_same_pull(made, without, shape)


@pytest.mark.parametrize("mode", ["ema", "projected", "shared heads", "separate heads", "cosine", "cosine heads"])
def test_padding_is_not_pulled_and_what_is_left_is_pulled_as_if_it_were_alone(mode: str) -> None:
    module, alone = (single(0.0, **MODES[mode][0]) for _ in range(2))
    raise_all(module)
    raise_all(alone)
    x = batch()
    (loss, gradient), (own_loss, own) = pull(module, x, mask=MASK), pull(alone, x[MASK].unsqueeze(0))
    assert (gradient[~MASK] == 0).all()
    assert_close(loss, own_loss)
    assert_close(gradient[MASK], own[0])


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("options", [PROJECTED, HEADS, OWN_HEADS])
def test_the_package_itself_takes_no_mask_beside_projections_or_heads(options: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        single(WEIGHT, **options)(batch(), mask=MASK)


def test_a_mask_that_leaves_nothing_pulls_nothing() -> None:
    module = single(0.0)
    raise_all(module)
    loss, gradient = pull(module, batch(), mask=torch.zeros_like(MASK))
    assert float(loss) == 0
    assert (gradient == 0).all()


def test_until_it_is_raised_there_is_no_hook_and_afterwards_none_either() -> None:
    module = single(0.0)
    (view,) = discover(module).views
    before = hooks_of(module)
    assert left_out(view).get() == 0.0
    ends: tuple[Callable[[], None], ...] = (lambda: left_out(view).set(0.0), view.release)
    for end in ends:
        left_out(view).set(WEIGHT)
        left_out(view).set(2 * WEIGHT)
        assert sum(hooks_of(module)) == sum(before) + 2
        end()
        assert left_out(view).get() == 0.0
        assert hooks_of(module) == before
    assert float(module(batch())[2].detach()) == 0.0


def test_heads_with_codebooks_of_their_own_share_one_weight() -> None:
    first, second = discover(single(0.0, **OWN_HEADS)).views
    assert left_out(first) is left_out(second)


def test_evaluation_and_calls_without_a_loss_of_their_own_are_left_alone() -> None:
    module, x = single(0.0), batch()
    raise_all(module)
    assert len(module(x, indices=torch.randint(0, 16, (4, 10)))) == 2
    assert float(module(x, topk=2)[2].sum().detach()) == 0.0
    assert float(module(x)[2].detach()) > 0.0
    assert float(module.eval()(x)[2].detach()) == 0.0


def test_a_copy_computes_its_own_loss() -> None:
    module = single(0.0)
    raise_all(module)
    assert float(copy.deepcopy(module)(batch())[2].detach()) == 0.0
    assert float(module(batch())[2].detach()) > 0.0


def test_a_checkpointed_forward_gets_the_same_pull() -> None:
    gradients = []
    for is_checkpointed in (False, True):
        module, x = single(0.0, freeze_codebook=True), batch().requires_grad_()
        raise_all(module)
        output: Any = checkpoint(module, x, use_reentrant=False) if is_checkpointed else module(x)
        gradients.append(torch.autograd.grad(output[2].sum(), x)[0])
    assert gradients[0].norm() > 0
    assert_close(gradients[0], gradients[1])


def test_half_precision_gets_a_pull_in_its_own_precision() -> None:
    module, x = single(0.0), batch().bfloat16()
    raise_all(module)
    codes = module._codebook.embed[0].clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = pull(module, x)
    latents = x.float().flatten(0, 1)
    error = functional.mse_loss(latents, codes[torch.cdist(latents, codes).argmin(-1)])
    assert gradient.dtype is torch.bfloat16
    assert float(loss) == pytest.approx(WEIGHT * float(error), rel=0.02)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"learnable_codebook": True, "ema_update": False}, "learnable codebook"),
        ({"commitment_use_cross_entropy_loss": True}, "cross entropy"),
        ({"directional_reparam": True, "threshold_ema_dead_code": 1}, "directional_reparam"),
    ],
)
def test_what_could_not_be_pulled_as_its_owner_meant_it_is_refused(options: dict[str, Any], reason: str) -> None:
    (view,) = discover(single(0.0, **options)).views
    assert view.commitment is None
    assert reason in (view.why_not("commitment") or "")


@pytest.mark.parametrize(
    ("options", "reason"), [({"shared_codebook": True}, "share one codebook"), ({"beam_size": 2}, "candidates")]
)
def test_levels_that_cannot_be_pulled_one_by_one_are_refused(options: dict[str, Any], reason: str) -> None:
    for view in discover(residual(0.0, num_quantizers=2, **options)).views:
        assert view.commitment is None
        assert reason in (view.why_not("commitment") or "")


def test_observing_such_a_module_changes_no_bit_of_its_training() -> None:
    ends = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), single(0.0))
        optimizer = torch.optim.Adam(model.parameters())
        with Guard("observe", console=False) as guard:
            if is_watched:
                guard.attach(model, optimizer)
            for step in range(60):
                quantised, _, loss = model(batch(step, (4, 10, 6)))
                optimizer.zero_grad()
                ((quantised - 1).square().mean() + loss.sum()).backward()
                optimizer.step()
                if is_watched:
                    guard.step()
            assert [each.commitment_weight for each in guard.readings.values()] == [0.0] * is_watched
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])

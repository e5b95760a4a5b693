"""The embedding family on quantizers that no package ships: under the contract, and what is particular to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard import CodebookView, discover
from collapse_guard.adapters import Knob
from tests.contract import test_contract as contract
from tests.contract.case import Case, Run, flat
from tests.contract.taming import images

from .retold import AnchoredVQ, AveragedVQ, ProjectedVQ, SplitLossVQ


def _run(module: nn.Module, x: Tensor) -> Run:
    _, loss, codes = module(x)
    terms = [term for term in (loss if isinstance(loss, tuple) else (loss,)) if isinstance(term, Tensor)]
    return Run({"quantizer": flat(codes[2] if isinstance(codes, tuple) else codes)}, sum(terms) if terms else None)  # type: ignore[arg-type]


def _started() -> ProjectedVQ:
    quantizer = ProjectedVQ(8, 16, 4)
    quantizer.data_initialized.fill_(1)
    return quantizer


def _case(cls: str, build: Callable[[], nn.Module], mode: str = "", lacks: frozenset[str] = frozenset()) -> Case:
    return Case("told anew", cls, build, images, _run, ("quantizer",), lacks, mode=mode)


CASES = (
    _case("AnchoredVQ", lambda: AnchoredVQ(16, 8, 0.25, distance="l2", first_batch=True), "l2"),
    _case("AnchoredVQ", lambda: AnchoredVQ(16, 8, 0.25, distance="cos", first_batch=True), "cos"),
    _case("ProjectedVQ", _started),
    _case("SplitLossVQ", lambda: SplitLossVQ(16, 8, 0.25)),
)
CHECKS = [check for name, check in vars(contract).items() if name.startswith("test_")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds(check: Callable[[Case], None], case: Case) -> None:
    check(case)


def view_of(module: nn.Module) -> CodebookView:
    (view,) = discover(module).views
    return view


def encoder_gradient(module: nn.Module, z: Tensor) -> Tensor:
    given = z.clone().requires_grad_()
    loss: Any = _run(module, given).loss
    (gradient,) = torch.autograd.grad(loss, given)
    return gradient


def test_a_table_that_is_bound_anew_in_each_forward_is_read_where_it_is_now() -> None:
    module = AnchoredVQ(16, 8, 0.25, distance="l2", first_batch=False).train()
    view = view_of(module)
    for _ in range(3):
        before = view.codebook().data_ptr()
        module(images())
        assert view.codebook().data_ptr() != before
        assert torch.equal(view.codebook(), module.embedding.weight)


def test_a_frozen_table_is_not_re_initialised_and_one_that_is_taken_over_only_by_the_guard() -> None:
    module = AnchoredVQ(16, 8, 0.25, distance="l2", first_batch=False).train()
    view = view_of(module)
    assert view.replacement is not None
    for keep, let_go in ((view.freeze, view.unfreeze), (view.take_over, view.give_back)):
        keep()
        table = view.codebook().clone()
        for _ in range(3):
            module(images())
        assert torch.equal(view.codebook(), table)
        let_go()
        module(images())
        assert not torch.equal(view.codebook(), table)
    assert module.init is False


def test_a_codebook_that_waits_for_its_first_batch_says_so() -> None:
    module = ProjectedVQ(8, 16, 4)
    view = view_of(module)
    assert not view.is_initialised()
    module.train()(images())
    assert view.is_initialised()


def test_a_weight_inside_the_code_is_changed_through_the_loss_for_encoder_and_projection_alike() -> None:
    module, z = _started(), images()
    view = view_of(module)
    assert view.commitment is not None
    assert view.commitment.get() == 2.5  # 0.25, ten times
    before = encoder_gradient(module, z)
    module(z)[1].backward()
    codebook = module.embed.weight.grad
    projection = module.proj.weight.grad
    assert codebook is not None
    assert projection is not None
    codebook, projection = codebook.clone(), projection.clone()
    module.zero_grad()
    view.commitment.set(10.0)
    torch.testing.assert_close(encoder_gradient(module, z), 4 * before, rtol=1e-4, atol=1e-6)
    module(z)[1].backward()
    assert module.embed.weight.grad is not None
    assert module.proj.weight.grad is not None
    assert torch.equal(module.embed.weight.grad, codebook)
    torch.testing.assert_close(module.proj.weight.grad, 4 * projection, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build", [lambda: AnchoredVQ(16, 8, 0.25, distance="l2", first_batch=True), lambda: SplitLossVQ(16, 8, 0.25)]
)
def test_beta_is_the_commitment_weight_where_the_gradients_say_so(build: Callable[[], nn.Module]) -> None:
    module, z = build().train(), images()
    assert view_of(module).commitment == Knob(module, "beta")
    module.init = True  # type: ignore[assignment]
    before = encoder_gradient(module, z)
    module.beta = 1.0  # type: ignore[assignment]
    torch.testing.assert_close(encoder_gradient(module, z), 4 * before, rtol=1e-4, atol=1e-7)


def test_beta_is_told_from_another_term_that_pulls_the_encoder_too() -> None:
    module = SplitLossVQ(16, 8, 0.25, entropy_loss_ratio=0.1)
    assert view_of(module).commitment == Knob(module, "beta")


def test_an_embedding_that_moving_averages_stand_behind_is_of_another_family() -> None:
    (view,) = discover(AveragedVQ(16, 8)).views
    assert view.adapter == "home-made"
    assert view.kind == "ema"

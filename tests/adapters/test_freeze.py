"""Freezing one codebook of a tensor that several share, and tables that the module itself writes to."""

from __future__ import annotations

from typing import Any

import diveq
import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import discover

HEADS: dict[str, dict[str, Any]] = {
    "ema": {},
    "cosine": {"use_cosine_sim": True},
    "learnable": {"learnable_codebook": True, "ema_update": False},
}


def train_heads(options: dict[str, Any], *, frozen: int | None) -> list[dict[str, torch.Tensor]]:
    """Train three heads for six steps; return the tensors of each head at the start, then of each at the end."""
    torch.manual_seed(0)
    model = VectorQuantize(
        dim=12, codebook_size=16, heads=3, codebook_dim=4, separate_codebook_per_head=True, **options
    )
    optimizer = torch.optim.AdamW([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=1e-2)
    views = discover(model).views
    starts = [{role: tensor.clone() for role, tensor in view.tensors()} for view in views]
    if frozen is not None:
        views[frozen].freeze()
    for _ in range(6):
        q, _, loss = model(torch.randn(4, 20, 12).requires_grad_())
        optimizer.zero_grad()
        (q.square().mean() + loss.sum()).backward()
        optimizer.step()
        views[0 if frozen is None else frozen].hold()
    ends = [{role: tensor.clone() for role, tensor in view.tensors()} for view in views]
    return [*starts, *ends]


@pytest.mark.parametrize("mode", HEADS)
@pytest.mark.parametrize("frozen", [0, 2])
def test_a_frozen_head_stays_bit_equal_and_the_others_learn_bit_equal_to_an_unfrozen_run(
    mode: str, frozen: int
) -> None:
    options = HEADS[mode] | {"threshold_ema_dead_code": 0}
    records = train_heads(options, frozen=frozen)
    free = train_heads(options, frozen=None)
    for head in range(3):
        expected = records[head] if head == frozen else free[3 + head]
        torch.testing.assert_close(records[3 + head], expected, rtol=0, atol=0)
    assert not torch.equal(free[3 + frozen]["table"], free[frozen]["table"])


def test_all_heads_frozen_one_after_another_are_released_one_by_one() -> None:
    torch.manual_seed(0)
    model = VectorQuantize(dim=8, codebook_size=16, heads=2, codebook_dim=4, separate_codebook_per_head=True)
    views = discover(model).views
    for view in views:
        view.freeze()
    before = [view.codebook().clone() for view in views]
    model(torch.randn(4, 20, 8))
    assert [torch.equal(view.codebook(), table) for view, table in zip(views, before, strict=True)] == [True, True]
    views[0].unfreeze()
    model(torch.randn(4, 20, 8))
    assert [torch.equal(view.codebook(), table) for view, table in zip(views, before, strict=True)] == [False, True]


def test_a_frozen_table_keeps_out_what_its_own_module_replaces_between_forward_and_backward() -> None:
    torch.manual_seed(0)
    model = diveq.DIVEQ(16, 4, replacement_iters=2, allow_warning=False, verbose=False)
    (view,) = discover(model).views
    x = torch.randn(64, 4, requires_grad=True)
    start = view.codebook().clone()
    for _ in range(2):
        model(x)
    assert not torch.equal(view.codebook(), start), "the module replaces codes by itself"
    kept, before = view.codebook().clone(), model.get_buffer("iter_counter").clone()
    view.freeze()
    for _ in range(4):
        q, _, _ = model(x)
        q.square().mean().backward()
    assert int(model.iter_counter - before) == 4
    assert torch.equal(view.codebook(), kept)
    assert model.codebook.grad is not None
    assert not model.codebook.grad.any()


def test_a_level_frozen_alone_lets_the_other_levels_learn() -> None:
    torch.manual_seed(0)
    model = diveq.ResidualDIVEQ(16, 4, 3, allow_warning=False, verbose=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    views = discover(model).views
    views[1].freeze()
    before = [view.codebook().clone() for view in views]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(64, 4))[0].square().mean().backward()
        optimizer.step()
        views[1].hold()
    assert [torch.equal(view.codebook(), table) for view, table in zip(views, before, strict=True)] == [
        False,
        True,
        False,
    ]

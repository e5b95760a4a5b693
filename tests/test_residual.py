"""What the rings of residual levels hold in common, and what they hold after a write."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.kmeans import assign
from collapse_guard.probe import Probe
from collapse_guard.residual import Levels, follows
from collapse_guard.window import Window

K, D = 16, 4


class Table(nn.Module):
    """A codebook and nothing else."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(K, D))


def windows(count: int) -> list[Window]:
    return [Window(K, D, seed=7) for _ in range(count)]


def code(found: list[Window], tables: list[Tensor], forwards: int = 5, tokens: int = 600, drift: float = 0.1) -> None:
    """Code tokens level by level, with tables that move from forward to forward."""
    for _ in range(forwards):
        left = torch.randn(tokens, D)
        for window, table in zip(found, tables, strict=True):
            codes = assign(left, table)
            window.add(codes, left)
            left = left - table[codes]
            table += drift * torch.randn(K, D)


def probes(tables: list[Tensor]) -> list[Probe]:
    """Probes of levels with these tables and with rings that hold the same tokens."""
    found = []
    for level, table in enumerate(tables):
        module = Table()
        module.rows.copy_(table)
        ref = TensorRef(module, "rows")
        view = CodebookView(
            name=f"rvq.{level}", adapter="", module=module, table=ref, readers={}, group="rvq", level=level
        )
        found.append(Probe(view, seed=7, on_error=lambda error: None))
    return found


def test_levels_that_code_what_is_left_over_follow_although_their_tables_move() -> None:
    torch.manual_seed(0)
    coarse, fine, finest = windows(3)
    code([coarse, fine, finest], [torch.randn(K, D) for _ in range(3)])
    assert follows(coarse, fine)
    assert follows(fine, finest)
    assert not follows(coarse, finest)


def test_levels_that_see_other_tokens_do_not_follow() -> None:
    torch.manual_seed(0)
    coarse, fine, table = *windows(2), torch.randn(K, D)
    code([coarse], [table])
    code([fine], [table])
    assert not follows(coarse, fine)


def test_a_level_behind_a_projection_does_not_follow() -> None:
    torch.manual_seed(0)
    (coarse, fine), table, turn = windows(2), torch.randn(K, D), torch.linalg.qr(torch.randn(D, D)).Q
    latents = torch.randn(600, D)
    codes = assign(latents, table)
    coarse.add(codes, latents)
    fine.add(codes, (latents - table[codes]) @ turn)
    assert not follows(coarse, fine)


def test_what_was_never_seen_or_hardly_at_all_does_not_follow() -> None:
    (coarse, fine), table = windows(2), torch.randn(K, D)
    assert not follows(coarse, fine)
    code([coarse, fine], [table, table.clone()], forwards=1, tokens=4)
    assert not follows(coarse, fine)


def test_after_a_write_the_finer_rings_hold_what_the_new_codebook_leaves_over() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(K, D) for _ in range(3)]
    found = probes(tables)
    code([probe.window for probe in found], [table.clone() for table in tables])
    levels = Levels(found)
    table = found[0].view.codebook()
    table.copy_(torch.randn(K, D))
    levels.refresh(found[0])
    latents, left, rest = (probe.window.sample() for probe in found)
    assert torch.equal(left, latents - table[assign(latents, table)])
    assert torch.equal(rest, left - tables[1][assign(left, tables[1])])
    assert follows(found[0].window, found[1].window)
    assert follows(found[1].window, found[2].window)


def test_where_levels_do_not_follow_the_finer_rings_are_emptied_and_the_reason_is_said() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(K, D) for _ in range(3)]
    found = probes(tables)
    code([found[0].window, found[1].window], tables[:2])
    code([found[2].window], tables[2:])
    levels = Levels(found)
    assert levels.why_stale(found[1], found[0]) is None
    assert levels.why_stale(found[2], found[0]) == (
        "rvq.0, a coarser level of the same residual, was written, and the latents recorded of rvq.2 cannot be derived "
        "from those of rvq.1: it waits for new ones"
    )
    levels.refresh(found[0])
    assert [len(probe.window.sample()) for probe in found] == [5 * 256, 5 * 256, 0]


def test_a_level_that_is_missing_in_between_breaks_the_chain() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(K, D) for _ in range(2)]
    found = probes(tables)
    code([probe.window for probe in found], tables)
    found[1].view.level = 2
    assert Levels(found).why_stale(found[1], found[0]) is not None


def test_rows_taken_for_no_tokens_are_not_compared_and_new_ones_are() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(K, D) for _ in range(2)]
    coarse, fine = windows(2)
    code([coarse, fine], tables)
    fine.forget()
    assert len(fine.sample()) == 0
    assert not follows(coarse, fine)
    code([coarse, fine], tables, forwards=1)
    assert follows(coarse, fine)

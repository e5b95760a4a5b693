"""The peer bug, shown: encodec's replacement of dead codes is undone in the same forward; the guard's reset is not."""

from __future__ import annotations

import pytest
import torch

from .replacement import SITUATIONS, outcome


@pytest.mark.parametrize(("kmeans_init", "jumps"), SITUATIONS)
def test_encodecs_own_replacement_changes_no_bit_of_the_codebook_and_the_guards_reset_holds(
    kmeans_init: bool, jumps: bool
) -> None:
    for seed in range(5):
        neither, own, guarded = (
            outcome(arm, seed, kmeans_init=kmeans_init, jumps=jumps) for arm in ("neither", "encodec's own", "guard")
        )
        assert torch.equal(own.table, neither.table)
        assert guarded.used > 60
        assert guarded.error <= neither.error
        if jumps or not kmeans_init:
            assert own.used <= 35
            assert guarded.error < 0.35 * own.error

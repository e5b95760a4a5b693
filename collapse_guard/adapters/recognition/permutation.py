"""The permutation test: roll the rows of a table, and the codes must roll with them while the vectors stay.

A quantizer's codes are names of rows. A class label, an expert's number or a position is a name of something else too,
so that renaming the rows changes what the model computes.
"""

from __future__ import annotations

import torch
from torch import nn

from collapse_guard.adapters.nested import flatten_tensors

from .structure import Table
from .twins import Bench, Trial

__all__ = ["rolls_with_rows"]


def rolls_with_rows(bench: Bench, entry: str, trial: Trial, table: Table, outputs: tuple[int, int]) -> bool:
    """Run the trial again on a copy whose rows are rolled by one.

    Args:
        bench: runs copies of the module.
        entry: the method that the trial called.
        trial: the run in evaluation mode to compare with.
        table: whose rows are rolled.
        outputs: which of the output's tensors hold the codes, as indices or one-hot, and the quantised vectors.
    """

    def roll(twin: nn.Module) -> None:
        path, _, attribute = table.name.rpartition(".")
        tensor = getattr(twin.get_submodule(path), attribute)
        tensor.copy_(tensor.roll(1, dims=1 if table.transposed else 0))

    again = bench.run(entry, tuple(trial.given.shape), edit=roll)
    if again is None:
        return False
    (codes, vectors), (rolled_codes, rolled_vectors) = (
        [list(flatten_tensors(output))[index] for index in outputs] for output in (trial.output, again.output)
    )
    expected = codes.roll(1, dims=-1) if codes.is_floating_point() else (codes.long() + 1) % table.K
    if codes.numel() != trial.given.numel() // table.D:  # one-hot integers
        expected = codes.roll(1, dims=-1)
    return torch.allclose(expected.float(), rolled_codes.float(), atol=1e-3) and torch.allclose(
        vectors, rolled_vectors, rtol=1e-3, atol=1e-4
    )

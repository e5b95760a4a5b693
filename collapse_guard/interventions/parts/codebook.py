"""The part that most interventions write: a codebook with all that would undo a write to its table alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.optimizer import moment_rows, unknown_state

from .part import InterventionError, Part

__all__ = ["CodebookPart", "table_moments", "tensors_of"]


class CodebookPart(Part):
    """A codebook: table, moving averages, optimizer rows, whether it is frozen, the quantizer's own replacement.

    Args:
        view: the codebook.
        optimizers: those that may hold moments of its rows.
    """

    name = "codebook"

    def __init__(self, view: CodebookView, optimizers: Sequence[Optimizer]) -> None:
        """Store where it is."""
        self._view = view
        self._optimizers = optimizers
        self._tensors: dict[str, Tensor] = {}
        self._was_frozen = self._was_taken_over = False
        self._rows_before: Tensor | None = None

    @property
    def place(self) -> Hashable:
        """The codebook, by name."""
        return "codebook", self._view.name

    def save(self) -> None:
        """Copy every tensor that a write touches."""
        self._tensors = {name: tensor.detach().clone() for name, tensor in self._live().items()}
        self._was_frozen, self._was_taken_over = self._view.is_frozen, self._view.is_taken_over
        self._rows_before = self._view.codebook().clone()

    def _live(self) -> dict[str, Tensor]:
        return tensors_of(self._view, self._optimizers)

    def check(self) -> None:
        """Refuse a codebook that could not work.

        Raises:
            InterventionError: non-finite or duplicate rows, or EMA sum, count and table that contradict each other.
        """
        view, table = self._view, self._view.codebook().float()
        assert self._rows_before is not None
        if not bool(table.isfinite().all()):
            raise InterventionError("the written codebook has non-finite values")
        if (distinct := len(torch.unique(table, dim=0))) < len(table):
            raise InterventionError(f"the written codebook has {len(table) - distinct} duplicate rows of {len(table)}")
        if view.ema_sum is None or view.ema_count is None or table.dtype != view.codebook().dtype:
            return  # a half-precision table cannot be expected to equal sum / count closely
        count = view.ema_count.get().float().unsqueeze(-1)
        written = (self._rows_before != view.codebook()).any(dim=-1)
        expected = (view.ema_sum.get().float() / count)[written]
        if view.metric == "cosine" and not view.decodes_raw:
            expected = torch.nn.functional.normalize(expected, dim=-1)
        if not torch.allclose(expected, table[written], rtol=1e-3, atol=1e-5):
            raise InterventionError(
                "EMA sum / EMA count does not equal the written rows; the next update would undo them"
            )

    @torch.no_grad()
    def undo(self) -> None:
        """Copy every tensor back, and give freeze and replacement back where they were taken."""
        if self._view.is_frozen and not self._was_frozen:
            self._view.unfreeze()
        live = self._live()
        for name, saved in self._tensors.items():
            if name in live:
                live[name].copy_(saved)
        if self._view.is_taken_over and not self._was_taken_over:
            self._view.give_back()
        self._view.written()

    def changes(self) -> list[dict[str, Any]]:
        """Return name, shape, rows changed, norm before and after of each tensor; then the switches."""
        live = self._live()
        found: list[dict[str, Any]] = []
        for name, saved in self._tensors.items():
            now = live.get(name)
            if now is None or torch.equal(now, saved):
                continue
            rows = int((now != saved).reshape(len(now), -1).any(dim=-1).sum())
            norms = {"before": float(saved.float().norm()), "after": float(now.float().norm())}
            found.append({"name": name, "shape": list(now.shape), "rows": rows, **norms})
        table = self._view.table
        if isinstance(table, TensorRef) and table.is_parameter:
            optimizers = [*self._optimizers, *self._view.optimizers]
            unknown = unknown_state(optimizers, cast(nn.Parameter, table.whole()))
            found += [{"name": name, "left_alone": "row-shaped, not known to be a moment"} for name in unknown]
        if self._view.is_frozen != self._was_frozen:
            found.append({"name": "frozen", "before": self._was_frozen, "after": self._view.is_frozen})
        if (taken_over := self._view.is_taken_over) != self._was_taken_over:
            found.append({"name": "own_replacement", "before": taken_over, "after": not taken_over})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and the switches."""
        return {
            "tensors": {name: tensor.cpu() for name, tensor in self._tensors.items()},
            "was_frozen": self._was_frozen,
            "was_taken_over": self._was_taken_over,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the tensors, on the codebook's device, and the switches."""
        device = self._view.codebook().device
        self._tensors = {name: tensor.to(device) for name, tensor in state["tensors"].items()}
        self._was_frozen, self._was_taken_over = bool(state["was_frozen"]), bool(state["was_taken_over"])


def tensors_of(view: CodebookView, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return what makes up a codebook, by name, as views on the model: table, EMA, optimizer moments of its rows."""
    return dict(view.tensors()) | (table_moments(view, optimizers) or {})


def table_moments(view: CodebookView, optimizers: Sequence[Optimizer]) -> dict[str, Tensor] | None:
    """Return the optimizer moments of this codebook's table as (K, D) views, `None` for a table without any."""
    if not isinstance(view.table, TensorRef) or not view.table.is_parameter:
        return None
    parameter = cast(nn.Parameter, view.table.whole())
    moments = moment_rows([*optimizers, *view.optimizers], parameter)
    return {name: view.table.part_of(tensor) for name, tensor in moments.items()}

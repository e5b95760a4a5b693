"""What an intervention is: a site to work on, a transaction that can be undone, and a contract.

An intervention never decides. It says whether it can ever act on a codebook (`why_unsupported`) and whether it can here
and now (`refusal`), acts once at a step boundary (`apply`), and, where it stays in force, keeps itself up to date
(`tend`). Everything that it touches was saved by its transaction before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.optimizer import moment_rows, unknown_state
from collapse_guard.window import Window

__all__ = ["Intervention", "InterventionError", "Site", "Transaction"]

Params = TypeVar("Params")


class InterventionError(RuntimeError):
    """An applied intervention left an inconsistent codebook; its transaction has been undone."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where an intervention works.

    Attributes:
        view: the codebook.
        window: its recorded latents.
        optimizers: those that may hold moments of its rows.
        counts: (K,) uses of each code in the reading that led here.
        dead_below: share of the uniform share under which a code is dead.
        seed: of anything random, derived from run and attempt.
        ask: asks the training loop for what only it can do, by name; see `collapse_guard.requests`.
        progress: returns the share of the planned training that is done, in [0, 1], or `None` where no plan is known.
    """

    view: CodebookView
    window: Window
    optimizers: Sequence[Optimizer]
    counts: np.ndarray
    seed: int
    dead_below: float = 0.1
    ask: Callable[[str], None] = lambda kind: None
    progress: Callable[[], float | None] = lambda: None


class Intervention(ABC, Generic[Params]):
    """One action on one codebook.

    Args:
        params: the validated parameters from the policy.
        site: where it works.
    """

    touches: ClassVar[frozenset[str]] = frozenset()
    """What `apply` may change: "codebook" (table, EMA, optimizer rows, freeze, own replacement) and "commitment"."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Capabilities that a codebook must have; the reason of the first that it lacks is told."""
    stays: ClassVar[bool] = False
    """Whether it stays in force after it recovered the codebook, and wants `tend` at each step before it is read."""
    tends: ClassVar[bool] = False
    """Whether it ends with its outcome, and until then wants `tend` after each reading."""

    def __init__(self, params: Params, site: Site) -> None:
        """Store the parts."""
        self.params = params
        self.site = site
        self.writes = 0
        """How often `tend` has rewritten the codebook: each time token ids may change."""
        self.facts: dict[str, int] = {}
        """Numbers that go into the event beside what was done last: `ids_changed` of `ids_compared` latents."""

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Say why this can never be done on a codebook, whatever it shows; `None` where it may be."""
        return next((why for need in cls.needs if (why := view.why_not(need)) is not None), None)

    def refusal(self) -> str | None:
        """Say why this cannot be done here and now; `None` where it can."""
        return self.why_unsupported(self.site.view)

    @abstractmethod
    def apply(self) -> str:
        """Act, in place, and say what was done with numbers."""

    def tend(self, steps: int) -> str | None:
        """Keep up while in force, told after each step how many it has been; say what was done, if anything."""
        return None

    def ending(self) -> str | None:
        """Let go of what was held while it was open; say what was done in all, if that was not said yet."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what an intervention in force must remember over a resume, as plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""


class Transaction:
    """Saves what an intervention will touch, checks and describes what it left, can put all of it back bit-equal.

    Args:
        view: the codebook.
        optimizers: those that may hold moments of its rows.
        touches: see `Intervention.touches`.
    """

    def __init__(self, view: CodebookView, optimizers: Sequence[Optimizer], touches: frozenset[str]) -> None:
        """Take the snapshot."""
        self._view = view
        self._optimizers = optimizers
        self._touches = touches
        self._tensors = {name: tensor.detach().clone() for name, tensor in self._live().items()}
        self._commitment = view.commitment.get() if "commitment" in touches and view.commitment is not None else None
        self._was_frozen = view.is_frozen
        self._was_taken_over = view.is_taken_over
        self._rows_before = view.codebook().clone() if "codebook" in touches else None

    def _live(self) -> dict[str, Tensor]:
        if "codebook" not in self._touches:
            return {}
        live = dict(self._view.tensors())
        if (moments := _moments(self._view, self._optimizers)) is not None:
            live |= moments
        return live

    def check(self) -> None:
        """Refuse a codebook that could not work.

        Raises:
            InterventionError: non-finite or duplicate rows, or EMA sum, count and table that contradict each other.
        """
        if "codebook" not in self._touches:
            return
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
        """Put every saved tensor and number back, bit-equal and in place."""
        if self._view.is_frozen and not self._was_frozen:
            self._view.unfreeze()
        live = self._live()
        for name, saved in self._tensors.items():
            if name in live:
                live[name].copy_(saved)
        if self._commitment is not None and self._view.commitment is not None:
            self._view.commitment.set(self._commitment)
        if self._view.is_taken_over and not self._was_taken_over:
            self._view.give_back()
        self._view.written()

    def manifest(self) -> list[dict[str, Any]]:
        """Return one record per tensor or number that changed: name, shape, rows changed, norm before and after."""
        live = self._live()
        changes: list[dict[str, Any]] = []
        for name, saved in self._tensors.items():
            now = live.get(name)
            if now is None or torch.equal(now, saved):
                continue
            rows = int((now != saved).reshape(len(now), -1).any(dim=-1).sum())
            norms = {"before": float(saved.float().norm()), "after": float(now.float().norm())}
            changes.append({"name": name, "shape": list(now.shape), "rows": rows, **norms})
        table = self._view.table
        if "codebook" in self._touches and isinstance(table, TensorRef) and table.is_parameter:
            unknown = unknown_state(
                [*self._optimizers, *self._view.optimizers], cast(torch.nn.Parameter, table.whole())
            )
            changes += [{"name": name, "left_alone": "row-shaped, not known to be a moment"} for name in unknown]
        weight = self._view.commitment.get() if self._view.commitment is not None else None
        if self._commitment is not None and weight != self._commitment:
            changes.append({"name": "commitment_weight", "before": self._commitment, "after": weight})
        if self._view.is_frozen != self._was_frozen:
            changes.append({"name": "frozen", "before": self._was_frozen, "after": self._view.is_frozen})
        if (taken_over := self._view.is_taken_over) != self._was_taken_over:
            changes.append({"name": "own_replacement", "before": taken_over, "after": not taken_over})
        return changes

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain data and tensors."""
        return {
            "tensors": {name: tensor.cpu() for name, tensor in self._tensors.items()},
            "commitment": self._commitment,
            "was_frozen": self._was_frozen,
            "was_taken_over": self._was_taken_over,
            "touches": sorted(self._touches),
        }

    @classmethod
    def restore(cls, state: dict[str, Any], view: CodebookView, optimizers: Sequence[Optimizer]) -> Transaction:
        """Rebuild a transaction from `state_dict`, so that a resumed run can still undo it."""
        transaction = cls(view, optimizers, frozenset())
        transaction._touches = frozenset(state["touches"])
        device = view.codebook().device
        transaction._tensors = {name: tensor.to(device) for name, tensor in state["tensors"].items()}
        transaction._commitment = state["commitment"]
        transaction._was_frozen = bool(state["was_frozen"])
        transaction._was_taken_over = bool(state["was_taken_over"])
        return transaction


def _moments(view: CodebookView, optimizers: Sequence[Optimizer]) -> dict[str, Tensor] | None:
    """Return the optimizer moments of this codebook's table as (K, D) views, `None` for a table without any."""
    if not isinstance(view.table, TensorRef) or not view.table.is_parameter:
        return None
    parameter = cast(torch.nn.Parameter, view.table.whole())
    moments = moment_rows([*optimizers, *view.optimizers], parameter)
    return {name: view.table.part_of(tensor) for name, tensor in moments.items()}


def clear_moments(site: Site, rows: Tensor) -> None:
    """Zero the optimizer moments of the given rows, so that nothing keeps pushing the codes placed there."""
    for tensor in (_moments(site.view, site.optimizers) or {}).values():
        tensor.index_fill_(0, rows.to(tensor.device), 0.0)

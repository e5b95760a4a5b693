"""`rollback`: model and optimizers as they were when every codebook was last healthy.

Memory: one snapshot of parameters, buffers and optimizer state, and, until the outcome is known, a second one of how
things were before, since a rollback that did not help is undone like anything else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import Rollback
from collapse_guard.snapshots import Snapshot

from .base import Intervention
from .parts import InterventionError, Part

__all__ = ["ModelPart", "RollbackIntervention"]


class ModelPart(Part):
    """A whole model with its optimizers' state.

    Args:
        model: that trains.
        optimizers: that move it.
        views: all codebooks of the model, which keep what they hold now where they are frozen.
    """

    name = "model"

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], views: Sequence[CodebookView]) -> None:
        """Store where it is."""
        self._model, self._optimizers, self._views = model, optimizers, views
        self._snapshot: Snapshot | None = None

    @property
    def place(self) -> Hashable:
        """The model."""
        return id(self._model)

    def save(self) -> None:
        """Copy everything, on its own device."""
        self._snapshot = Snapshot(self._model, self._optimizers)

    def check(self) -> None:
        """Refuse weights that are not finite.

        Raises:
            InterventionError: a floating-point parameter has NaN or Inf.
        """
        for name, parameter in self._model.named_parameters():
            if parameter.is_floating_point() and not bool(parameter.detach().isfinite().all()):
                raise InterventionError(f"{name} has non-finite values in the snapshot")

    def undo(self) -> None:
        """Write everything back."""
        assert self._snapshot is not None
        self._snapshot.restore(self._model, self._optimizers)
        for view in self._views:
            view.written()

    def changes(self) -> list[dict[str, Any]]:
        """Return how many tensors changed."""
        assert self._snapshot is not None
        of_model, of_state = self._snapshot.changed(self._model, self._optimizers)
        if not of_model and not of_state:
            return []
        return [{"name": self.name, "tensors": of_model, "optimizer_tensors": of_state}]

    def state_dict(self) -> dict[str, Any]:
        """Return the copies, on the host."""
        assert self._snapshot is not None
        return self._snapshot.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies."""
        self._snapshot = Snapshot.from_state_dict(state)


class RollbackIntervention(Intervention[Rollback]):
    """Right when something passing, such as a bad batch, threw a sound run off its course."""

    touches = frozenset({"model"})
    reaches_graphs = True

    def refusal(self) -> str | None:
        """Refuse where there is nothing to go back to."""
        site = self.site
        if (why := super().refusal()) is not None:
            return why
        if site.model is None or site.snapshots is None:
            return "the model is not known here"
        if site.snapshots.held is None:
            return "no reading has found every codebook healthy yet: there is no snapshot to go back to"
        return site.snapshots.held.why_other(site.model, site.optimizers)

    def parts(self) -> list[Part]:
        """Return the whole model."""
        site = self.site
        return [] if site.model is None else [ModelPart(site.model, site.optimizers, site.views)]

    def apply(self) -> str:
        """Write the snapshot back."""
        site = self.site
        assert site.model is not None
        assert site.snapshots is not None
        assert site.snapshots.held is not None
        held = site.snapshots.held
        held.restore(site.model, site.optimizers)
        for view in site.views:
            view.written()
        size = f"{held.nbytes / 2**20:.3g} MiB"
        return f"model and {len(site.optimizers)} optimizer(s) as they were at step {site.snapshots.step} ({size})"

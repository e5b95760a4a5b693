"""The part for tensors that a checkpoint of the model or its optimizers holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from .part import Part

__all__ = ["TensorsPart"]


class TensorsPart(Part):
    """Tensors by name, wherever they are; those of a model, which its own checkpoints hold.

    Args:
        name: in manifests.
        live: returns them as they are now.
        is_undone: whether `undo` puts back what was changed.
    """

    def __init__(self, name: str, live: Callable[[], Mapping[str, Tensor]], *, is_undone: bool = True) -> None:
        """Store where they are."""
        self.name = name
        self._live, self._is_undone = live, is_undone
        self._saved: dict[str, Tensor] = {}

    @property
    def place(self) -> Hashable:
        """The tensors themselves."""
        return self.name, frozenset(map(id, self._live().values()))

    def save(self) -> None:
        """Copy each of them."""
        self._saved = {name: tensor.detach().clone() for name, tensor in self._live().items()}

    def check(self) -> None:
        """Keep no more than what was changed: the rest is training's own to change from now on."""
        changed = {record["name"] for record in self.changes()}
        self._saved = {name: saved for name, saved in self._saved.items() if name in changed}

    @torch.no_grad()
    def undo(self) -> None:
        """Copy each of those that were changed back."""
        live = self._live()
        for name, saved in self._saved.items() if self._is_undone else ():
            if name in live and not torch.equal(live[name], saved):
                live[name].detach().copy_(saved)

    def changes(self) -> list[dict[str, Any]]:
        """Return name, shape and norm before and after of each tensor that changed."""
        live, found = self._live(), list[dict[str, Any]]()
        for name, saved in self._saved.items():
            now = live.get(name)
            if now is not None and not torch.equal(now, saved):
                norms = {"before": float(saved.float().norm()), "after": float(now.detach().float().norm())}
                found.append({"name": name, "shape": list(now.shape), **norms})
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the copies."""
        return {name: tensor.cpu() for name, tensor in self._saved.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies, each on the device of its tensor."""
        live = self._live()
        self._saved = {name: tensor.to(live[name].device) for name, tensor in state.items() if name in live}

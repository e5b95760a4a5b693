"""Snapshots of a whole run: every parameter and buffer of a model, and what its optimizers remember.

One snapshot is kept at a time, of a moment when every codebook was healthy. Learning rates and other options of the
optimizers are not in it: a schedule goes on by its own plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.policies import Policy, Rollback

__all__ = ["Snapshot", "Snapshots", "wanted_snapshots"]

_SHARE = 0.1  # of a device's free memory that a snapshot may take there


class Snapshot:
    """How a model and its optimizers were at one moment.

    Args:
        model: whose parameters and buffers are copied, also buffers that no checkpoint holds.
        optimizers: whose state is copied.
        device: where copies of tensors go; `None`: each stays where its original is.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], device: torch.device | None = None) -> None:
        """Copy."""
        self.tensors = {name: _copy(tensor, device) for name, tensor in _named(model)}
        self.states = [
            [_copied(optimizer.state.get(each, {}), device) for each in _parameters(optimizer)]
            for optimizer in optimizers
        ]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Write everything back in place, bit-equal; state that an optimizer did not have yet is dropped.

        Raises:
            ValueError: the model or an optimizer has other tensors than then; nothing was written.
        """
        if (why := self.why_other(model, optimizers)) is not None:
            raise ValueError(why)
        for name, tensor in _named(model):
            tensor.copy_(self.tensors[name])
        for optimizer, states in zip(optimizers, self.states, strict=True):
            for parameter, state in zip(_parameters(optimizer), states, strict=True):
                _put(optimizer, parameter, state)

    def why_other(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> str | None:
        """Say why it does not fit a model and its optimizers as they are now; `None` where it does."""
        now = {name: tensor.shape for name, tensor in _named(model)}
        then = {name: tensor.shape for name, tensor in self.tensors.items()}
        if now != then:
            differ = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
            return f"the model has changed since the snapshot: {', '.join(differ[:3])}"
        if [len(list(_parameters(each))) for each in optimizers] != [len(states) for states in self.states]:
            return "an optimizer has other parameters than at the snapshot"
        return None

    def changed(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[int, int]:
        """Return how many tensors of the model differ from the snapshot, and how many of the optimizers' state."""
        of_model = sum(not _equal(tensor, self.tensors[name]) for name, tensor in _named(model) if name in self.tensors)
        of_state = sum(
            not _equal(value, state.get(key))
            for optimizer, states in zip(optimizers, self.states, strict=True)
            for parameter, state in zip(_parameters(optimizer), states, strict=True)
            for key, value in optimizer.state.get(parameter, {}).items()
        )
        return of_model, of_state

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        states = (value for states in self.states for state in states for value in state.values())
        tensors = [*self.tensors.values(), *(value for value in states if isinstance(value, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data and tensors, on the host."""
        cpu = torch.device("cpu")
        return {
            "tensors": {name: tensor.to(cpu) for name, tensor in self.tensors.items()},
            "states": [[_copied(state, cpu) for state in states] for states in self.states],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """Rebuild it from `state_dict`."""
        snapshot = cls.__new__(cls)
        snapshot.tensors, snapshot.states = dict(state["tensors"]), [list(states) for states in state["states"]]
        return snapshot


class Snapshots:
    """The last healthy snapshot of a run, at most one.

    Args:
        model: that trains.
        optimizers: that move it.
        every: least number of steps between two snapshots; `None`: none is ever wanted.
        keep_on: "cpu", "device" or "auto", as in the action `rollback`.

    Attributes:
        held: the snapshot. step: when it was taken.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], *, every: int | None, keep_on: str = "auto"
    ) -> None:
        """Store the parts; nothing is copied before the first healthy reading."""
        self._model, self._optimizers = model, tuple(optimizers)
        self._every, self._keep_on = every, keep_on
        self.held: Snapshot | None = None
        self.step = 0

    def consider(self, step: int) -> None:
        """At a reading with every codebook healthy: take a snapshot if one is wanted and due.

        The old one goes before the new one is made, so that there are never two.
        """
        if self._every is None or (self.held is not None and step - self.step < self._every):
            return
        self.held = None
        self.held, self.step = Snapshot(self._model, self._optimizers, self._device()), step

    def _device(self) -> torch.device | None:
        """Return where to keep it; `None`: where the originals are."""
        cpu = torch.device("cpu")
        if self._keep_on != "auto":
            return cpu if self._keep_on == "cpu" else None
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in _named(self._model))
        size *= 3  # an optimizer keeps up to two moments of each
        device = next((tensor.device for _, tensor in _named(self._model)), cpu)
        if device.type != "cuda":
            return cpu
        free, _ = torch.cuda.mem_get_info(device)
        return None if size <= _SHARE * free else cpu

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot, if there is one, so that a resumed run can go back as far as this one could."""
        return {"step": self.step, "held": None if self.held is None else self.held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a snapshot; one that nobody wants any more, or of another model, is dropped."""
        if self._every is None or state["held"] is None:
            return
        held = Snapshot.from_state_dict(state["held"])
        if held.why_other(self._model, self._optimizers) is None:
            self.held, self.step = held, int(state["step"])


def wanted_snapshots(policy: Policy, model: nn.Module, optimizers: Sequence[Optimizer]) -> Snapshots:
    """Return the snapshots that the ladders of a policy want: of several, the most frequent; none in observe mode."""
    wanted = [rung.params for rule in policy.rules for rung in rule.ladder if isinstance(rung.params, Rollback)]
    if policy.mode != "act" or not wanted:
        return Snapshots(model, optimizers, every=None)
    first = min(wanted, key=lambda each: each.every.count)
    return Snapshots(model, optimizers, every=first.every.count, keep_on=first.keep_on)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor.detach()


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (each for group in optimizer.param_groups for each in group["params"])


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.detach().to(device or tensor.device, copy=True)


def _copied(state: Mapping[str, Any], device: torch.device | None) -> dict[str, Any]:
    return {key: _copy(value, device) if isinstance(value, Tensor) else value for key, value in state.items()}


def _put(optimizer: Optimizer, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
    """Write one parameter's state back; tensors in place where they are still there."""
    if not state:
        optimizer.state.pop(parameter, None)
        return
    present = optimizer.state[parameter]
    for key in [key for key in present if key not in state]:
        del present[key]
    for key, value in state.items():
        now = present.get(key)
        if isinstance(value, Tensor) and isinstance(now, Tensor) and now.shape == value.shape:
            now.copy_(value)
        elif isinstance(value, Tensor):
            present[key] = value.to(value.device if key == "step" else parameter.device, copy=True)
        else:
            present[key] = value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.detach().cpu(), other.cpu())
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)

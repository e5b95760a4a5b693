"""Parts: what an intervention may change, one thing each, and how that is saved, described and put back bit-equal.

A part knows where the thing is, never what it should become. A transaction is a list of parts. What a part saves is
plain data and tensors, so that a resumed run can still undo what was done before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView, TensorRef
from collapse_guard.adapters.commitment import AddedCommitment
from collapse_guard.adapters.refs import Knob
from collapse_guard.optimizer import moment_rows, unknown_state
from collapse_guard.window import Window

from .holds import Hold

__all__ = [
    "CodebookPart",
    "HoldPart",
    "InterventionError",
    "KnobPart",
    "NormalisationPart",
    "Part",
    "TensorsPart",
    "table_moments",
    "tensors_of",
]


class InterventionError(RuntimeError):
    """An applied intervention left something inconsistent; its transaction has been undone."""


class Part(ABC):
    """One thing that an intervention may change.

    Attributes:
        name: what it is called in a manifest; unique within an intervention.
    """

    name: str

    @property
    @abstractmethod
    def place(self) -> Hashable:
        """Where the thing is: equal for two parts that change the same one."""

    @abstractmethod
    def save(self) -> None:
        """Remember how it is now."""

    def check(self) -> None:  # noqa: B027 - most things cannot be left in a state that does not work
        """Refuse what could not work.

        Raises:
            InterventionError: what is wrong with what was left.
        """

    @abstractmethod
    def undo(self) -> None:
        """Put it back as it was saved, bit-equal and in place; once it is as it was, do nothing."""

    @abstractmethod
    def changes(self) -> list[dict[str, Any]]:
        """Return one record per tensor, number or switch that is not as it was saved, with before and after."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what was saved, as plain data and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier run saved."""

    def in_words(self) -> str:
        """Say what is other than its owner had it and in no checkpoint of the model; empty where nothing is."""
        return ""

    def standing(self) -> Any:
        """Return what it is now where no checkpoint of model or optimizer holds it, as plain data; else `None`."""
        return None

    def stand(self, value: Any) -> None:
        """Put into force again what `standing` returned in an earlier run."""
        raise NotImplementedError(f"{self.name} leaves nothing standing, got {value!r}")


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


class KnobPart(Part):
    """A number on a module or in a configuration, which no checkpoint of the model holds.

    Args:
        name: in manifests.
        knob: where it is.
    """

    def __init__(self, name: str, knob: Knob | AddedCommitment) -> None:
        """Store where it is."""
        self.name = name
        self._knob = knob
        self._saved: Any = None
        self._before = 0.0
        self._left: float | None = None  # the number as the intervention left it

    @property
    def place(self) -> Hashable:
        """Owner and attribute."""
        return self._knob.place

    def save(self) -> None:
        """Keep the number as its owner has it, its type included."""
        self._saved, self._before = self._knob.save(), self._knob.get()

    def check(self) -> None:
        """Note the number that was left: another one that stands there later is its owner's."""
        self._left = self._knob.get()

    def undo(self) -> None:
        """Put the number back, its type included, unless its owner has set another one meanwhile."""
        if self._left is None or self._knob.get() == self._left:
            self._knob.restore(self._saved)

    def changes(self) -> list[dict[str, Any]]:
        """Return the number before and after, if it changed."""
        now = self._knob.get()
        return [{"name": self.name, "before": self._before, "after": now}] if now != self._before else []

    def state_dict(self) -> dict[str, Any]:
        """Return the number, before and as it was left."""
        return {"saved": self._saved, "before": self._before, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the number."""
        self._saved, self._before, self._left = state["saved"], float(state["before"]), state.get("left")

    def in_words(self) -> str:
        """Say what the number is now, and was."""
        now = self._knob.get()
        return f"{self.name} is {now:.6g}, {self._before:.6g} before" if now != self._before else ""

    def standing(self) -> float:
        """Return the number in force."""
        return self._knob.get()

    def stand(self, value: Any) -> None:
        """Set the number that was in force."""
        if self._knob.get() != float(value):
            self._knob.set(float(value))


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


class NormalisationPart(Part):
    """Whether a quantizer normalises: a setting of it, which no checkpoint of the model holds.

    Args:
        view: the codebook.
        window: its latents; those from before a change are not those from after it.
    """

    name = "normalisation"

    def __init__(self, view: CodebookView, window: Window) -> None:
        """Store where it is."""
        self._view = view
        self._window = window
        self._was_off = False

    @property
    def place(self) -> Hashable:
        """The setting's owner."""
        assert self._view.normalisation is not None
        return "normalisation", id(self._view.normalisation.owner)

    def save(self) -> None:
        """Keep whether it is off already."""
        self._was_off = self._view.is_unnormalised

    def undo(self) -> None:
        """Let the quantizer normalise again, if it did."""
        if self._view.is_unnormalised and not self._was_off:
            self._view.restore_normalisation()
            self._window.forget()

    def changes(self) -> list[dict[str, Any]]:
        """Return whether it normalises, before and after."""
        now = self._view.is_unnormalised
        return [] if now == self._was_off else [{"name": self.name, "before": not self._was_off, "after": not now}]

    def state_dict(self) -> dict[str, Any]:
        """Return whether it was off."""
        return {"was_off": self._was_off}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over whether it was off."""
        self._was_off = bool(state["was_off"])

    def in_words(self) -> str:
        """Say that a model made anew would normalise."""
        is_off = self._view.is_unnormalised and not self._was_off
        return "normalisation is off: make the quantizer without it wherever this codebook is loaded" if is_off else ""

    def standing(self) -> bool | None:
        """Return `True` while it is off."""
        return self._view.is_unnormalised or None

    def stand(self, value: Any) -> None:
        """Switch it off again."""
        self._view.disable_normalisation()


class HoldPart(Part):
    """Hooks in force, such as those that clip gradients; the intervention installs them, and does so again on resume.

    Args:
        hold: the hooks.
    """

    def __init__(self, hold: Hold) -> None:
        """Store the hooks."""
        self.name = hold.name
        self._hold = hold
        self._was_in_force = False

    @property
    def place(self) -> Hashable:
        """What the hooks act on."""
        return self._hold.place

    def save(self) -> None:
        """Keep whether they are in force already."""
        self._was_in_force = self._hold.is_in_force

    def undo(self) -> None:
        """Take the hooks out, if the intervention put them in."""
        if not self._was_in_force:
            self._hold.remove()

    def changes(self) -> list[dict[str, Any]]:
        """Return what the hooks do, if they were put in."""
        now = self._hold.is_in_force
        if now == self._was_in_force:
            return []
        return [{"name": self.name, "before": self._was_in_force, "after": now, **self._hold.describe()}]

    def state_dict(self) -> dict[str, Any]:
        """Return whether they were in force."""
        return {"was_in_force": self._was_in_force}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over whether they were in force."""
        self._was_in_force = bool(state["was_in_force"])


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

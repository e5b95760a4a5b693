"""What an intervention is: a site to work on, a transaction that can be undone, and a contract.

An intervention never decides. It says whether it can ever act on a codebook (`why_unsupported`) and whether it can here
and now (`refusal`), acts once at a step boundary (`apply`), and, where it stays in force, keeps itself up to date
(`tend`). Everything that it touches is one of its `parts`, which its transaction saved before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collapse_guard.adapters import CodebookView
from collapse_guard.evaluation import Evaluations
from collapse_guard.mix import Mix
from collapse_guard.policies import Reading
from collapse_guard.snapshots import Snapshots
from collapse_guard.window import Window

from .holds import Hold
from .parts import CodebookPart, HoldPart, InterventionError, KnobPart, Part, table_moments

__all__ = ["Intervention", "InterventionError", "Site", "Transaction", "clear_moments"]

Params = TypeVar("Params")

_CAPTURED = (
    "the quantizer's forward is replayed as a CUDA graph, which calls no hook and reads no number anew: what works "
    "there is `reset_codes`, `upkeep`, `fallback_tokenizer` and `rollback`, which write to tensors"
)


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
        model: that trains; `None` where the codebook is all that is known.
        views: all codebooks of the run.
        health: returns the health of the codebook at its last reading, as a word.
        standing: returns the other interventions that are in force now, on any codebook.
        ranks: how many train together.
        evaluations: what reads the codebooks in evaluation, and compares it with training.
        snapshots: the last healthy snapshot of the run, if any action of the policy wants one.
        encoder: returns the parameters that the quantizer's input was seen to depend on; none before a forward.
        reading: the last one before the action; `None` where none is known, as on resume.
        mix: returns how positions were seen to be taken for features; `None` where they were not, or nobody knows.
    """

    view: CodebookView
    window: Window
    optimizers: Sequence[Optimizer]
    counts: np.ndarray
    seed: int
    dead_below: float = 0.1
    ask: Callable[[str], None] = lambda kind: None
    progress: Callable[[], float | None] = lambda: None
    model: nn.Module | None = None
    views: Sequence[CodebookView] = ()
    health: Callable[[], str] = lambda: "unknown"
    standing: Callable[[], Sequence[Intervention[Any]]] = lambda: ()
    ranks: int = 1
    evaluations: Evaluations | None = None
    snapshots: Snapshots | None = None
    encoder: Callable[[], Sequence[nn.Parameter]] = lambda: ()
    reading: Reading | None = None
    mix: Callable[[], Mix | None] = lambda: None


class Intervention(ABC, Generic[Params]):
    """One action on one codebook.

    Args:
        params: the validated parameters from the policy.
        site: where it works.
    """

    touches: ClassVar[frozenset[str]] = frozenset()
    """What `apply` may change, in words: nothing for an action that only tells or asks. "codebook" stands for rows, so
    that token ids are permuted; "model" for all weights, so that no latent recorded before is worth anything."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Capabilities that a codebook must have; the reason of the first that it lacks is told."""
    stays: ClassVar[bool] = False
    """Whether it stays in force after it recovered the codebook, and wants `tend` at each step before it is read."""
    reaches_graphs: ClassVar[bool] = False
    """Whether it works where the forward is replayed as a CUDA graph: by writing to tensors, at step boundaries."""
    tends: ClassVar[bool] = False
    """Whether it ends with its outcome, and until then wants `tend` after each reading."""
    goes_further: ClassVar[bool] = False
    """Whether it changes a number by a factor, so that codebooks that share the number must not do it one after another
    for what the same step has shown, nor while it is open whether the change by another one helps."""

    def __init__(self, params: Params, site: Site) -> None:
        """Store the parts."""
        self.params = params
        self.site = site
        self.writes = 0
        """How often `tend` has rewritten the codebook: each time token ids may change."""
        self.facts: dict[str, int] = {}
        """Numbers that go into the event beside what was done last: `ids_changed` of `ids_compared` latents."""
        self.is_over = False
        """Whether one that stays has ended by itself; set by `tend`, which says so."""

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Say why this can never be done on a codebook, whatever it shows; `None` where it may be."""
        return next((why for need in cls.needs if (why := view.why_not(need)) is not None), None)

    @classmethod
    def is_moot(cls, view: CodebookView) -> bool:
        """Whether a codebook cannot have the trouble at all that this is for, so that nobody misses it there."""
        return False

    def refusal(self) -> str | None:
        """Say why this cannot be done here and now; `None` where it can."""
        if self.site.view.is_captured and not self.reaches_graphs:
            return _CAPTURED
        return self.why_unsupported(self.site.view)

    def parts(self) -> list[Part]:
        """Return what `apply` may change, one part each. Called before `apply`, and anew on resume."""
        view, parts = self.site.view, list[Part]()
        if "codebook" in self.touches:
            parts.append(CodebookPart(view, self.site.optimizers))
        if "commitment" in self.touches and view.commitment is not None:
            parts.append(KnobPart("commitment_weight", view.commitment))
        return [*parts, *map(HoldPart, self.holds())]

    def holds(self) -> Sequence[Hold]:
        """Return the hooks that `apply` puts in force: the same ones at each call."""
        return ()

    @abstractmethod
    def apply(self) -> str:
        """Act, in place, and say what was done with numbers."""

    def is_due(self, steps: int) -> bool:
        """Whether `tend` may do anything after so many steps; where several ranks act, they then gather first.

        The same on all ranks: told from what is planned, never from what was recorded.
        """
        return type(self).tend is not Intervention.tend

    def tend(self, steps: int) -> str | None:
        """Keep up while in force, told after each step how many it has been; say what was done, if anything."""
        return None

    def ending(self) -> str | None:
        """Let go of what was held while it was open; say what was done in all, if that was not said yet."""
        return None

    def release(self) -> None:
        """Leave the run to itself: the guard goes, or what kept this up to date has failed."""
        for hold in self.holds():
            hold.remove()

    def in_words(self) -> str:
        """Say what stays in force, for the end of the run; empty where it is the codebook itself that stays."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return what an intervention in force must remember over a resume, as plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, and take hold again."""
        for hold in self.holds():
            hold.install()


class Transaction:
    """Saves what an intervention will touch, checks and describes what it left, can put all of it back bit-equal.

    Args:
        parts: see `Intervention.parts`.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Take the snapshot."""
        self.parts = tuple(parts)
        for part in self.parts:
            part.save()

    def check(self) -> None:
        """Refuse what could not work.

        Raises:
            InterventionError: what is wrong, such as non-finite or duplicate rows of a codebook.
        """
        for part in self.parts:
            part.check()

    @torch.no_grad()
    def undo(self) -> None:
        """Put every part back, the last one first, bit-equal and in place."""
        for part in reversed(self.parts):
            part.undo()

    def manifest(self) -> list[dict[str, Any]]:
        """Return one record per thing that changed, with its name and what it was before and is after."""
        return [change for part in self.parts for change in part.changes()]

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain data and tensors, by name of the part."""
        return {part.name: part.state_dict() for part in self.parts}

    @classmethod
    def restore(cls, state: Mapping[str, Any], parts: Sequence[Part]) -> Transaction:
        """Rebuild a transaction from `state_dict`, so that a resumed run can still undo it.

        Args:
            state: from `state_dict`.
            parts: of the intervention, made anew in this run; one that the state does not know has nothing to undo.
        """
        transaction = cls.__new__(cls)
        transaction.parts = tuple(part for part in parts if part.name in state)
        for part in transaction.parts:
            part.load_state_dict(state[part.name])
        return transaction


def clear_moments(site: Site, rows: Tensor) -> None:
    """Zero the optimizer moments of the given rows, so that nothing keeps pushing the codes placed there."""
    for tensor in (table_moments(site.view, site.optimizers) or {}).values():
        tensor.index_fill_(0, rows.to(tensor.device), 0.0)

"""The uniform handle on one codebook, and what an adapter must say about a family of quantizers.

An adapter recognises a module and returns one `CodebookView` per codebook. A view never keeps a tensor: it keeps
*where* the tensor lives and reads it again each time, because quantizers re-bind their tables. Views write only at a
step boundary and only in place, so that optimizers, graphs and checkpoints keep their addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from .commitment import AddedCommitment
from .freeze import Freeze
from .refs import Derived, Knob, Quotient, Switch, TensorRef, Threshold

__all__ = [
    "CAPABILITIES",
    "K_OF_ONE",
    "SHARDED",
    "SHARDED_MAKER",
    "CodebookView",
    "Confidence",
    "Metric",
    "Observation",
    "Reader",
    "Unrecognised",
]

CAPABILITIES = ("monitor", "reset", "commitment", "freeze", "fallback")
"""What a view may support, in the order in which it is shown."""

K_OF_ONE = "its codebook has K = 1 code: one code cannot collapse"
"""Why a quantizer with a single code is not watched."""

_LEAVE_OUT = "Leave the quantizer out of it: fully_shard(model, ignored_params=set(quantizer.parameters()))"

SHARDED = (
    "its table is sharded over the ranks (DTensor): codes are counted, vectors neither read nor written. " + _LEAVE_OUT
)
"""Why a codebook that lies in parts on the ranks is not written to."""

SHARDED_MAKER = "what its table is computed from is sharded over the ranks (DTensor). " + _LEAVE_OUT
"""Why a quantizer that computes its table from such parts is not watched."""

Metric: TypeAlias = Literal["l2", "cosine"]
"""How latents and codes are compared."""


class Confidence(Enum):
    """How it is known that a module is a quantizer; the value is the word that people are shown."""

    DESCRIBED = "described"
    STRUCTURE = "structure"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"

    @property
    def meaning(self) -> str:
        """Return what the word says."""
        return _MEANINGS[self]


_MEANINGS = {
    Confidence.DESCRIBED: "its owner said so; what the description reads is checked at the first forward",
    Confidence.STRUCTURE: "it has the tensors and attributes of a known family",
    Confidence.CONFIRMED: "a copy was tried: its codes equal an exact search, and follow when the rows are rolled",
    Confidence.UNCONFIRMED: "it looks like one, and is not touched",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """What one call of a quantizer showed.

    Attributes:
        codes: (n,) integers in [0, K); anything outside (-1 for masked tokens and dropped levels) is not a token.
        latents: (n, D) what the codebook was compared with, in the codebook's own space, detached; `None` where the
            quantizer does not show them. Codes are then counted, and nothing that needs latents is measured.
        is_update: whether the quantizer may have replaced codes with this call: not where it is frozen by its owner,
            nor where tokens are only added up for a later call.
    """

    codes: Tensor
    latents: Tensor | None
    is_update: bool = True


Reader = Callable[[tuple[Any, ...], Mapping[str, Any], Any], "Observation | None"]
"""(args, kwargs, output) of one call -> what it showed; `None` when it assigned no codes."""


@dataclass(frozen=True, slots=True)
class Unrecognised:
    """A module that looks like a quantizer and could not be confirmed: reported, never touched.

    Attributes:
        name: its path in the model.
        reason: why it is not watched.
        table: name of the tensor on it that looks like a codebook; empty where it is not known.
        advice: what to write to have it watched; empty where nothing is known to help.
    """

    name: str
    reason: str
    table: str = ""
    advice: str = ""

    @property
    def confidence(self) -> Confidence:
        """Return `UNCONFIRMED`, always."""
        return Confidence.UNCONFIRMED


@dataclass(eq=False, kw_only=True)
class CodebookView:
    """Read and write one codebook, whatever its quantizer calls things.

    Required are `name`, `adapter`, `module`, `table` and `readers`; all else is a capability that a family may lack.

    Attributes:
        name: module path of the quantizer in the model, with `.0`, `.1` appended for heads.
        adapter: which adapter made the view.
        module: the module whose calls assign codes; probes and freezes hook it.
        confidence: how it is known that this is a codebook.
        table: the K vectors, stored or computed.
        readers: method of `module` -> what reads codes and latents from one call of it. `forward` is observed by a
            hook, any other method by interception; none of these methods may call another one.
        ema_sum: (K, D) moving average behind the table, where there is one.
        ema_count: (K,) moving average of the counts, where there is one; without `ema_sum` it only tells dead codes.
        metric: "l2" or "cosine".
        decodes_raw: with metric "cosine": the row itself is the quantised vector, its length included. Else the
            normalised row is, and rows are normalised when they are written.
        commitment: knob of the coefficient of the loss term that pulls the encoder, where it can be read.
        decay: knob of the moving averages' decay, where it can be read.
        replacement: the quantizer's own replacement of dead codes, where it has one.
        threshold: knob of the count below which it replaces a code, where it replaces any and they are searched then.
        temperature: knob of the temperature at which training draws codes at random, where it does.
        normalisation: the setting by which the quantizer normalises latents and codes, where it has one; without it
            the metric is "l2".
        compares: returns how the quantizer compares now, and its setting for that, where settings govern it that
            somebody may change during the run; see `follow`.
        after_write: called after each write: drops cached tables, sets flags of initialisation.
        is_initialised: whether the quantizer has made its own start; before that it would overwrite what is written.
        lacks: capability -> why it is not supported.
        owner: the module that trains or not, where `module` itself does not say so; calls are recorded while it trains.
        moves_outside: whether the codebook is also updated outside of `module`'s own forward.
        optimizers: those that the quantizer itself holds to move its table.
        group: name of the residual of which the codebook is a level, if it is one.
        level: which level it is, from 0, the coarsest; set together with `group` or not at all.
        is_captured: whether a forward of it went into a CUDA graph, whose replays call no hook and read no attribute.
    """

    name: str
    adapter: str
    module: nn.Module
    table: TensorRef | Quotient | Derived
    readers: Mapping[str, Reader]
    confidence: Confidence = Confidence.STRUCTURE
    ema_sum: TensorRef | None = None
    ema_count: TensorRef | None = None
    metric: Metric = "l2"
    decodes_raw: bool = False
    commitment: Knob | AddedCommitment | None = None
    decay: Knob | None = None
    replacement: Switch | None = None
    threshold: Threshold | None = None
    temperature: Knob | None = None
    normalisation: Switch | None = None
    compares: Callable[[], tuple[Metric, Switch | None]] | None = None
    after_write: Callable[[], None] = lambda: None
    is_initialised: Callable[[], bool] = lambda: True
    lacks: Mapping[str, str] = field(default_factory=dict)
    owner: nn.Module | None = None
    moves_outside: bool = False
    optimizers: Sequence[Optimizer] = ()
    group: str | None = None
    level: int | None = None
    is_captured: bool = field(default=False, init=False)
    _freeze: Freeze | None = field(default=None, init=False)
    _is_moved: bool = field(default=False, init=False)
    _native: Mapping[str, Any] | None = field(default=None, init=False)
    _normalised: tuple[Metric, Mapping[str, Any]] | None = field(default=None, init=False)

    @property
    def K(self) -> int:
        """Number of codes."""
        return self.codebook().shape[0]

    @property
    def D(self) -> int:
        """Dimension of a code."""
        return self.codebook().shape[1]

    @property
    def kind(self) -> str:
        """`ema` (moved by averages), `learnable` (moved by an optimizer, itself or what it is made of) or `fixed`."""
        if self.ema_sum is not None or (self.ema_count is not None and self.decay is not None):
            return "ema"
        return "learnable" if self.table.is_parameter else "fixed"

    @property
    def is_sharded(self) -> bool:
        """Whether every rank holds a part of the table only: it is then neither read nor written here."""
        return self.table.is_sharded

    def codebook(self) -> Tensor:
        """Return the effective (K, D) table, detached, as it is now."""
        return self.table.get()

    def refs(self) -> dict[str, TensorRef]:
        """Return every tensor that a write touches, by role."""
        table = self.table if isinstance(self.table, TensorRef) else None
        roles = {"table": table, "ema_sum": self.ema_sum, "ema_count": self.ema_count}
        return {role: ref for role, ref in roles.items() if ref is not None}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (role, detached view) of every tensor that a write touches."""
        for role, ref in self.refs().items():
            yield role, ref.get()

    def why_not(self, capability: str) -> str | None:
        """Return why a capability is missing, or `None` where it is there."""
        if capability in ("reset", "freeze", "fallback") and self.is_sharded:
            return SHARDED
        if capability == "commitment" and self.commitment is None:
            return self.lacks.get(capability, "this quantizer exposes no commitment weight")
        return self.lacks.get(capability)

    @torch.no_grad()
    def write_rows(self, rows: Tensor, vectors: Tensor, counts: Tensor | None = None) -> None:
        """Place codes: table, EMA sum and EMA count together, in place.

        Args:
            rows: (m,) code indices.
            vectors: (m, D) finite, in the codebook's own space.
            counts: (m,) positive EMA counts of the placed codes; the present counts where not given.
        """
        device = self.codebook().device
        rows, vectors = rows.to(device), vectors.to(device, torch.float32)
        if self.metric == "cosine" and not self.decodes_raw:
            vectors = functional.normalize(vectors, dim=-1)
        if isinstance(self.table, TensorRef):
            table = self.table.get()
            table.index_copy_(0, rows, vectors.to(table.dtype))
        if self.ema_count is not None:
            ema_count = self.ema_count.get()
            counts = ema_count[rows] if counts is None else counts.to(ema_count)
            if isinstance(self.table, Quotient):  # below the floor the quotient would be less than the vector
                counts = counts.clamp(min=self.table.floor)
            ema_count.index_copy_(0, rows, counts)
            if self.ema_sum is not None:
                ema_sum = self.ema_sum.get()
                ema_sum.index_copy_(0, rows, (vectors * counts.float().unsqueeze(-1)).to(ema_sum.dtype))
        self.written()

    def written(self) -> None:
        """Take note that the tensors were written: caches are dropped, a frozen codebook keeps what it holds now."""
        self.after_write()
        if self._freeze is not None:
            self._freeze.rebase()

    @property
    def is_frozen(self) -> bool:
        """Whether the quantizer's own updates of this codebook are being kept out."""
        return self._freeze is not None

    @property
    def stands(self) -> bool:
        """Whether they are, and nothing moves the codebook in their place but a refit now and then."""
        return self._freeze is not None and not self._is_moved

    def freeze(self, *, is_moved: bool = False) -> None:
        """Keep the quantizer's own updates and the optimizer away from this codebook, until `unfreeze`.

        Args:
            is_moved: whether the guard moves it at each step in their place.
        """
        self._is_moved = is_moved
        if self._freeze is None:
            parts = list(self.refs().values())
            whole = all(part.head is None or len(part.whole()) == 1 for part in parts)
            diverts = self.ema_sum is not None and whole
            outside = self.moves_outside or self.is_captured
            self._freeze = Freeze(self.module, parts, diverts=diverts, outside=outside)
            self._freeze.install()

    def unfreeze(self) -> None:
        """Let the quantizer update its codebook again."""
        if self._freeze is not None:
            self._freeze.remove()
            self._freeze = None
            self._is_moved = False

    def hold(self) -> None:
        """At a step boundary: put back what an optimizer did to a frozen codebook."""
        if self._freeze is not None:
            self._freeze.restore()

    @property
    def is_taken_over(self) -> bool:
        """Whether the quantizer's own replacement of dead codes is switched off for the guard's."""
        return self._native is not None

    def take_over(self) -> None:
        """Switch the quantizer's own replacement of dead codes off, until `give_back`: two must not churn one table."""
        if self.replacement is not None and self._native is None and self.replacement.is_on:
            self._native = self.replacement.turn_off()

    def give_back(self) -> None:
        """Let the quantizer replace dead codes by itself again, if it did."""
        if self.replacement is not None and self._native is not None:
            self.replacement.restore(self._native)
            self._native = None

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Meanwhile, between two forwards, have the settings of its own replacement as they are where it is on."""
        is_taken_over = self.is_taken_over
        self.give_back()
        try:
            yield
        finally:
            if is_taken_over:
                self.take_over()

    def replacement_share(self, tokens: float) -> float | None:
        """Return below which share of its even use the quantizer replaces a code; `None` where it never does.

        Args:
            tokens: of an update, above 0, as the quantizer counts them: of all ranks where it adds them up.

        Returns:
            0 while the guard keeps its replacement, or all its updates, out.
        """
        if self.threshold is None:
            return None
        if self.is_frozen or (self.replacement is not None and not self.replacement.is_on):
            return 0.0
        return self.threshold.share(self.K, tokens)

    @property
    def is_unnormalised(self) -> bool:
        """Whether the guard has switched the quantizer's normalisation off."""
        return self._normalised is not None

    @property
    def metric_by_design(self) -> Metric:
        """What the quantizer itself compares by, whatever the guard has switched off."""
        return self.metric if self._normalised is None else self._normalised[0]

    def follow(self) -> bool:
        """Take over how the quantizer compares now, as its settings say; what the guard has set itself is left.

        Returns:
            Whether that has changed: latents from before are none any more.
        """
        if self.compares is None or self.is_unnormalised:
            return False
        before, (self.metric, self.normalisation) = self.metric, self.compares()
        return self.metric != before

    def disable_normalisation(self) -> None:
        """Let the quantizer compare latents and codes as long as they are, until `restore_normalisation`."""
        if self.normalisation is not None and self._normalised is None:
            self._normalised = self.metric, self.normalisation.turn_off()
            self.metric = "l2"

    def restore_normalisation(self) -> None:
        """Let the quantizer normalise again."""
        if self.normalisation is not None and self._normalised is not None:
            self.metric, settings = self._normalised
            self.normalisation.restore(settings)
            self._normalised = None

    def release(self) -> None:
        """Leave the quantizer to itself: its updates, its replacement of dead codes, its loss."""
        self.unfreeze()
        self.give_back()
        if isinstance(self.commitment, AddedCommitment):
            self.commitment.release()

"""The uniform handle on one codebook, and what an adapter must say about a family of quantizers.

An adapter recognises a module and returns one `CodebookView` per codebook. A view never keeps a tensor: it keeps
*where* the tensor lives (`TensorRef`) and reads it again each time, because quantizers re-bind their tables. Views
write only at a step boundary and only in place, so that optimizers, graphs and checkpoints keep their addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from .freeze import Freeze

__all__ = ["CAPABILITIES", "CodebookView", "Knob", "Metric", "Observation", "Reader", "TensorRef"]

CAPABILITIES = ("monitor", "reset", "commitment", "freeze", "fallback")
"""What a view may support, in the order in which it is shown."""

Metric: TypeAlias = Literal["l2", "cosine"]
"""How latents and codes are compared."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one forward of a quantizer showed.

    Attributes:
        codes: (n,) integers in [0, K); anything outside (-1 for masked tokens and dropped levels) is not a token.
        latents: (n, D) what the codebook was compared with, in the codebook's own space, detached.
    """

    codes: Tensor
    latents: Tensor


Reader = Callable[[tuple[Any, ...], Mapping[str, Any], Any], "Observation | None"]
"""(args, kwargs, output) of one forward -> what it showed; `None` when it assigned no codes."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lives: `owner.attribute`, one head of it, possibly stored as (D, K).

    Attributes:
        owner: module that holds the parameter or buffer.
        attribute: its name on the owner.
        head: index into a leading head axis; `None` where there is none.
        transposed: the tensor is stored as (D, K).
    """

    owner: nn.Module
    attribute: str
    head: int | None = None
    transposed: bool = False

    def whole(self) -> Tensor:
        """Return the tensor as its owner holds it now, all heads."""
        tensor = getattr(self.owner, self.attribute)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{type(self.owner).__name__}.{self.attribute} is no longer a tensor: {type(tensor)}")
        return tensor

    def get(self) -> Tensor:
        """Return a detached view of the part that belongs to this codebook; writing to it writes to the model."""
        tensor = self.whole().detach()
        if self.head is not None:
            tensor = tensor[self.head]
        return tensor.t() if self.transposed else tensor

    @property
    def is_parameter(self) -> bool:
        """Whether an optimizer may be moving this tensor."""
        return isinstance(self.whole(), nn.Parameter) and self.whole().requires_grad


@dataclass(frozen=True, slots=True)
class Knob:
    """A number on a module that can be changed while training.

    Attributes:
        owner: the module.
        attribute: the name of the number on it.
    """

    owner: nn.Module
    attribute: str

    def get(self) -> float:
        """Return the number."""
        return float(getattr(self.owner, self.attribute))

    def set(self, value: float) -> None:
        """Set the number, keeping its kind: a tensor is filled in place, a Python number is replaced."""
        current = getattr(self.owner, self.attribute)
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.fill_(value)
        else:
            setattr(self.owner, self.attribute, float(value))


@dataclass(eq=False, kw_only=True)
class CodebookView:
    """Read and write one codebook, whatever its quantizer calls things.

    Attributes:
        name: module path of the quantizer in the model, with `.0`, `.1` appended for heads.
        adapter: which adapter made the view.
        module: the module whose forward assigns codes; probes and freezes hook it.
        table: the K vectors.
        reader: extracts codes and latents from a forward.
        ema_sum: (K, D) moving average behind the table, where there is one.
        ema_count: (K,) moving average of the counts, where there is one.
        metric: "l2" or "cosine"; with cosine the rows that are written are normalised.
        commitment: knob of the commitment weight, where it can be read.
        decay: knob of the moving averages' decay, where it can be read.
        is_initialised: whether the quantizer has made its own start; before that it would overwrite what is written.
        lacks: capability -> why it is not supported.
    """

    name: str
    adapter: str
    module: nn.Module
    table: TensorRef
    reader: Reader
    ema_sum: TensorRef | None = None
    ema_count: TensorRef | None = None
    metric: Metric = "l2"
    commitment: Knob | None = None
    decay: Knob | None = None
    is_initialised: Callable[[], bool] = lambda: True
    lacks: Mapping[str, str] = field(default_factory=dict)
    _freeze: Freeze | None = field(default=None, init=False)

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
        """`ema` (moved by averages), `learnable` (moved by an optimizer) or `fixed`."""
        if self.ema_sum is not None:
            return "ema"
        return "learnable" if self.table.is_parameter else "fixed"

    def codebook(self) -> Tensor:
        """Return the effective (K, D) table, detached, as it is now."""
        return self.table.get()

    def refs(self) -> dict[str, TensorRef]:
        """Return every tensor that a write touches, by role."""
        roles = {"table": self.table, "ema_sum": self.ema_sum, "ema_count": self.ema_count}
        return {role: ref for role, ref in roles.items() if ref is not None}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (role, detached view) of every tensor that a write touches."""
        for role, ref in self.refs().items():
            yield role, ref.get()

    def why_not(self, capability: str) -> str | None:
        """Return why a capability is missing, or `None` where it is there."""
        return self.lacks.get(capability)

    @torch.no_grad()
    def write_rows(self, rows: Tensor, vectors: Tensor, counts: Tensor | None = None) -> None:
        """Place codes: table, EMA sum and EMA count together, in place.

        Args:
            rows: (m,) code indices.
            vectors: (m, D) finite, in the codebook's own space.
            counts: (m,) positive EMA counts of the placed codes; the present counts where not given.
        """
        table = self.codebook()
        rows = rows.to(table.device)
        vectors = vectors.to(table.device, torch.float32)
        if self.metric == "cosine":
            vectors = functional.normalize(vectors, dim=-1)
        table.index_copy_(0, rows, vectors.to(table.dtype))
        if self.ema_sum is not None and self.ema_count is not None:
            ema_count = self.ema_count.get()
            counts = ema_count[rows] if counts is None else counts.to(ema_count)
            ema_count.index_copy_(0, rows, counts)
            ema_sum = self.ema_sum.get()
            ema_sum.index_copy_(0, rows, (vectors * counts.float().unsqueeze(-1)).to(ema_sum.dtype))
        self.rebase()

    @property
    def is_frozen(self) -> bool:
        """Whether the quantizer's own updates of this codebook are being kept out."""
        return self._freeze is not None

    def freeze(self) -> None:
        """Keep the quantizer's own updates and the optimizer away from this codebook, until `unfreeze`."""
        if self._freeze is None:
            tensors = [(ref.owner, ref.attribute) for ref in self.refs().values()]
            self._freeze = Freeze(self.module, tensors, diverts=self.ema_sum is not None)
            self._freeze.install()

    def unfreeze(self) -> None:
        """Let the quantizer update its codebook again."""
        if self._freeze is not None:
            self._freeze.remove()
            self._freeze = None

    def hold(self) -> None:
        """At a step boundary: put back what an optimizer did to a frozen codebook."""
        if self._freeze is not None:
            self._freeze.restore()

    def rebase(self) -> None:
        """After a write to a frozen codebook: what it holds now is what is kept from now on."""
        if self._freeze is not None:
            self._freeze.rebase()

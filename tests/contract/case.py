"""One real quantizer class under the contract: how to build it, feed it, and read its codes from its own output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from collapse_guard import GenericVQ

__all__ = ["Case", "Run", "flat", "offset_data"]


@dataclass(frozen=True)
class Run:
    """One call of a quantizer as its users make it.

    Attributes:
        codes: view name -> the codes that the library itself returned for it, flat; compared where given.
        loss: what its users would add to their loss; `None` where it has none.
    """

    codes: Mapping[str, Tensor]
    loss: Tensor | None


@dataclass(frozen=True)
class Case:
    """A class that the contract is run against.

    Attributes:
        package: distribution that ships it.
        cls: its name, for the support table.
        build: makes one, ready to train: with its codebook started. Randomness comes from the global generator.
        batch: makes one input; called again for each step.
        run: one call.
        views: names of the codebooks that discovery must find when the quantizer is the attribute `quantizer`.
        lacks: capabilities that it cannot have, by name; all other ones must be there.
        trains: whether the library updates the codebook in training, by averages or by gradients.
        described: how its owner describes it, where it is not recognised by itself.
        calls: how often one forward searches each codebook; the codes of a run are then in the order of the calls.
        nearest: whether a training forward gives each token the nearest row of the table as it was before.
        mode: what makes this row different from others of the class, for the support table.
    """

    package: str
    cls: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    run: Callable[[nn.Module, Tensor], Run]
    views: tuple[str, ...]
    lacks: frozenset[str] = field(default_factory=frozenset)
    trains: bool = True
    calls: int = 1
    nearest: bool = True
    mode: str = ""
    described: GenericVQ | None = None

    @property
    def adapters(self) -> dict[str, GenericVQ]:
        """Return the description under the name that the model gives to the quantizer."""
        return {} if self.described is None else {"quantizer": self.described}

    @property
    def id(self) -> str:
        """Return the name of the test."""
        return " ".join(part for part in (self.package, self.cls, self.mode) if part)


def offset_data(*shape: int, channel: int) -> Tensor:
    """Return clustered data away from the origin: `shape` with D channels at axis `channel`.

    Twelve clusters, so that a codebook has something to find, in a half-space, so that some directions stay empty.
    """
    D = shape[channel]
    rows = torch.Size(shape).numel() // D
    centres = torch.randn(12, D, generator=torch.Generator().manual_seed(7)) + 2.0
    data = centres[torch.randint(12, (rows,))] + 0.3 * torch.randn(rows, D)
    others = [size for axis, size in enumerate(shape) if axis != channel % len(shape)]
    return data.reshape(*others, D).movedim(-1, channel).contiguous()


def flat(codes: Any) -> Tensor:
    """Return codes of any shape as (n,)."""
    assert isinstance(codes, Tensor)
    return codes.detach().reshape(-1)

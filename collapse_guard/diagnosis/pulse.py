"""The pulse: what the gradients through a quantizer look like, felt at one forward before each reading.

A tensor hook on the quantizer's input (and one on its output) records a few sums when the backward reaches it. It
returns nothing, so the training run is the same bit for bit, and it asks the device nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collapse_guard.adapters.nested import flatten_tensors
from collapse_guard.hooks import Hook

from .layout import width_before_cut

__all__ = ["ONLY_PULL", "Beat", "Pulse"]

_ROWS = 256
ONLY_PULL = 2e-3
"""What rounding leaves of a gradient beside the pull between latents and codes, in single and half precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Gradients at one step; NaN where they are not known.

    Attributes:
        arrived: 1 if a gradient arrived at the quantizer's input, 0 if none did although one could.
        norm: root mean square of that gradient.
        pull: its cosine with latent - code, the direction of a commitment loss, in [-1, 1].
        apart: share of its length that is not along latent - code, in [0, 1].
        out: 1 if a gradient arrived at the quantizer's output, 0 if none did although one could.
        through: cosine of the gradients at input and output, in [-1, 1]; NaN where all that the output gets is the pull
            of a codebook loss: what is handed on was then made of it elsewhere.
        width: features of the vectors of which the latents are pieces; 0 where they are whole.
        between: share of the latents' variance that lies between the means of such pieces, in [0, 1].
    """

    arrived: float = math.nan
    norm: float = math.nan
    pull: float = math.nan
    apart: float = math.nan
    out: float = math.nan
    through: float = math.nan
    width: float = 0.0
    between: float = math.nan

    @classmethod
    def of(cls, sums: Mapping[str, Any] | None) -> Beat:
        """Return a beat from what a pulse kept."""
        values = {name: float(value) for name, value in (sums or {}).items()}
        return cls(**{name: value for name, value in values.items() if name in cls.__slots__})


class Pulse:
    """Feels the gradients through one quantizer when it is armed.

    Args:
        D: dimension of its codes.
    """

    def __init__(self, D: int) -> None:
        """Nothing is felt before `arm`."""
        self._D = D
        self._is_armed = False
        self._sums: dict[str, Any] = {}

    @property
    def is_armed(self) -> bool:
        """Whether the next forward will be felt."""
        return self._is_armed

    def arm(self) -> None:
        """Feel the next forward of which a gradient comes back."""
        self._is_armed = True

    def take(self) -> dict[str, Any] | None:
        """Return what was felt since the last call, numbers and tensors of one element on their device."""
        taken, self._sums, self._is_armed = self._sums, {}, False
        return taken or None

    def feel(self, given: Any, output: Any, latents: Tensor | None) -> None:
        """Register hooks on one call's tensors.

        Args:
            given: what the quantizer was called with. output: what it returned.
            latents: (n, D) what the codebook was compared with.
        """
        source = next((each for each in flatten_tensors(given) if each.is_floating_point()), None)
        if source is None or not source.requires_grad:
            return
        sums: dict[str, Any] = {"arrived": 0.0, "width": float(width_before_cut(source, self._D) or 0)}
        if sums["width"]:
            sums["between"] = _between(source.detach(), self._D, int(sums["width"]) // self._D)
        self._sums = sums
        result = next((each for each in flatten_tensors(output) if _like(each, source)), None)
        gap = _gap(source.detach(), result.detach(), latents, self._D) if result is not None else None
        kept: list[Tensor] = []
        if result is not None and result.requires_grad:
            sums["out"] = 0.0
            result.register_hook(Hook(lambda gradient: _note_output(sums, kept, gradient)))

        def arrive(gradient: Tensor) -> None:
            _note_input(sums, kept, gradient, gap, self._D)
            if self._is_armed:  # a forward after this one, such as that of a discriminator's step, may get none
                self._sums, self._is_armed = sums, False

        source.register_hook(Hook(arrive))


def _like(tensor: Tensor, source: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() == source.numel() and tensor.ndim > 1


def _rows(values: Tensor, D: int) -> Tensor | None:
    """Return (n, D) of (..., D), or of (batch, D, ...) with channels first."""
    if values.shape[-1] == D:
        return values.reshape(-1, D)
    if values.ndim > 2 and values.shape[1] == D:
        return values.movedim(1, -1).reshape(-1, D)
    return None


def _few(rows: Tensor) -> Tensor:
    return rows[:: -(-len(rows) // _ROWS)].float() if len(rows) > _ROWS else rows.float()


@torch.no_grad()
def _gap(source: Tensor, result: Tensor, latents: Tensor | None, D: int) -> Tensor | None:
    """Return (m, D): how a commitment loss would push what the quantizer was given, row by row, up to a factor.

    Where the quantizer normalises its input first, that is latent - code without its part along the latent, over the
    input's length. `None` where the quantizer does anything else with its input.
    """
    given, codes = _rows(source, D), _rows(result, D)
    if given is None or codes is None or latents is None or len(latents) != len(given):
        return None
    given, codes, latents = _few(given), _few(codes), _few(latents)
    length = given.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    raw = (given - latents).norm(dim=-1).mean() <= 1e-3 * length.mean()
    apart = latents - codes
    sideways = (apart - (apart * latents).sum(dim=-1, keepdim=True) * latents) / length
    return torch.where(raw, apart, sideways)


@torch.no_grad()
def _between(source: Tensor, D: int, pieces: int) -> Tensor:
    """Return the share of the variance that lies between the means of the pieces that wide vectors are cut into."""
    rows = _rows(source, D)
    assert rows is not None
    rows = rows.float()
    whole = rows[: len(rows) // pieces * pieces].reshape(-1, pieces, D)
    mean = whole.mean(dim=(0, 1))
    total = (whole - mean).square().sum(dim=-1).mean()
    return (whole.mean(dim=0) - mean).square().sum(dim=-1).mean() / total.clamp(min=1e-30)


@torch.no_grad()
def _note_output(sums: dict[str, Any], kept: list[Tensor], gradient: Tensor) -> None:
    sums["out"] = 1.0
    kept[:] = [gradient.detach()]


@torch.no_grad()
def _note_input(sums: dict[str, Any], kept: list[Tensor], gradient: Tensor, gap: Tensor | None, D: int) -> None:
    gradient = gradient.detach().float()
    flat = gradient.reshape(-1)
    length = flat.dot(flat).sqrt()
    sums["arrived"] = 1.0
    sums["norm"] = length / len(flat) ** 0.5
    rows, out = _rows(gradient, D), kept[0].float() if kept and kept[0].numel() == gradient.numel() else None
    kept.clear()
    if out is not None:
        other = out.reshape(-1)
        lengths = length.clamp(min=1e-8) * other.dot(other).sqrt().clamp(min=1e-8)
        sums["through"] = flat.dot(other) / lengths
    if gap is None or rows is None:
        return
    sums["pull"], sums["apart"] = _along(_few(rows), gap)
    if out is not None and (rows := _rows(out, D)) is not None:
        sums["through"] = torch.where(_along(_few(rows), gap)[1] > ONLY_PULL, sums["through"], math.nan)


def _along(rows: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of (m, D) gradients with the pull, and the share of their length that is not along it."""
    along = (rows * gap).sum() / gap.square().sum().clamp(min=1e-30)
    length = rows.norm().clamp(min=1e-30)
    return along * gap.norm() / length, (rows - along * gap).norm() / length

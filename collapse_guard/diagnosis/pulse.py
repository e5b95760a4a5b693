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
from collapse_guard.graph import nodes_behind
from collapse_guard.hooks import Hook

from .layout import kind_of, width_before_cut

__all__ = ["ONLY_PULL", "Beat", "Pulse"]

_ROWS, _FORWARDS = 256, 4
_VIEWS = {"View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze"}
_REARRANGES = _VIEWS | {"Permute", "Transpose", "T", "Clone"}
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
        self._is_armed = self._has_arrived = False
        self._sums: dict[str, Any] = {}
        self._felt: list[dict[str, Any]] = []  # of the first few forwards
        self._first: int | None = None  # number of the node that made what the first call was given

    @property
    def is_armed(self) -> bool:
        """Whether the next forward will be felt."""
        return self._is_armed and len(self._felt) < _FORWARDS

    def arm(self) -> None:
        """Feel the next few forwards; what was felt before is not of the coming step."""
        self._sums, self._felt, self._is_armed, self._has_arrived, self._first = {}, [], True, False, None

    @property
    def task(self) -> Tensor | None:
        """(2,) float32 of what was felt and not yet taken: squared length that is not the pull, and at most could be.

        Both are added up over the forwards: of two, one may well be pulled alone. What there could be at most is the
        whole length at the input, or what arrives at the output beside the pull, where that is less. What arrives at
        the latents past the quantizer, as where its caller hands the gradient on, counts as well. `None` where that is
        not known, also where one call is given what another has left over, as the levels of a residual that share a
        codebook: a gradient may be handed on past them all. Asks the device nothing.
        """
        known = [torch.stack([each["beside"], each["length"]]) for each in self._felt if "length" in each]
        if not known or any("follows" in each for each in self._felt):
            return None
        return torch.stack(known).sum(dim=0)

    def take(self) -> dict[str, Any] | None:
        """Return what was felt since the last call, numbers and tensors of one element on their device."""
        taken, self._sums, self._felt, self._is_armed = self._sums, {}, [], False
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
        mine = _number_of(_behind(source)[0])
        if self._first is None:
            self._first = mine
        elif mine != self._first and _leads_to(source, self._first):
            sums["follows"] = 1.0
        if not self._has_arrived:
            self._sums = sums
        self._felt.append(sums)
        result = next((each for each in flatten_tensors(output) if _like(each, source)), None)
        gap = _gap(source.detach(), result.detach(), latents, self._D) if result is not None else None
        kept: list[Tensor] = []
        if result is not None and result.requires_grad:
            sums["out"] = 0.0
            result.register_hook(Hook(lambda gradient: _note_output(sums, kept, gradient)))
        origin = _origin(source)

        def arrive(gradient: Tensor) -> None:
            _note_input(sums, kept, gradient, gap, self._D)
            if self._is_armed and not self._has_arrived:  # a later forward, as of a discriminator's step, may get none
                self._sums, self._has_arrived = sums, True

        source.register_hook(Hook(arrive))
        if origin is not None:
            node, place = origin
            node.register_prehook(Hook(lambda gradients: _note_origin(sums, gradients[place])))


def _behind(source: Tensor) -> tuple[Any, int]:
    """Return the node, and which of its outputs, of which a tensor is all numbers, rearranged or not."""
    node: Any = source.grad_fn
    place = source.output_nr
    while node is not None and kind_of(node) in _REARRANGES:
        node, place = node.next_functions[0]
    return node, place


def _number_of(node: Any) -> int | None:
    """Return the number that tells a node from all others of its thread, higher for later ones; none of a leaf."""
    number = getattr(node, "_sequence_nr", None)
    return None if number is None or hasattr(node, "variable") else int(number())


def _leads_to(source: Tensor, number: int) -> bool:
    """Whether a tensor was computed from what the node of a number made; nothing is kept of that."""
    nodes = nodes_behind([source.grad_fn], follow=lambda node: (_number_of(node) or -1) > number)
    return any(_number_of(node) == number for node in nodes)


def _origin(source: Tensor) -> tuple[Any, int] | None:
    """Return what a tensor that was rearranged is made of, as `_behind`; `None` where it is that itself, or a leaf."""
    node, place = _behind(source)
    return (node, place) if node is not None and node is not source.grad_fn and not hasattr(node, "variable") else None


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
    if not sums["arrived"]:
        sums["length"] = gradient.detach().float().square().sum()
        sums["beside"] = torch.zeros_like(sums["length"])


@torch.no_grad()
def _note_input(sums: dict[str, Any], kept: list[Tensor], gradient: Tensor, gap: Tensor | None, D: int) -> None:
    rounding = torch.finfo(gradient.dtype).eps / 4  # about twice what it leaves beside the pull
    gradient = gradient.detach().float()
    flat = gradient.reshape(-1)
    length = flat.dot(flat).sqrt()
    if not sums["arrived"]:
        sums["beside"], sums["length"] = 0.0, 0.0
    sums["arrived"], sums["arriving"] = 1.0, length
    sums["norm"] = length / len(flat) ** 0.5
    rows, out = _rows(gradient, D), kept[0].float() if kept and kept[0].numel() == gradient.numel() else None
    kept.clear()
    if out is not None:
        other = out.reshape(-1)
        lengths = length.clamp(min=1e-8) * other.dot(other).sqrt().clamp(min=1e-8)
        sums["through"] = flat.dot(other) / lengths
    if gap is None or rows is None:
        sums["beside"] = sums["length"] = torch.full_like(length, math.nan)
        return
    sums["pull"], sums["apart"] = _along(_few(rows), gap)
    most = length.square()
    beside = (sums["apart"].square() - rounding**2).clamp(min=0) * most
    if out is not None and (rows := _rows(out, D)) is not None:
        apart = _along(_few(rows), gap)[1]
        sums["through"] = torch.where(apart > ONLY_PULL, sums["through"], math.nan)
        # However heavy the commitment is, that much would arrive of the task.
        task = (apart * out.norm()).square().maximum(beside)
        most = torch.where(apart > ONLY_PULL, task.minimum(most), most)
    sums["beside"], sums["length"] = sums["beside"] + beside, sums["length"] + most


@torch.no_grad()
def _note_origin(sums: dict[str, Any], gradient: Tensor | None) -> None:
    """Note what arrives at the latents past what the quantizer was given: of the same numbers a longer gradient."""
    if gradient is None:
        return
    past = (gradient.detach().float().square().sum().sqrt() - sums.pop("arriving", 0.0)).square()
    sums["beside"], sums["length"] = sums.get("beside", 0.0) + past, sums.get("length", 0.0) + past


def _along(rows: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of (m, D) gradients with the pull, and the share of their length that is not along it."""
    along = (rows * gap).sum() / gap.square().sum().clamp(min=1e-30)
    length = rows.norm().clamp(min=1e-30)
    return along * gap.norm() / length, (rows - along * gap).norm() / length

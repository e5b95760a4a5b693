"""Levels of a residual of factorised quantizers that drops the finer ones of some items while it trains.

With `quantizer_dropout` the residual still calls every level for every item and returns all of their codes; what it
drops it only leaves out of its output and its losses. Which levels an item kept is not returned, so it is told from the
output: it is the sum of what the kept levels decoded.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from collapse_guard.adapters.base import Observation, Reader

from .factorised_parts import Form, Parts, alone, as_rows, parts_of, reader_of, twin_of, twin_of_parts

__all__ = ["levels_of", "readers_of"]

_PROBED_FRAMES = 4


def levels_of(module: nn.Module) -> tuple[str, list[Parts]] | None:
    """Return the name of the list and its levels, of a residual that may drop some; `None` of any other module."""
    if not isinstance(getattr(module, "quantizer_dropout", None), (int, float)):
        return None
    for name, child in module.named_children():
        found = [parts_of(level) for level in child] if isinstance(child, nn.ModuleList) else []
        levels = [parts for parts in found if parts is not None]
        if levels and len(levels) == len(found):
            return name, levels
    return None


def readers_of(module: nn.Module, levels: Sequence[Parts], forms: Sequence[Form]) -> list[Reader] | None:
    """Return one reader of the residual's forward for each level; `None` where it returns something else.

    Expected is (quantised (B, C, T), codes (B, Q, T), projected latents (B, sum of d, T), ...), as a trial forward of a
    twin that drops has to confirm.
    """
    with alone():
        twins = [twin_of_parts(parts) for parts in levels]
        try:
            if not _returns_levels(module, levels, twins, forms):
                return None
        except Exception:  # foreign code may refuse the twin in any way, or return anything
            return None
    kept = _Kept(levels)
    return [_reader(module, levels, level, kept) for level in range(len(levels))]


def _returns_levels(module: nn.Module, levels: Sequence[Parts], twins: Sequence[Parts], forms: Sequence[Form]) -> bool:
    """Whether a twin returns what its levels did, and what it is read to have kept sums up to its output."""
    theirs = [parts.module for parts in levels]
    found = next(child for child in module.children() if isinstance(child, nn.ModuleList) and list(child) == theirs)
    residual = twin_of(module, {found: nn.ModuleList(twin.module for twin in twins)})
    residual.__dict__["quantizer_dropout"] = 1.0
    calls: list[tuple[tuple[Any, ...], Any]] = []
    for twin in twins:
        twin.module.register_forward_hook(lambda _, args, output: calls.append((args, output)))
    given = torch.randn(32, twins[0].channels, 8)
    output = residual(given)
    kept = _Kept(twins)
    total = torch.zeros_like(given)
    for level, (args, own) in enumerate(calls):
        expected = reader_of(twins[level], forms[level])(args, {}, own)
        seen = _reader(residual, twins, level, kept)((given,), {}, output)
        assert expected is not None
        if seen is None or seen.latents is None or not torch.equal(seen.latents, cast(Tensor, expected.latents)):
            return False
        is_token = seen.codes >= 0
        if not torch.equal(seen.codes[is_token], expected.codes[is_token]):
            return False
        decoded = cast(Tensor, own[forms[level].decoded])
        total += decoded * is_token.reshape(len(given), 1, -1)
    return len(calls) == len(twins) and torch.allclose(total, output[0], rtol=1e-3, atol=1e-4)


def _reader(module: nn.Module, levels: Sequence[Parts], level: int, kept: _Kept) -> Reader:
    """Return the reader of one level; codes of items that dropped it are -1."""
    widths = [parts.codebook.embedding_dim for parts in levels]
    first = sum(widths[:level])

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        codes, latents = output[1].detach(), output[2].detach()
        if level >= codes.shape[1]:  # evaluation may stop at a coarser level
            return None
        own = codes[:, level]
        if module.training and module.quantizer_dropout:
            own = torch.where(kept.of(output).unsqueeze(-1) > level, own, -1)
        return Observation(own.reshape(-1), as_rows(latents[:, first : first + widths[level]]))

    return read


class _Kept:
    """How many levels each item of an output kept; computed once for all readers of that output."""

    def __init__(self, levels: Sequence[Parts]) -> None:
        self._levels = levels
        self._of: weakref.ref[Tensor] | None = None
        self._kept: Tensor | None = None

    def of(self, output: Any) -> Tensor:
        """(quantised, codes, latents, ...) -> (B,) integers from 0 to Q: the number of levels whose sum comes nearest.

        A few frames tell, since an item drops a level in all of its frames. Sums are taken in the order and the
        precision in which the residual takes them.
        """
        quantised = output[0]
        if self._kept is None or self._of is None or self._of() is not quantised:
            self._kept, self._of = self._count(*(tensor.detach() for tensor in output[:3])), weakref.ref(quantised)
        return self._kept

    def _count(self, quantised: Tensor, codes: Tensor, latents: Tensor) -> Tensor:
        T = codes.shape[-1]
        frames = torch.arange(0, T, -(-T // _PROBED_FRAMES), device=codes.device)
        quantised, codes, latents = (tensor[..., frames] for tensor in (quantised, codes, latents))
        decoded = []
        widths = [parts.codebook.embedding_dim for parts in self._levels]
        for level, (parts, own) in enumerate(zip(self._levels, latents.split(widths, dim=1), strict=True)):
            rows = parts.codebook.weight.detach()[codes[:, level]].movedim(-1, 1)
            decoded.append(parts.project_back(own + (rows - own)))
        sums = accumulate(decoded, initial=torch.zeros_like(quantised))
        misses = [(total - quantised).float().square().sum(dim=(1, 2)) for total in sums]
        # Of equal sums the longest: a level that decoded to nothing was kept as well as not.
        return len(decoded) - torch.stack(misses).flip(0).argmin(dim=0)

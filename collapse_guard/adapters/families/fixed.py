"""Quantizers whose codes are a grid, or a learned map of one: they can collapse, and have no rows to place anew.

vector-quantize-pytorch's FSQ, LFQ, FSP, LatentQuantize and BinaryMapper, also inside their residual and grouped forms,
and the FSQ of XCodec2 and NeuCodec in transformers, round their latents to a grid that is written down nowhere or never
learned. SimVQ searches a frozen random table that went through a trained layer. All are watched and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from collapse_guard.adapters.base import CodebookView, Observation, Reader, Unrecognised
from collapse_guard.adapters.refs import Derived, TensorRef

__all__ = ["match_fixed"]

_GRID = "cannot be reset because its codes are a fixed grid: look at the encoder, at its scale and its bias"
_MAPPED = "cannot be reset because its rows come out of a trained layer: a row has no vector of its own to place"
_NO_COMMITMENT = "a fixed grid is only watched: the weights of its losses stay as its owner set them"
_NO_CODES = "return_indices=False: it shows no codes, so there is nothing to count; build it with return_indices=True"

Table = TensorRef | Derived


def match_fixed(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise a quantizer with a grid by the buffers that describe it, or SimVQ by its frozen table."""
    for recognise in (_sim_vq, _grid_of_levels, _grid_of_bits, _binary_mapper):
        if (found := recognise(name, module)) is not None:
            return [found]
    return None


def _sim_vq(name: str, module: nn.Module) -> CodebookView | None:
    frozen, transform = (getattr(module, key, None) for key in ("frozen_codebook", "code_transform"))
    if not isinstance(frozen, Tensor) or not isinstance(transform, nn.Module):
        return None
    table = Derived(transform, lambda: transform(module.frozen_codebook))

    def latents(given: Tensor) -> Tensor:
        last = given.movedim(1, -1) if getattr(module, "channel_first", False) else given
        return last.reshape(-1, last.shape[-1])

    return _view(name, module, table, _reader(latents), _MAPPED)


def _grid_of_levels(name: str, module: nn.Module) -> CodebookView | Unrecognised | None:
    """FSQ, FSP and LatentQuantize of vector-quantize-pytorch; the FSQ of XCodec2 and NeuCodec."""
    for levels, basis, stored in (("_levels", "_basis", "implicit_codebook"), ("levels", "basis", "codebook")):
        if not (_is_integers(getattr(module, levels, None)) and _is_integers(getattr(module, basis, None))):
            continue
        if getattr(module, "return_indices", True) is False:
            return Unrecognised(name, _NO_CODES)
        if isinstance(getattr(module, stored, None), Tensor):
            return _view(name, module, TensorRef(module, stored), _reader(), _GRID)
        activations = getattr(module, "indices_to_act_value", None)
        if callable(activations):
            make = _grid_maker(module, cast(Callable[[Tensor], Tensor], activations))
            return _view(name, module, Derived(nn.Identity(), make), _reader(), _GRID)
    return None


def _grid_maker(module: nn.Module, activations: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: activations(
        torch.arange(cast(int, module.codebook_size), device=cast(Tensor, module._levels).device)
    )


def _grid_of_bits(name: str, module: nn.Module) -> CodebookView | None:
    """LFQ: the signs of each latent, which are shown where nothing stands between the input and the search."""
    bits, codebook = getattr(module, "mask", None), getattr(module, "codebook", None)
    if not _is_integers(bits) or not isinstance(codebook, Tensor) or not hasattr(module, "codebook_scale"):
        return None
    changed = any(getattr(module, key, False) for key in ("has_projections", "spherical", "orthogonal_rotation"))
    changed |= getattr(module, "soft_clamp_input_value", None) is not None

    def latents(given: Tensor) -> Tensor:
        first = getattr(module, "channel_first", None)
        last = given.movedim(1, -1) if (given.ndim >= 4 if first is None else first) else given
        return last.reshape(-1, codebook.shape[-1])

    return _view(name, module, TensorRef(module, "codebook"), _reader(None if changed else latents), _GRID)


def _binary_mapper(name: str, module: nn.Module) -> CodebookView | None:
    powers, codes = getattr(module, "power_two", None), getattr(module, "codes", None)
    if not _is_integers(powers) or not isinstance(codes, Tensor) or codes.dtype is not torch.bool:
        return None

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        """Read (one_hot, loss), or (one_hot, codes, loss); the one-hot may be soft by a rounding error."""
        return Observation(output[0].detach().argmax(-1).reshape(-1), None)

    return _view(name, module, TensorRef(module, "codes"), read, _GRID)


def _view(name: str, module: nn.Module, table: Table, reader: Reader, why_not: str) -> CodebookView:
    lacks = {"reset": why_not, "freeze": why_not, "fallback": why_not, "commitment": _NO_COMMITMENT}
    return CodebookView(
        name=name, adapter="fixed", module=module, table=table, readers={"forward": reader}, lacks=lacks
    )


def _reader(latents: Callable[[Tensor], Tensor] | None = None) -> Reader:
    """Return the reader of (quantized, codes, ...), or of that and a breakdown of losses; codes may be `None`."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        while isinstance(output[0], tuple):
            output = output[0]
        codes = output[1]
        if not isinstance(codes, Tensor):
            return None
        mask = kwargs.get("mask")
        if isinstance(mask, Tensor):  # (batch, tokens); of several codebooks each has a code in a last axis
            codes = torch.where(mask.reshape(*mask.shape, *[1] * (codes.ndim - mask.ndim)), codes, -1)
        given = args[0] if args else next(iter(kwargs.values()))
        return Observation(codes.detach().reshape(-1), None if latents is None else latents(given.detach()))

    return read


def _is_integers(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_floating_point() and tensor.ndim == 1

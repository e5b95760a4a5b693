"""vector-quantize-pytorch: `VectorQuantize`, with EMA, learnable and cosine codebooks, shared and separate heads.

The inner module (`EuclideanCodebook` and `CosineSimCodebook` up to 1.26, `Codebook` since) is matched by its tensors
`embed`, `embed_avg` and `cluster_size`; the library is not imported. It sees latents after projection, head split and
normalisation, so its input *is* the codebook's own space. Modes in which the stored table is not the one that is
searched, or in which the table is updated out of sight of a forward, are watched where possible and not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import CodebookView, Observation, Reader, Unrecognised
from collapse_guard.adapters.refs import Knob, Switch, TensorRef

__all__ = ["match_lucidrains"]


def match_lucidrains(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise a `VectorQuantize`; one view per head where heads have codebooks of their own."""
    leaf = getattr(module, "_codebook", None)
    if not isinstance(leaf, nn.Module) or not all(
        isinstance(getattr(leaf, key, None), Tensor) for key in ("embed", "embed_avg", "cluster_size")
    ):
        return None
    embed = cast(Tensor, leaf.embed)
    if embed.ndim != 3:
        return None
    heads = embed.shape[0]
    return [_view(name if heads == 1 else f"{name}.{head}", module, leaf, head) for head in range(heads)]


def _view(name: str, module: nn.Module, leaf: nn.Module, head: int) -> CodebookView:
    learnable = isinstance(leaf.embed, nn.Parameter)
    lacks: dict[str, str] = {}
    if why := _why_not_writable(module, leaf):
        lacks |= dict.fromkeys(("reset", "freeze", "fallback"), why)
    commitment: Knob | None = Knob(module, "commitment_weight")
    if not getattr(module, "has_commitment_loss", True) or not getattr(module, "commitment_weight", 0.0):
        commitment = None
        lacks["commitment"] = "its loss has no commitment term (commitment_weight was 0 at construction)"
    elif learnable:
        commitment = None
        lacks["commitment"] = "with a learnable codebook its commitment_weight also scales what moves the codebook"
    return CodebookView(
        name=name,
        adapter="vector-quantize-pytorch",
        module=leaf,
        readers={"forward": _reader(leaf, head)},
        table=TensorRef(leaf, "embed", head),
        ema_sum=None if learnable else TensorRef(leaf, "embed_avg", head),
        ema_count=None if learnable else TensorRef(leaf, "cluster_size", head),
        metric="cosine" if _is_cosine(module, leaf) else "l2",
        commitment=commitment,
        decay=None if learnable else Knob(leaf, "decay"),
        replacement=_replacement(leaf),
        is_initialised=lambda: bool(getattr(leaf, "initted", True)),
        lacks=lacks,
    )


def _is_cosine(module: nn.Module, leaf: nn.Module) -> bool:
    flags = (getattr(leaf, "use_cosine_sim", None), getattr(module, "use_cosine_sim", None))
    return any(flag is True for flag in flags) or type(leaf).__name__ == "CosineSimCodebook"


def _replacement(leaf: nn.Module) -> Switch | None:
    off = {"threshold_ema_dead_code": 0, "has_dead_code_replacement": False}
    present = {name: value for name, value in off.items() if hasattr(leaf, name)}
    return Switch(leaf, present) if present else None


def _why_not_writable(module: nn.Module, leaf: nn.Module) -> str | None:
    """Say why rows written to `embed` would not be the rows that are searched, or would not stay."""
    if getattr(leaf, "affine_param", False):
        return "affine_param: the searched table is a re-scaled copy of the stored one"
    if getattr(leaf, "vq_bridge", None) is not None:
        return "vq_bridge: the searched table is computed from the stored one"
    if getattr(module, "in_place_codebook_optimizer", None) is not None:
        return "in_place_codebook_optimizer: an optimizer inside the forward moves the table"
    if getattr(leaf, "manual_ema_update", False):
        return "manual_ema_update: the table is updated outside of the forward"
    return None


def _reader(leaf: nn.Module, head: int) -> Reader:
    """Return the reader of the inner module: (quantized, codes, distances) from (x, mask=...)."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given = args[0] if args else kwargs.get("x")
        codes = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(given, Tensor) or not isinstance(codes, Tensor) or kwargs.get("topk") is not None:
            return None
        latents, codes = given.detach(), codes.detach()
        if latents.ndim == 4:  # (heads, batch, tokens, D) and codes (heads, batch, tokens); one head where shared
            latents, codes = latents[head], codes[head]
        flat = latents.reshape(-1, latents.shape[-1])
        if getattr(leaf, "use_cosine_sim", False):
            flat = functional.normalize(flat.float(), dim=-1)
        codes = codes.reshape(-1)
        mask = kwargs.get("mask")
        if isinstance(mask, Tensor):
            repeats = codes.numel() // mask.numel()
            codes = torch.where(_expand_mask(mask, repeats), codes, -1)
        return Observation(codes, flat)

    return read


def _expand_mask(mask: Tensor, repeats: int) -> Tensor:
    """Return the (batch, tokens) mask for shared heads, which the inner module sees as (batch x heads, tokens)."""
    return mask.repeat_interleave(repeats, dim=0).reshape(-1) if repeats > 1 else mask.reshape(-1)

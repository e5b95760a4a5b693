"""vector-quantize-pytorch: `VectorQuantize` in all its modes, by itself and inside its residual and random forms.

The inner module (`EuclideanCodebook` and `CosineSimCodebook` up to 1.26, `Codebook` since) is matched by its tensors
`embed` and `cluster_size`; the library is not imported. It sees latents after projection, head split and
normalisation, so its input *is* the codebook's own space. Modes in which the rows that are searched are not the rows
that are stored are watched and not written.

What surrounds the quantizer matters where it changes who moves the table: a `ResidualVQ` whose levels share one
codebook, search with a beam or transform their codebooks is recognised as a whole, and so is a
`RandomProjectionQuantizer`, which keeps its quantizer in evaluation mode.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import CodebookView, Metric, Observation, Reader, Unrecognised
from collapse_guard.adapters.commitment import LeftOutCommitment
from collapse_guard.adapters.refs import Derived, Knob, Switch, TensorRef, Threshold

__all__ = ["match_lucidrains"]

_SOFTMAX = "its gradients go through the softmax that codes are drawn by, and a low temperature would stop them"
_AFFINE = "cannot be reset because of affine_param: the searched table is a re-scaled copy of the stored one"
_BRIDGE = "cannot be reset because of vq_bridge: the searched table is computed from the stored one"
_IMPLICIT = "cannot be reset because of implicit_neural_codebook: each token searches a table made for it alone"
_BEAM = "cannot be reset because of beam_size: the residuals of the codes that the beam chose are not shown"
_NO_TERM = "its loss has no commitment term (commitment_weight was 0 at construction), and none is added for it: "
_DIRECTIONAL = "directional_reparam: its loss has no commitment term, whatever its commitment_weight says"
_CROSS_ENTROPY = "it was to be a cross entropy (commitment_use_cross_entropy_loss)"
_SHARED = "its levels share one codebook, and the first one's loss is not that of all"
_SCORES = "with beam_size its loss also scores the candidates"
_BOTH = "learnable codebook: commitment_weight scales the term that the codebook learns from, too"
_IN_EVAL = "its quantizer is kept in evaluation mode, where it has no loss"


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What a `VectorQuantize` cannot know of itself.

    Attributes:
        owner: whose training mode says that the model trains, if not the inner module's own.
        is_implicit: its table is transformed for each token before the search.
        beam: the residual that searches with a beam: its levels see candidates, only its own output has the codes.
        level: of that residual, from 0; `None` where all levels share one codebook.
        is_shared: whether its codebook is also that of the residual's other levels.
    """

    owner: nn.Module | None = None
    is_implicit: bool = False
    beam: nn.Module | None = None
    level: int | None = None
    is_shared: bool = False


def match_lucidrains(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise a `VectorQuantize`, one view per head where heads have codebooks of their own, or what surrounds it."""
    if _is_quantizer(module):
        return _views(name, module, _Surroundings())
    inner = getattr(module, "vq", None)
    if isinstance(getattr(module, "rand_projs", None), Tensor) and _is_quantizer(inner):
        return _views(f"{name}.vq", cast(nn.Module, inner), _Surroundings(owner=module))
    return _residual(name, module)


def _residual(name: str, module: nn.Module) -> Sequence[CodebookView] | None:
    """Recognise a `ResidualVQ` of which the levels cannot be understood one by one; any other is left to its levels."""
    layers = getattr(module, "layers", None)
    shares, implicit = (getattr(module, key, False) is True for key in ("shared_codebook", "implicit_neural_codebook"))
    has_beam = getattr(module, "beam_size", None) is not None
    if not isinstance(layers, nn.ModuleList) or not (shares or implicit or has_beam):
        return None
    if not len(layers) or not all(map(_is_quantizer, layers)):
        return None
    views = []
    for level, layer in enumerate(layers[:1] if shares else layers):
        around = _Surroundings(
            is_implicit=implicit and (shares or level > 0),
            beam=module if has_beam else None,
            level=None if shares else level,
            is_shared=shares,
        )
        (view,) = _views(f"{name}.layers.{level}", layer, around)
        if not shares and len(layers) > 1:
            view.group, view.level = f"{name}.layers", level
        views.append(view)
    return views


def _is_quantizer(module: Any) -> bool:
    leaf = getattr(module, "_codebook", None)
    embed, count = getattr(leaf, "embed", None), getattr(leaf, "cluster_size", None)
    return (
        isinstance(leaf, nn.Module)
        and isinstance(embed, Tensor)
        and isinstance(count, Tensor)
        and embed.ndim == 3
        and count.shape == embed.shape[:2]
    )


def _views(name: str, module: nn.Module, around: _Surroundings) -> list[CodebookView]:
    heads = cast(Tensor, cast(nn.Module, module._codebook).embed).shape[0]
    commitment = _commitment(module, around)  # one of all heads
    names = [name if heads == 1 else f"{name}.{head}" for head in range(heads)]
    return [_view(each, module, head, around, commitment) for head, each in enumerate(names)]


def _view(
    name: str, module: nn.Module, head: int, around: _Surroundings, commitment: Knob | LeftOutCommitment | str
) -> CodebookView:
    leaf = cast(nn.Module, module._codebook)
    metric, normalisation = _compares(module, leaf)
    averages = bool(getattr(leaf, "ema_update", True))
    sums = _has_sums(leaf)
    lacks: dict[str, str] = {}
    if why := _why_not_writable(leaf, around):
        lacks |= dict.fromkeys(("reset", "freeze", "fallback"), why)
    if isinstance(commitment, str):
        lacks["commitment"] = commitment
    temperature = _temperature(leaf, around)
    if isinstance(temperature, str):
        lacks["temperature"] = temperature
    readers = {"forward": _forward_reader(module, head)}
    if around.beam is not None:
        readers = {"forward": _chosen_reader(around.level)}
    optimizer = getattr(module, "in_place_codebook_optimizer", None)
    return CodebookView(
        name=name,
        adapter="vector-quantize-pytorch",
        module=leaf if around.beam is None else around.beam,
        readers=readers,
        table=_table(leaf, head),
        ema_sum=TensorRef(leaf, "embed_avg", head) if averages and sums else None,
        ema_count=TensorRef(leaf, "cluster_size", head) if averages or _counts_to_replace(leaf) else None,
        metric=metric,
        decodes_raw=metric == "cosine" and not sums,
        commitment=None if isinstance(commitment, str) else commitment,
        decay=Knob(leaf, "decay") if averages else None,
        replacement=_replacement(leaf),
        threshold=_threshold(leaf, around),
        temperature=None if isinstance(temperature, str) else temperature,
        normalisation=normalisation,
        compares=partial(_compares, module, leaf) if sums else None,
        is_initialised=lambda: bool(getattr(leaf, "initted", True)),
        lacks=lacks,
        owner=around.owner,
        moves_outside=optimizer is not None or bool(getattr(leaf, "manual_ema_update", False)),
        optimizers=() if optimizer is None else (optimizer,),
    )


def _compares(module: nn.Module, leaf: nn.Module) -> tuple[Metric, Switch | None]:
    """Return how latents and codes are compared, and the setting by which they are normalised for that."""
    if not _is_cosine(module, leaf):
        return "l2", None
    return "cosine", _normalisation(leaf) if _has_sums(leaf) else None


def _has_sums(leaf: nn.Module) -> bool:
    """Whether averages are of sums; the cosine codebooks of 1.0 average rows themselves."""
    return isinstance(getattr(leaf, "embed_avg", None), Tensor)


def _is_cosine(module: nn.Module, leaf: nn.Module) -> bool:
    own = getattr(leaf, "use_cosine_sim", None)  # of the inner module that searches, since 1.27
    if isinstance(own, bool):
        return own
    return getattr(module, "use_cosine_sim", None) is True or type(leaf).__name__ == "CosineSimCodebook"


def _table(leaf: nn.Module, head: int) -> TensorRef | Derived:
    """Return the table that is searched."""
    bridge = getattr(leaf, "vq_bridge", None)
    if isinstance(bridge, nn.Module):
        return Derived(bridge, lambda: bridge(cast(Tensor, leaf.embed).float())[head])
    if getattr(leaf, "affine_param", False):
        return Derived(leaf, lambda: _affine(leaf)[head])
    return TensorRef(leaf, "embed", head)


def _affine(leaf: Any) -> Tensor:
    """Return the stored (heads, K, D) table moved to the batches' mean and variance, as the search moves it."""
    table: Tensor = leaf.embed.detach()
    if leaf.batch_mean is None or leaf.batch_variance is None or bool(leaf.codebook_mean_needs_init):
        return table  # no batch was seen yet
    wide, own = (variance.clamp(min=1e-5).sqrt() for variance in (leaf.batch_variance, leaf.codebook_variance))
    moved: Tensor = (table - leaf.codebook_mean) * (wide / own) + leaf.batch_mean
    return moved


def _replacement(leaf: nn.Module) -> Switch | None:
    off = {"threshold_ema_dead_code": 0, "has_dead_code_replacement": False}
    present = {name: value for name, value in off.items() if hasattr(leaf, name)}
    return Switch(leaf, present) if present else None


def _threshold(leaf: Any, around: _Surroundings) -> Threshold | None:
    """Return the threshold of a quantizer that replaces codes; not of levels that one beam counts together."""
    switch = _replacement(leaf)
    if switch is None or not switch.is_on or "threshold_ema_dead_code" not in switch.off:
        return None
    if around.beam is not None and around.is_shared:
        return None
    adds_ranks = getattr(getattr(leaf, "all_reduce_fn", None), "__name__", "") != "noop"
    refill = "reset_cluster_size" if getattr(leaf, "reset_cluster_size", None) is not None else None
    return Threshold(leaf, "threshold_ema_dead_code", refill=refill, adds_ranks=adds_ranks)


def _temperature(leaf: nn.Module, around: _Surroundings) -> Knob | str | None:
    """Return the temperature of a quantizer that draws codes in training, or why it is not to be lowered."""
    options = getattr(getattr(leaf, "gumbel_sample", None), "keywords", {})
    draws = bool(options.get("stochastic")) and getattr(leaf, "sample_codebook_temp", 0) > 0
    if not draws or around.owner is not None:  # one that is kept in evaluation never does
        return None
    return _SOFTMAX if options.get("straight_through") else Knob(leaf, "sample_codebook_temp")


def _normalisation(leaf: nn.Module) -> Switch | None:
    """Return the settings without which the inner module of 1.27 and newer searches by distance."""
    off = {"use_cosine_sim": False, "transform_input": torch.Tensor.contiguous}  # which returns what it is given
    has_one_head = cast(Tensor, leaf.embed).shape[0] == 1  # else one setting would govern several codebooks
    is_known = getattr(leaf, "use_cosine_sim", None) is True and all(hasattr(leaf, name) for name in off)
    return Switch(leaf, off) if has_one_head and is_known else None


def _counts_to_replace(leaf: nn.Module) -> bool:
    """Whether a table that no average moves has counts all the same, by which its dead rows are told."""
    return bool(getattr(leaf, "has_dead_code_replacement", False))


def _why_not_writable(leaf: nn.Module, around: _Surroundings) -> str | None:
    """Say why rows written to `embed` would not be the rows that are searched."""
    if getattr(leaf, "affine_param", False):
        return _AFFINE
    if getattr(leaf, "vq_bridge", None) is not None:
        return _BRIDGE
    if around.beam is not None:
        return _BEAM
    return _IMPLICIT if around.is_implicit else None


def _commitment(module: nn.Module, around: _Surroundings) -> Knob | LeftOutCommitment | str:
    """Return the number that pulls the encoder and nothing else, or why there is none."""
    is_learnable = getattr(module, "learnable_codebook", False)
    if around.owner is not None:
        return _IN_EVAL
    if getattr(module, "has_commitment_loss", True):
        return _BOTH if is_learnable else Knob(module, "commitment_weight")
    if getattr(module, "directional_reparam", False):
        return _DIRECTIONAL
    why = {
        _BOTH: is_learnable,
        _CROSS_ENTROPY: getattr(module, "commitment_use_cross_entropy_loss", False),
        _SHARED: around.is_shared,
        _SCORES: around.beam is not None,
    }
    refused = next((reason for reason, holds in why.items() if holds), None)
    leaf = cast(nn.Module, module._codebook)
    return LeftOutCommitment(module, leaf, position=2) if refused is None else _NO_TERM + refused


def _forward_reader(module: nn.Module, head: int) -> Reader:
    """Return the reader of the inner module: (quantized, codes, distances) from (x, mask=...).

    With an optimizer inside the forward the same latents are searched twice, before and after its step: the second
    search gives the codes. With `topk` there are candidates, and no token is given a code by this call.
    """
    first: list[weakref.ReferenceType[Tensor]] = []
    leaf = cast(nn.Module, module._codebook)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given, codes = args[0] if args else kwargs["x"], output[1]
        if kwargs.get("topk") is not None:
            return None
        if _searches_twice(module, kwargs):
            is_second = bool(first) and first.pop()() is given
            if not is_second:
                first[:] = [weakref.ref(given)]
                return None
        cosine = _is_cosine(module, leaf)  # which may be switched off
        seen = _observation(given, codes, kwargs.get("mask"), head, cosine)
        own_table = kwargs.get("codebook_transform_fn") is not None
        is_update = not (kwargs.get("freeze_codebook") or kwargs.get("accum_ema_update"))
        return Observation(seen.codes, None if own_table else seen.latents, is_update)

    return read


def _searches_twice(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    inside = getattr(module, "in_place_codebook_optimizer", None) is not None
    return inside and module.training and not kwargs.get("freeze_codebook")


def _chosen_reader(level: int | None) -> Reader:
    """Return the reader of a residual's own (quantized, codes (..., levels), losses): one level's codes, or all."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        codes = output[1]
        if codes.is_floating_point():  # `indices` were given: a loss stands where the codes do
            return None
        return Observation((codes if level is None else codes[..., level]).detach().reshape(-1), None)

    return read


def _observation(given: Tensor, codes: Tensor, mask: Any, head: int, cosine: bool) -> Observation:
    latents, codes = given.detach(), codes.detach()
    if latents.ndim == 4:  # (heads, batch, tokens, D) and codes (heads, batch, tokens); one head where shared
        latents, codes = latents[head], codes[head]
    flat = latents.reshape(-1, latents.shape[-1])
    if cosine:
        flat = functional.normalize(flat.float(), dim=-1)
    codes = codes.reshape(-1)
    if isinstance(mask, Tensor):
        repeats = codes.numel() // mask.numel()
        codes = torch.where(_expand_mask(mask, repeats), codes, -1)
    return Observation(codes, flat)


def _expand_mask(mask: Tensor, repeats: int) -> Tensor:
    """Return the (batch, tokens) mask for shared heads, which the inner module sees as (batch x heads, tokens)."""
    return mask.repeat_interleave(repeats, dim=0).reshape(-1) if repeats > 1 else mask.reshape(-1)

"""diveq and nsvq: a `codebook` parameter that gradients reach through the quantised vector, with no loss of its own.

It is (K, D), or (Q, K, D) for the levels of a residual or the parts of a product. Training calls `forward`; `inference`
is a method of its own. The module replaces rarely used codes by itself, in eval mode too. Its space-filling forms
(SFDIVEQ) code the segments of a curve through the codes; while they skip quantising they return zeros for codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from collapse_guard.adapters.base import CodebookView, Observation, Reader, Unrecognised
from collapse_guard.adapters.refs import Switch, TensorRef

__all__ = ["match_parameter"]

_NO_LOSS = "it has no loss: codes and encoder learn through the quantised vector itself"
_SEGMENTS = "its codes are the segments of a curve through all rows: a row cannot be moved for one of them"


def match_parameter(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise the module; one view per level, `name.0` and so on, where it has several."""
    codebook, counter = getattr(module, "codebook", None), getattr(module, "iter_counter", None)
    if not isinstance(codebook, nn.Parameter) or not isinstance(counter, Tensor) or not hasattr(module, "inference"):
        return None
    if codebook.ndim == 2:
        return [_view(name, module, None)]
    return [_view(f"{name}.{level}", module, level) for level in range(len(codebook))]


def _view(name: str, module: nn.Module, level: int | None) -> CodebookView:
    is_curve = hasattr(module, "skip_iters")
    split = _split(module)
    lacks = {"commitment": _NO_LOSS}
    if is_curve:
        lacks |= dict.fromkeys(("reset", "freeze", "fallback"), _SEGMENTS)
    readers = {"forward": _reader(module, level, split)}
    if not is_curve:  # the inference of a curve returns rows
        readers["inference"] = readers["forward"]
    view = CodebookView(
        name=name,
        adapter="parameter",
        module=module,
        table=TensorRef(module, "codebook", level),
        readers=readers,
        replacement=Switch(module, {"codebook_reset": False}) if hasattr(module, "codebook_reset") else None,
        lacks=lacks,
    )
    if split is None and level is not None:
        view.group, view.level = name.rpartition(".")[0], level
    return view


def _split(module: nn.Module) -> Callable[[Tensor, int], Tensor] | None:
    """Return what takes one part of a product quantizer's input; `None` for any other."""
    width = getattr(module, "pvq_dim", None)
    return None if width is None else lambda given, level: given[:, level * width : (level + 1) * width]


def _reader(module: nn.Module, level: int | None, split: Callable[[Tensor, int], Tensor] | None) -> Reader:
    """Return the reader of (quantised, codes of each level, perplexity) from z: (n, D)."""
    is_curve = hasattr(module, "skip_iters")

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given = args[0] if args else kwargs["z"]
        if output[0] is given:  # quantising is being skipped: the codes are a placeholder
            return None
        if level is None:
            return Observation(output[1].detach(), given.detach())
        codes = output[1][level].detach()
        if split is not None:
            return Observation(codes, split(given.detach(), level))
        if level and (is_curve or _has_just_replaced(module)):
            return Observation(codes, None)
        table = cast(Tensor, module.codebook).detach()
        latents = given.detach()
        for above in range(level):
            latents = latents - table[above][output[1][above]]
        return Observation(codes, latents)

    return read


def _has_just_replaced(module: nn.Module) -> bool:
    """Whether this very call moved codes after using them, so that what the level below saw cannot be told any more.

    It asks the device, as the module itself has just done in the same place.
    """
    every = cast(int, getattr(module, "replacement_iters", 0))
    resets = getattr(module, "codebook_reset", False) and every
    return bool(resets) and int(cast(Tensor, module.iter_counter)) % every == 0

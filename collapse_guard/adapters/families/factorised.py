"""Factorised codes: projected to a few dimensions, compared there by angle, decoded as the raw row, projected back.

descript-audio-codec, DAC of transformers, snac, and the copies of their class in BigCodec, Amphion and Spark-TTS: a
projection in and one out (`in_proj`, `out_proj`, or `in_project`, `out_project`) around an `nn.Embedding` named
`codebook`. None of them is imported. Names only make a candidate; a trial forward of a twin confirms it, and says how
it compares and what it returns.

The row's length is part of what is decoded, and the codebook loss pulls the raw row to the raw projected latent. So a
row that is written gets the length that reconstructs best in its direction, although the search looks at directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from collapse_guard.adapters.base import CodebookView, Unrecognised
from collapse_guard.adapters.refs import Knob, TensorRef

from .factorised_levels import levels_of, readers_of
from .factorised_parts import Form, Parts, confirm, parts_of, reader_of

__all__ = ["match_factorised", "weigh_by_configuration"]

_OUTSIDE = "the module weighs no commitment loss: the script that trains it does, in its sum of losses"
_UNCONFIRMED = (
    "it has the projections and the codebook of a factorised quantizer, but no trial forward on random latents "
    "returned the nearest codes of its projected input together with their rows, projected back"
)
_INCLUDES_DROPPED = (
    "its levels are watched one by one, and codes that quantizer_dropout drops count as tokens of the finer levels: "
    "its output does not show what was dropped"
)


def match_factorised(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise one quantizer, or a residual of several that may drop the finer levels of some items."""
    if (parts := parts_of(module)) is not None:
        form = confirm(parts)
        return [Unrecognised(name, _UNCONFIRMED) if form is None else _view(name, parts, form)]
    if (found := levels_of(module)) is None:
        return None
    key, levels = found
    names = [f"{name}.{key}.{level}" for level in range(len(levels))]
    forms = [confirm(parts) for parts in levels]
    confirmed = [form for form in forms if form is not None]
    views = [
        Unrecognised(each, _UNCONFIRMED) if form is None else _view(each, parts, form)
        for each, parts, form in zip(names, levels, forms, strict=True)
    ]
    readers = readers_of(module, levels, confirmed) if len(confirmed) == len(levels) else None
    if readers is None:
        return [*views, Unrecognised(name, _INCLUDES_DROPPED)]
    for level, (view, reader) in enumerate(zip(views, readers, strict=True)):
        assert isinstance(view, CodebookView)
        view.module, view.readers = module, {"forward": reader}
        if len(levels) > 1:
            view.group, view.level = f"{name}.{key}", level
    return views


def weigh_by_configuration(model: nn.Module, views: Sequence[CodebookView]) -> None:
    """Give the levels of a model of transformers the commitment weight that its configuration holds for all of them.

    The model multiplies the sum of its quantizer's losses by `config.commitment_loss_weight`, read at each forward.
    """
    for path, module in model.named_modules():
        config: Any = getattr(module, "config", None)
        is_weighed = isinstance(getattr(config, "commitment_loss_weight", None), (int, float))
        if not is_weighed or not isinstance(getattr(config, "model_type", None), str):
            continue
        levels = f"{path}.quantizer." if path else "quantizer."
        for view in views:
            if view.adapter == "factorised" and view.commitment is None and view.name.startswith(levels):
                view.commitment = Knob(config, "commitment_loss_weight")
                view.lacks = {key: reason for key, reason in view.lacks.items() if key != "commitment"}


def _view(name: str, parts: Parts, form: Form) -> CodebookView:
    weight = getattr(parts.module, "commitment", None)
    is_weighed = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return CodebookView(
        name=name,
        adapter="factorised",
        module=parts.module,
        table=TensorRef(parts.codebook, "weight"),
        readers={"forward": reader_of(parts, form)},
        metric=form.metric,
        decodes_raw=form.decodes_raw,
        commitment=Knob(parts.module, "commitment") if is_weighed else None,
        lacks={} if is_weighed else {"commitment": _OUTSIDE},
    )

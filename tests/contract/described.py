"""Quantizers of others under the contract, described by `GenericVQ` instead of being recognised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from collapse_guard import GenericVQ

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES", "taming"]

taming = import_inside("taming", "modules.vqvae.quantize")


def _images() -> Tensor:
    return offset_data(4, 8, 8, 8, channel=1)  # as many channels as rows and columns: only the codes tell them apart


def _padded(x: Tensor) -> Tensor:
    """(B, H, W), where an image was padded: its last row."""
    mask = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.bool)
    mask[:, -1] = True
    return mask


def _taming(module: nn.Module, x: Tensor) -> Run:
    _, loss, (_, _, codes) = module(x)
    return Run({"quantizer": flat(codes)}, loss)


def _taming_padded(module: nn.Module, x: Tensor) -> Run:
    _, loss, (_, _, codes) = module(x)
    return Run({"quantizer": flat(codes.masked_fill(_padded(x), -1))}, loss)


def _without_padding(output: Any) -> Tensor:
    return output[2][2].masked_fill(_padded(output[0]), -1)  # type: ignore[no-any-return]


def _taming_case(mode: str, described: GenericVQ, run: Any, **options: Any) -> Case:
    return Case(
        package="taming-transformers",
        cls="VectorQuantizer2",
        mode=f"described, {mode}",
        build=lambda: taming.VectorQuantizer2(16, 8, 0.25, legacy=False, **options),
        batch=_images,
        run=run,
        views=("quantizer",),
        described=described,
    )


CASES = (
    _taming_case(
        "channels first",
        GenericVQ(
            table="embedding.weight",
            codes=lambda output: output[2][2],
            latents=lambda x: x.movedim(1, -1),
            commitment="beta",
        ),
        _taming,
    ),
    _taming_case(
        "padding masked",
        GenericVQ(
            table="embedding.weight", codes=_without_padding, latents=lambda x: x.movedim(1, -1), commitment="beta"
        ),
        _taming_padded,
        sane_index_shape=True,
    ),
)

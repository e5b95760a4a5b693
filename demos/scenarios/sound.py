"""The scenarios in which nothing is wrong, some of them with a look of trouble: what must not be diagnosed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .course import Scenario
from .data import Blobs, Sheet, Shifted, Sorted
from .quantizers import EmaQuantizer, EmaResidualQuantizer, residual_quantize, vector_quantize

__all__ = ["SOUND"]

_D = 16


def _sound(name: str, says: str, quantizer: Callable[[], nn.Module], **options: Any) -> Scenario:
    family = "home-made EMA" if name.endswith("/home") else "vector-quantize-pytorch"
    return Scenario(name=name, family=family, says=says, quantizer=quantizer, **{"data": Sheet(), **options})


def _home(K: int = 64, **options: Any) -> Callable[[], nn.Module]:
    return lambda: EmaQuantizer(K, _D, **{"start": "kmeans", **options})


def _library(K: int = 64, **options: Any) -> Callable[[], nn.Module]:
    return lambda: vector_quantize(K, _D, **{"kmeans_init": True, **options})


SOUND: tuple[Scenario, ...] = (
    _sound("plain/home", "a sheet, 64 codes", _home()),
    _sound("plain/library", "a sheet, 64 codes", _library()),
    _sound("blobs/home", "64 modes, 64 codes", _home(), data=Blobs()),
    _sound("blobs/library", "64 modes, 64 codes", _library(), data=Blobs()),
    _sound("four codes/home", "K = 4", _home(4)),
    _sound("four codes/library", "K = 4", _library(4)),
    _sound("sorted/home", "batches of few classes each", _home(), data=Sorted()),
    _sound("sorted/library", "batches of few classes each", _library(), data=Sorted()),
    _sound("small batches/home", "32 tokens a step", _home(32), data=Sheet(sequences=2)),
    _sound("small batches/library", "32 tokens a step", _library(32), data=Sheet(sequences=2)),
    _sound("warm-up/home", "a start from random latents, and a fast encoder", _home(start="data"), learning_rate=5e-3),
    _sound("warm-up/library", "a fast encoder", _library(), learning_rate=5e-3),
    _sound("shift/home", "the data moves, and the codes follow", _home(), data=Shifted()),
    _sound("shift/library", "the data moves, and the codes follow", _library(), data=Shifted()),
    _sound("slow average/home", "decay 0.99", _home(decay=0.99)),
    _sound("cosine/library", "codes compared by angle", _library(use_cosine_sim=True)),
    _sound("large/library", "256 codes, dead ones replaced", _library(256, threshold_ema_dead_code=0.2)),
    _sound("strong commitment/home", "weight 1", _home(commitment_weight=1.0)),
    _sound("residual/home", "three levels", lambda: EmaResidualQuantizer(3, 32, _D, start="kmeans"), codebook="*"),
    _sound("residual/library", "three levels", lambda: residual_quantize(3, 32, _D), codebook="*"),
)
"""Twenty runs."""

"""taming-transformers under the contract."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .case import Case, Run, flat, offset_data
from .packages import import_inside

__all__ = ["CASES", "USED", "images", "remapped", "run_remapped"]

quantize = import_inside("taming", "modules.vqvae.quantize")

USED = [0, 3, 5, 8, 9, 12]  # most of the sixteen rows have no id of their own after re-mapping
DRAWN = frozenset({"reset", "commitment", "freeze", "fallback"})


def images() -> Tensor:
    return offset_data(4, 8, 6, 6, channel=1)


def remapped(cls: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    """Make a quantizer that re-maps its ids to `USED`, which it reads from a file."""
    return cls(*args, remap=str(_file_of_ids()), **options)


@cache
def _file_of_ids() -> Path:
    """Write the file once: a quantizer keeps its name, and two of the same case are to be alike."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    file = Path(folder.name) / "used.npy"
    np.save(file, np.array(USED))
    return file


def _run(module: nn.Module, x: Tensor) -> Run:
    _, loss, (*_, codes) = module(x)
    return Run({"quantizer": flat(codes)}, loss)


def run_remapped(module: nn.Module, x: Tensor) -> Run:
    """Run it, with the ids that its embedding was called with: those that it returns say less."""
    asked: list[Tensor] = []
    embedding = module.embedding
    assert isinstance(embedding, nn.Embedding)
    handle = embedding.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    _, loss, _ = module(x)
    handle.remove()
    return Run({"quantizer": flat(asked[0])}, loss)


def _gumbel(module: nn.Module, x: Tensor) -> Run:
    z, loss, (*_, codes) = module(x)
    return Run({"quantizer": flat(codes)}, loss + (z - x.detach()).square().mean())


def _gumbel_remapped(module: nn.Module, x: Tensor) -> Run:
    """Run it; the row of each token is the one that its decoded vector is."""
    z, loss, _ = module(x)
    embed = module.embed
    assert isinstance(embed, nn.Embedding)
    rows = z.detach().movedim(1, -1).reshape(-1, 8)
    return Run({"quantizer": torch.cdist(rows, embed.weight.detach()).argmin(-1)}, loss)


def _case(name: str, build: Any, *, mode: str = "", run: Any = _run, lacks: frozenset[str] = frozenset()) -> Case:
    return Case(
        package="taming-transformers",
        cls=name,
        mode=mode,
        build=build,
        batch=images,
        run=run,
        views=("quantizer",),
        lacks=lacks,
    )


V1, V2, GUMBEL = quantize.VectorQuantizer, quantize.VectorQuantizer2, quantize.GumbelQuantize
CASES = (
    _case("VectorQuantizer", lambda: V1(16, 8, beta=0.25)),
    _case("VectorQuantizer2", lambda: V2(16, 8, beta=0.25)),
    _case("VectorQuantizer2", lambda: V2(16, 8, beta=0.25, legacy=False), mode="legacy=False"),
    _case("VectorQuantizer2", lambda: V2(16, 8, beta=0.25, sane_index_shape=True), mode="sane_index_shape"),
    _case("VectorQuantizer2", lambda: remapped(V2, 16, 8, beta=0.25), mode="remap", run=run_remapped),
    _case(
        "VectorQuantizer2",
        lambda: remapped(V2, 16, 8, beta=0.25, unknown_index="extra", sane_index_shape=True),
        mode="remap with extra",
        run=run_remapped,
    ),
    _case("GumbelQuantize", lambda: GUMBEL(8, 8, 16), run=_gumbel, lacks=DRAWN),
    _case("GumbelQuantize", lambda: remapped(GUMBEL, 8, 8, 16), mode="remap", run=_gumbel_remapped, lacks=DRAWN),
)

"""The EMA codebook of the encodec line of codecs: `embed`, `embed_avg` and `cluster_size`, two-dimensional.

encodec, audiocraft and speechtokenizer train it; Encodec, XCodec and Higgs of transformers hold the same tensors and
only ever call `encode`. Their parents keep the commitment weight. None of these libraries is imported.

encodec's own replacement of dead codes writes `embed` alone, which the EMA step of the same forward overwrites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from collapse_guard.adapters.base import CodebookView, Observation, Unrecognised
from collapse_guard.adapters.refs import Knob, Switch, TensorRef

__all__ = ["match_codec_ema"]


def match_codec_ema(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise the codebook itself, or the module that owns it as `_codebook` or `codebook`."""
    for inner in ("_codebook", "codebook"):
        leaf = getattr(module, inner, None)
        if isinstance(leaf, nn.Module) and _is_leaf(leaf):
            return [_view(name, leaf, parent=module)]
    return [_view(name, module, parent=None)] if _is_leaf(module) else None


def _is_leaf(module: nn.Module) -> bool:
    embed, embed_avg, count = (getattr(module, key, None) for key in ("embed", "embed_avg", "cluster_size"))
    return (
        isinstance(embed, Tensor)
        and isinstance(embed_avg, Tensor)
        and isinstance(count, Tensor)
        and isinstance(getattr(module, "inited", None), Tensor)
        and embed.ndim == 2
        and embed_avg.shape == embed.shape
        and count.shape == embed.shape[:1]
    )


def _view(name: str, leaf: nn.Module, *, parent: nn.Module | None) -> CodebookView:
    trains = type(leaf).forward is not nn.Module.forward
    readers = {"encode": _read_encode} | ({"forward": _read_forward} if trains else {})
    lacks: dict[str, str] = {}
    commitment = None
    if parent is not None and isinstance(getattr(parent, "commitment_weight", None), (int, float)):
        commitment = Knob(parent, "commitment_weight")
    else:
        lacks["commitment"] = "the module has no commitment loss: its training script may have one"
    return CodebookView(
        name=name,
        adapter="codec-ema",
        module=leaf,
        table=TensorRef(leaf, "embed"),
        readers=readers,
        ema_sum=TensorRef(leaf, "embed_avg"),
        ema_count=TensorRef(leaf, "cluster_size"),
        commitment=commitment,
        decay=Knob(leaf, "decay") if hasattr(leaf, "decay") else None,
        replacement=Switch(leaf, {"threshold_ema_dead_code": 0}) if hasattr(leaf, "threshold_ema_dead_code") else None,
        is_initialised=lambda: bool(leaf.inited) and bool(leaf.embed.any()),  # type: ignore[operator]
        lacks=lacks,
    )


def _read_forward(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
    """Read (quantized, codes) from x: (..., D)."""
    given = args[0] if args else next(iter(kwargs.values()))
    codes = output[1]
    return Observation(codes.detach().reshape(-1), given.detach().reshape(-1, given.shape[-1]))


def _read_encode(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
    """Read codes from x: (..., D)."""
    return _read_forward(args, kwargs, (None, output))

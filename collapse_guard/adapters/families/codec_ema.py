"""The EMA codebook of the encodec line of codecs: `embed`, `embed_avg` and `cluster_size`, two-dimensional.

encodec, audiocraft and speechtokenizer train it; Encodec, XCodec and Higgs of transformers hold the same tensors and
only ever call `encode`. Their parents keep the commitment weight. None of these libraries is imported.

encodec's own replacement of dead codes writes `embed` alone, which the EMA step of the same forward overwrites. The
codecs of transformers update nothing: their table is zero until weights are loaded, and then stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from collapse_guard.adapters.base import CodebookView, Observation, Unrecognised
from collapse_guard.adapters.refs import Knob, Switch, TensorRef

__all__ = ["find_leaf", "has_forward", "match_codec_ema", "read_encode", "read_forward"]


_OVERWRITTEN = "what it replaces is overwritten by the moving averages of the same forward: no threshold matters"


def match_codec_ema(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise the codebook itself, or the module that owns it as `_codebook` or `codebook`."""
    leaf = find_leaf(module, _is_leaf)
    return [_view(name, leaf, module)] if leaf is not None else None


def find_leaf(module: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> nn.Module | None:
    """Return the codebook that a module owns as `_codebook` or `codebook`, or the module if it is one itself."""
    owned = [module._modules.get(attribute) for attribute in ("_codebook", "codebook")]
    return next((each for each in (*owned, module) if each is not None and is_leaf(each)), None)


def has_forward(leaf: nn.Module) -> bool:
    """Whether a codebook trains by calls of its forward; those of transformers have only `encode`."""
    return type(leaf).forward is not nn.Module.forward


def _is_leaf(module: nn.Module) -> bool:
    held = {**module._parameters, **module._buffers}  # no other attribute: one computed on demand may fill a cache
    embed, embed_avg, count, inited = map(held.get, ("embed", "embed_avg", "cluster_size", "inited"))
    return (
        isinstance(embed, Tensor)
        and isinstance(embed_avg, Tensor)
        and isinstance(count, Tensor)
        and isinstance(inited, Tensor)
        and embed.ndim == 2
        and embed_avg.shape == embed.shape
        and count.shape == embed.shape[:1]
    )


def _view(name: str, leaf: nn.Module, owner: nn.Module) -> CodebookView:
    readers = {"encode": read_encode} | ({"forward": read_forward} if has_forward(leaf) else {})
    lacks: dict[str, str] = {}
    commitment = None
    if isinstance(getattr(owner, "commitment_weight", None), (int, float)):
        commitment = Knob(owner, "commitment_weight")
    else:
        lacks["commitment"] = "the module has no commitment loss: its training script may have one"
    if hasattr(leaf, "threshold_ema_dead_code"):
        lacks["threshold"] = _OVERWRITTEN
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


def read_forward(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
    """Read (quantized, codes) from x: (..., D)."""
    given = args[0] if args else next(iter(kwargs.values()))
    codes = output[1]
    return Observation(codes.detach().reshape(-1), given.detach().reshape(-1, given.shape[-1]))


def read_encode(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
    """Read codes from x: (..., D)."""
    return read_forward(args, kwargs, (None, output))

"""The EMA codebook that stores no table: a moving sum, a moving usage, and their quotient held in a cache.

moshi trains it (`embedding_sum`, `cluster_usage`, `_embedding`); Mimi of transformers, which Moshi and others there
reuse, holds the same under other names (`embed_sum`, `cluster_usage`, `_embed`), only ever calls `encode` and updates
nothing. Neither library is imported, and looking at a module fills no cache: one that is filled before weights are
loaded would outlive them.

Rows are written through sum and usage, and the cache is dropped. moshi starts level after level, one training forward
each; what a level that has not started returns is told by next to nothing but zeros: no codes, and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from collapse_guard.adapters.base import CodebookView, Observation, Reader, Unrecognised
from collapse_guard.adapters.refs import Knob, Quotient, Switch, TensorRef, Threshold

from .codec_ema import find_leaf, has_forward, read_encode, read_forward

__all__ = ["match_sum_usage"]


@dataclass(frozen=True, slots=True)
class _Names:
    """What one library calls the tensors."""

    total: str
    cache: str
    flag: str
    usage: str = "cluster_usage"


_NAMES = (_Names("embedding_sum", "_embedding", "_initialized"), _Names("embed_sum", "_embed", "initialized"))


def match_sum_usage(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise the codebook itself, or the module that owns it as `_codebook` or `codebook`."""
    leaf = find_leaf(module, lambda inner: _names_of(inner) is not None)
    names = _names_of(leaf) if leaf is not None else None
    return [_view(name, leaf, names)] if leaf is not None and names is not None else None


def _names_of(module: nn.Module) -> _Names | None:
    held = {**module._parameters, **module._buffers}
    for names in _NAMES:
        total, usage = held.get(names.total), held.get(names.usage)
        if (
            isinstance(total, Tensor)
            and isinstance(usage, Tensor)
            and isinstance(held.get(names.flag), Tensor)
            and hasattr(module, names.cache)
            and hasattr(module, "epsilon")
            and total.ndim == 2
            and usage.shape == total.shape[:1]
        ):
            return names
    return None


def _view(name: str, leaf: nn.Module, names: _Names) -> CodebookView:
    total, usage = TensorRef(leaf, names.total), TensorRef(leaf, names.usage)
    table = Quotient(total, usage, floor=float(leaf.epsilon), cache=names.cache)  # type: ignore[arg-type]
    reads_forward = {"forward": _once_started(leaf, names.flag, read_forward)} if has_forward(leaf) else {}
    readers = {"encode": _once_started(leaf, names.flag, read_encode)} | reads_forward

    def drop_cache() -> None:
        setattr(leaf, names.cache, None)

    return CodebookView(
        name=name,
        adapter="sum-usage",
        module=leaf,
        table=table,
        readers=readers,
        ema_sum=total,
        ema_count=usage,
        decay=Knob(leaf, "decay") if hasattr(leaf, "decay") else None,
        # Below no share of the mean usage is a code replaced.
        replacement=Switch(leaf, {"threshold_usage_ratio": 0.0}) if hasattr(leaf, "threshold_usage_ratio") else None,
        threshold=_threshold(leaf),
        after_write=drop_cache,
        is_initialised=lambda: _is_started(leaf, names.flag) and bool(table.get().any()),
        lacks={"commitment": "the module weighs no commitment loss: its training script may have one"},
    )


def _threshold(leaf: Any) -> Threshold | None:
    is_on = getattr(leaf, "threshold_usage_ratio", 0) > 0
    return Threshold(leaf, "threshold_usage_ratio", is_share=True) if is_on else None


def _once_started(leaf: nn.Module, flag: str, read: Reader) -> Reader:
    """Return a reader that sees nothing before the codebook has made its start."""

    def reader(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        return read(args, kwargs, output) if _is_started(leaf, flag) else None

    return reader


def _is_started(leaf: nn.Module, flag: str) -> bool:
    """Whether the flag is up; a device is asked, once, only where the quantizer does not remember the answer itself."""
    return bool(getattr(leaf, "_cached_initialized", False)) or bool(getattr(leaf, flag))

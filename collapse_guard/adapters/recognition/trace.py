"""Seeing inside one forward: what is a stored tensor compared with, and are its rows then looked up?

Attribute names lie and two tensors of a home-made quantizer often have the same shape, so structure alone cannot
tell the table from its moving sum, or raw latents from normalised ones. A trial forward of a *copy* of the module
can: the table is the stored tensor that takes part in a comparison with something as large as the input, and that
something are the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from collapse_guard.adapters.nested import flatten_tensors

__all__ = ["Comparison", "Tracer"]

_COMPARISONS = frozenset(
    {
        "cdist",
        "mm",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "addmm",
        "bmm",
        "baddbmm",
        "linear",
        "einsum",
        "sub",
        "__sub__",
        "__rsub__",
        "rsub",
        "subtract",
        "cosine_similarity",
        "pairwise_distance",
    }
)
_SELECTIONS = frozenset({"argmin", "argmax", "min", "max", "topk", "sort", "argsort"})
_LOOKUPS = frozenset({"embedding", "__getitem__", "index_select", "gather", "take_along_dim", "take"}) | _COMPARISONS
_REPEATS = frozenset({"expand", "expand_as", "repeat", "repeat_interleave", "tile", "broadcast_to"})
_SCORES, _CODES = "scores", "codes"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operands met: a stored two-dimensional tensor, perhaps after a transformation, and something else.

    Attributes:
        source: name of the stored tensor on the module.
        table: its values as they were used.
        other: the other operand, detached.
    """

    source: str
    table: Tensor
    other: Tensor


class Tracer(TorchFunctionMode):
    """Records comparisons of stored tensors, and which of them are searched and then looked up.

    Stored tensors are followed through operations that keep or repeat them; what came of a comparison is followed to
    the selection of a best score, and from there to the lookup of rows.

    Args:
        stored: tensors by name.
        keeps: whether to keep the operands of comparisons.

    Attributes:
        comparisons: of two-dimensional stored tensors, in order.
        looked_up: names of the stored tensors of which rows were picked by scores against the same tensor.
    """

    def __init__(self, stored: Mapping[str, Tensor], *, keeps: bool = True) -> None:
        super().__init__()
        self._keeps = keeps
        self._sources = {tensor.untyped_storage().data_ptr(): name for name, tensor in stored.items()}
        self._shapes = {name: tensor.shape for name, tensor in stored.items()}
        self._marks: dict[int, set[tuple[str, str]]] = {}
        self._alive: list[Tensor] = []  # a freed storage could lend its address to another tensor
        self.comparisons: list[Comparison] = []
        self.looked_up: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = getattr(func, "__name__", "")
        operands = [(tensor, self._source(tensor)) for tensor in flatten_tensors((args, kwargs or {}))]
        marks = {mark for tensor, _ in operands for mark in self._marks.get(_address(tensor), ())}
        if self._keeps and called in _COMPARISONS:
            self._record(operands)
        result = func(*args, **(kwargs or {}))
        names = {name for _, name in operands if name is not None}
        self._follow_stored(called, names, result)
        self._follow_marks(called, names, marks, result)
        return result

    def _source(self, tensor: Tensor) -> str | None:
        return self._sources.get(_address(tensor))

    def _record(self, operands: list[tuple[Tensor, str | None]]) -> None:
        others = [tensor for tensor, name in operands if name is None and tensor.is_floating_point()]
        for tensor, name in operands:
            whole = self._once(tensor, name) if name is not None else None
            if name is not None and whole is not None:
                for other in others:
                    self.comparisons.append(Comparison(name, whole.detach().clone(), other.detach().clone()))

    def _once(self, tensor: Tensor, name: str) -> Tensor | None:
        """Return a stored two-dimensional tensor as it is used, without repeats over a batch; `None` for a part."""
        shape = self._shapes[name]
        if len(shape) != 2:
            return None
        if tensor.numel() == shape.numel():
            return tensor
        if tensor.ndim == 3 and tensor.numel() and tensor[0].numel() == shape.numel():
            return tensor[0]
        return None

    def _follow_stored(self, called: str, names: set[str], result: Any) -> None:
        if len(names) != 1 or not isinstance(result, Tensor) or not result.is_floating_point():
            return
        (name,) = names
        size = self._shapes[name].numel()
        kept = result.numel() == size or (called in _REPEATS and size and result.numel() % size == 0)
        if kept and self._source(result) is None:
            self._keep(self._sources, result, name)

    def _follow_marks(self, called: str, names: set[str], marks: set[tuple[str, str]], result: Any) -> None:
        if called in _COMPARISONS:
            marks = marks | {(_SCORES, name) for name in names}
        self.looked_up |= {name for kind, name in marks if kind == _CODES and called in _LOOKUPS and name in names}
        for each in flatten_tensors(result):
            if self._source(each) is not None:
                continue
            selected = called in _SELECTIONS and not each.is_floating_point()
            passed = {(_CODES if selected else kind, name) for kind, name in marks}
            if passed - self._marks.get(_address(each), set()):
                self._keep(self._marks, each, self._marks.get(_address(each), set()) | passed)

    def _keep(self, register: dict[int, Any], tensor: Tensor, value: Any) -> None:
        register[_address(tensor)] = value
        self._alive.append(tensor)


def _address(tensor: Tensor) -> int:
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage of their own
        address = 0
    return address or -id(tensor)

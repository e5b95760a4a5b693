"""A quantizer that its owner describes: where the table is and how to read codes and latents from a forward.

What a description reads is checked when it is first read. A wrong one is refused in its own words, with what the
forward took or returned; nothing is guessed in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from collapse_guard.kmeans import assign

from .base import CodebookView, Confidence, Metric, Observation, Reader
from .nested import given_tensor
from .refs import Knob, TensorRef

__all__ = ["GenericVQ"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericVQ:
    """Describes a quantizer that is not recognised by itself.

    Dotted names are relative to the quantizer. What is not given is reported as unsupported, never guessed.

    Attributes:
        table: name of the (K, D) parameter or buffer, for example `"embedding.weight"`.
        codes: output of the forward -> integer codes of any shape; -1 marks what is not a token. `None` says that this
            call assigned none.
        latents: positional arguments of the forward -> (..., D) what the table is compared with; by default the first
            tensor among them as it is, which must then have D as its last axis.
        ema_sum: name of the (K, D) moving average; given together with `ema_count` or not at all.
        ema_count: name of the (K,) moving average of the counts.
        commitment: name of the attribute that weighs the loss term which pulls the encoder towards the codes.
        metric: "l2" or "cosine".
        decodes_raw: with metric "cosine": the forward decodes the row as it is, its length included; else it decodes
            the normalised row, and rows are normalised when they are written.
        group: a name that the levels of one residual share, where this is a level of one and class names do not tell.
        level: which level it is, from 0, the coarsest; given together with `group` or not at all.
    """

    table: str
    codes: Callable[[Any], Tensor | None]
    latents: Callable[..., Tensor] | None = None
    ema_sum: str | None = None
    ema_count: str | None = None
    commitment: str | None = None
    metric: Metric = "l2"
    decodes_raw: bool = False
    group: str | None = None
    level: int | None = None

    def view(self, name: str, module: nn.Module) -> CodebookView:
        """Make the view of the described quantizer.

        Raises:
            ValueError: a name that the module does not have, a table that is not (K, D) with K of 2 or more, an EMA
                sum without its count, an unknown metric, or a group without a level from 0.
        """
        if self.metric not in ("l2", "cosine"):
            raise ValueError(f"{name}: expected metric 'l2' or 'cosine', got {self.metric!r}")
        if self.decodes_raw and self.metric == "l2":
            raise ValueError(
                f"{name}: decodes_raw is about metric 'cosine'; with 'l2' rows are always decoded as they are"
            )
        if (self.ema_sum is None) != (self.ema_count is None):
            raise ValueError(f"{name}: give both ema_sum and ema_count, or neither: a write must keep them consistent")
        if (self.group is None) != (self.level is None) or (self.level is not None and self.level < 0):
            raise ValueError(
                f"{name}: expected group and level, from 0, of a residual, or neither, got group={self.group!r} and "
                f"level={self.level!r}"
            )
        table = _ref(name, module, self.table)
        if table.whole().ndim != 2 or table.whole().shape[0] < 2:
            raise ValueError(
                f"{name}.{self.table}: expected a (K, D) table with K >= 2, got {tuple(table.whole().shape)}"
            )
        view = CodebookView(
            name=name,
            adapter="explicit",
            module=module,
            confidence=Confidence.DESCRIBED,
            table=table,
            readers={"forward": _reader(self, module, table)},
            metric=self.metric,
            decodes_raw=self.decodes_raw,
            ema_sum=None if self.ema_sum is None else _ref(name, module, self.ema_sum),
            ema_count=None if self.ema_count is None else _ref(name, module, self.ema_count),
            commitment=None if self.commitment is None else Knob(module, self.commitment),
            lacks={} if self.commitment else {"commitment": "GenericVQ(commitment=...) was not given"},
            group=self.group,
            level=self.level,
        )
        if view.commitment is not None:
            view.commitment.get()
        return view


def _reader(described: GenericVQ, module: nn.Module, table: TensorRef) -> Reader:
    """Return the reader of a described forward; what a description reads wrongly is said in its own words."""
    is_layout_known = described.latents is not None

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        nonlocal is_layout_known
        codes = _asked("codes", lambda: described.codes(output), f"the forward returned {outline(output)}")
        if codes is None:
            return None
        if described.latents is not None:
            latents = described.latents
            given = _asked("latents", lambda: latents(*args, **kwargs), f"the forward got {outline((*args, kwargs))}")
        else:
            given = given_tensor(type(module).forward, args, kwargs)
        if given is None:
            return None
        codes, given, rows = codes.detach().reshape(-1), given.detach(), table.get()
        if given.shape[-1:] != rows.shape[1:]:
            raise ValueError(
                f"expected latents of (..., {rows.shape[1]}), as wide as the table, got {tuple(given.shape)}: say how "
                f"they come from the forward's arguments, for channels at axis 1: latents=lambda x: x.movedim(1, -1)"
            )
        if not is_layout_known:
            is_layout_known = True
            _check_layout(given, codes, rows, described.metric)
        return Observation(codes, given.reshape(-1, given.shape[-1]))

    return read


def _asked(field: str, ask: Callable[[], Any], about: str) -> Tensor | None:
    """Return the tensor that a description finds.

    Raises:
        ValueError: it raised, or found something else; says what there was to choose from.
    """
    try:
        found = ask()
    except Exception as error:  # the owner's function may raise anything
        raise ValueError(f"GenericVQ({field}=...) raised {type(error).__name__}: {error}; {about}") from error
    if found is not None and not isinstance(found, Tensor):
        raise ValueError(f"GenericVQ({field}=...) found {outline(found)}, expected a tensor; {about}")
    return found


def outline(value: Any) -> str:
    """Say what a forward takes or returns, in one line.

    >>> import torch
    >>> outline((torch.zeros(2, 8), None, {"codes": torch.zeros(2, dtype=torch.int64)}))
    '(float32 (2, 8), None, {codes: int64 (2,)})'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {outline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(outline(item) for item in value) + ")"
    if hasattr(value, "__dataclass_fields__"):
        parts = (f"{name}={outline(getattr(value, name))}" for name in value.__dataclass_fields__)
        return f"{type(value).__name__}({', '.join(parts)})"
    return "None" if value is None else type(value).__name__


def _check_layout(given: Tensor, codes: Tensor, rows: Tensor, metric: Metric) -> None:
    """Refuse an input whose last axis is as wide as the table by chance, where the codes say that channels lie first.

    Raises:
        ValueError: the nearest rows of the input taken channels first are the codes, and taken channels last are not.
    """
    if given.ndim < 3 or given.shape[1] != rows.shape[1] or codes.numel() != given.numel() // rows.shape[1]:
        return
    is_token = codes >= 0
    last, first = (
        float(
            (assign(each.reshape(-1, rows.shape[1]), rows, metric, backend="torch") == codes)[is_token].float().mean()
        )
        for each in (given, given.movedim(1, -1))
    )
    if first > 0.5 > last and first > 2 * last:
        raise ValueError(
            f"the forward's input, {tuple(given.shape)}, has {rows.shape[1]} channels at axis 1 and by chance as many "
            f"at the last: {first:.0%} of the codes are nearest to it with the channels at axis 1, {last:.0%} with "
            "those at the last; give GenericVQ(latents=lambda x: x.movedim(1, -1))"
        )


def _ref(name: str, module: nn.Module, dotted: str) -> TensorRef:
    path, _, attribute = dotted.rpartition(".")
    try:
        owner = module.get_submodule(path)
        tensor = getattr(owner, attribute)
    except AttributeError as error:
        have = [key for key, _ in (*module.named_parameters(), *module.named_buffers())]
        raise ValueError(f"{name or 'the model'} has no tensor {dotted!r}; it has: {', '.join(have)}") from error
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}.{dotted}: expected a tensor, got {type(tensor).__name__}")
    return TensorRef(owner, attribute)

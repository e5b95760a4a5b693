"""A quantizer that its owner describes: where the table is and how to read codes and latents from a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .base import CodebookView, Confidence, Metric, Observation
from .recognition import flatten_tensors
from .refs import Knob, TensorRef

__all__ = ["GenericVQ"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericVQ:
    """Describes a quantizer that is not recognised by itself.

    Dotted names are relative to the quantizer. What is not given is reported as unsupported, never guessed.

    Attributes:
        table: name of the (K, D) parameter or buffer, for example `"embedding.weight"`.
        codes: output of the forward -> integer codes of any shape; -1 marks what is not a token.
        latents: positional arguments of the forward -> (..., D) what the table is compared with; by default the first
            tensor among them as it is, which must then have D as its last axis.
        ema_sum: name of the (K, D) moving average; given together with `ema_count` or not at all.
        ema_count: name of the (K,) moving average of the counts.
        commitment: name of the attribute that weighs the loss term which pulls the encoder towards the codes.
        metric: "l2" or "cosine".
        group: a name that the levels of one residual share, where this is a level of one and class names do not tell.
        level: which level it is, from 0, the coarsest; given together with `group` or not at all.
    """

    table: str
    codes: Callable[[Any], Tensor]
    latents: Callable[..., Tensor] | None = None
    ema_sum: str | None = None
    ema_count: str | None = None
    commitment: str | None = None
    metric: Metric = "l2"
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
            readers={"forward": self._read},
            metric=self.metric,
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

    def _read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given = self.latents(*args, **kwargs) if self.latents else next(flatten_tensors((args, kwargs)), None)
        if given is None:
            return None
        return Observation(self.codes(output).detach().reshape(-1), given.detach().reshape(-1, given.shape[-1]))


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

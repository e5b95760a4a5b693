"""Where things live on a module: tensors, tables computed from others, numbers and switches.

Nothing here keeps a tensor. Quantizers re-bind their tables, so each access asks the owner again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Derived", "Knob", "Quotient", "Switch", "TensorRef", "Threshold"]


def _is_shard(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor"  # by name: to import it takes long


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lives: `owner.attribute`, one head of it, possibly stored as (D, K).

    Attributes:
        owner: module that holds the parameter or buffer.
        attribute: its name on the owner.
        head: index into a leading axis of heads or levels; `None` where there is none.
        transposed: the tensor is stored as (D, K).
    """

    owner: nn.Module
    attribute: str
    head: int | None = None
    transposed: bool = False

    def whole(self) -> Tensor:
        """Return the tensor as its owner holds it now, all heads."""
        tensor = getattr(self.owner, self.attribute)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{type(self.owner).__name__}.{self.attribute} is no longer a tensor: {type(tensor)}")
        return tensor

    def get(self) -> Tensor:
        """Return a detached view of the part that belongs to this codebook; writing to it writes to the model."""
        return self.part_of(self.whole().detach())

    def part_of(self, whole: Tensor) -> Tensor:
        """Return the part of a tensor of the same form, such as an optimizer moment, that belongs to this codebook."""
        part = whole[self.head] if self.head is not None else whole
        return part.t() if self.transposed else part

    @property
    def is_parameter(self) -> bool:
        """Whether an optimizer may be moving this tensor."""
        return isinstance(self.whole(), nn.Parameter) and self.whole().requires_grad

    @property
    def is_sharded(self) -> bool:
        """Whether every rank holds a part of it only."""
        return _is_shard(self.whole())


@dataclass(frozen=True, slots=True)
class Quotient:
    """A table that is stored nowhere: a moving sum divided by its moving count.

    Attributes:
        sum: the (K, D) moving sum.
        count: the (K,) moving count.
        floor: the least count that is divided by.
        cache: attribute of the sum's owner that holds the quotient between updates, or `None`. What it holds is what
            the quantizer searches, up to date or not; whoever writes to sum or count must drop it.
    """

    sum: TensorRef
    count: TensorRef
    floor: float
    cache: str | None = None

    def get(self) -> Tensor:
        """Return the (K, D) quotient; writing to it writes nowhere that lasts."""
        held = getattr(self.sum.owner, self.cache) if self.cache is not None else None
        if isinstance(held, Tensor):
            return held.detach()
        return self.sum.get() / self.count.get().clamp(min=self.floor).unsqueeze(-1)

    @property
    def is_parameter(self) -> bool:
        """No optimizer moves it."""
        return False

    @property
    def is_sharded(self) -> bool:
        """Whether every rank holds a part of it only."""
        return self.sum.is_sharded


@dataclass(frozen=True, slots=True)
class Derived:
    """A table that is stored nowhere: computed by a part of the quantizer that an optimizer may move.

    Attributes:
        maker: the module that computes; in eval mode meanwhile, so that nothing random or averaged moves.
        make: returns the (K, D) table.
    """

    maker: nn.Module
    make: Callable[[], Tensor]

    @torch.no_grad()
    def get(self) -> Tensor:
        """Return the (K, D) table as it would be now; writing to it writes nowhere."""
        modes = [(module, module.training) for module in self.maker.modules()]
        try:
            self.maker.eval()
            return self.make().detach()
        finally:
            for module, mode in modes:
                module.training = mode

    @property
    def is_parameter(self) -> bool:
        """Whether an optimizer may be moving what computes it."""
        return any(parameter.requires_grad for parameter in self.maker.parameters())

    @property
    def is_sharded(self) -> bool:
        """Whether every rank holds a part only of what it is computed from."""
        return any(map(_is_shard, self.maker.parameters()))


@dataclass(frozen=True, slots=True)
class Knob:
    """A number that can be changed while training.

    Attributes:
        owner: the module, or the configuration that a module reads it from at each forward.
        attribute: the name of the number on it.
    """

    owner: Any
    attribute: str

    @property
    def place(self) -> tuple[int, str]:
        """Where the number is: the same for two knobs that change the same one."""
        return id(self.owner), self.attribute

    def get(self) -> float:
        """Return the number."""
        return float(getattr(self.owner, self.attribute))

    def set(self, value: float) -> None:
        """Set the number, keeping its kind: a tensor is filled in place, a Python number is replaced."""
        current = getattr(self.owner, self.attribute)
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.fill_(value)
        else:
            setattr(self.owner, self.attribute, float(value))

    def save(self) -> Any:
        """Return what is there as it is, its type included, for `restore`; of a tensor a copy."""
        current = getattr(self.owner, self.attribute)
        return current.detach().clone() if isinstance(current, Tensor) else current

    def restore(self, saved: Any) -> None:
        """Put back what `save` returned, a tensor in place."""
        current = getattr(self.owner, self.attribute)
        if isinstance(current, Tensor):
            with torch.no_grad():
                current.copy_(saved)
        else:
            setattr(self.owner, self.attribute, saved)


@dataclass(frozen=True, slots=True)
class Threshold(Knob):
    """Below which count a quantizer replaces a code by itself.

    The count is a moving average of the tokens that each code gets in a forward, so that the same number replaces
    nothing with large batches and all codes with small ones. What tells is the threshold as a share of what even use
    gives each code.

    Attributes:
        refill: attribute with the count that a replaced code is given; it is kept in proportion.
        is_share: the number is that share itself, of the mean count.
        adds_ranks: whether the counts are those of all ranks together.
    """

    refill: str | None = None
    is_share: bool = False
    adds_ranks: bool = True

    def share(self, K: int, tokens: float) -> float:
        """Return the threshold over the uniform share of so many tokens a forward, above 0, among K codes."""
        return self.get() if self.is_share else self.get() * K / tokens

    def set(self, value: float) -> None:
        """Set the threshold, above 0, and the count of replaced codes in proportion."""
        before = self.get()
        Knob.set(self, value)
        if self.refill is not None and before > 0:
            refill = Knob(self.owner, self.refill)
            refill.set(refill.get() * value / before)

    def save(self) -> Any:
        """Return threshold and count as they are, for `restore`."""
        return [knob.save() for knob in self._knobs()]

    def restore(self, saved: Any) -> None:
        """Put both back."""
        for knob, value in zip(self._knobs(), saved, strict=True):
            knob.restore(value)

    def _knobs(self) -> list[Knob]:
        names = (self.attribute, self.refill)
        return [Knob(self.owner, name) for name in names if name is not None]


@dataclass(frozen=True, slots=True)
class Switch:
    """The settings with which a quantizer's own replacement of dead codes is off.

    Attributes:
        owner: the module that reads them at each forward.
        off: attribute -> value with which nothing is replaced.
    """

    owner: nn.Module
    off: Mapping[str, Any]

    @property
    def is_on(self) -> bool:
        """Whether the quantizer would replace codes as things stand."""
        return all(getattr(self.owner, name) != value for name, value in self.off.items())

    def turn_off(self) -> dict[str, Any]:
        """Switch the replacement off and return the settings that were in force."""
        before = {name: getattr(self.owner, name) for name in self.off}
        self.restore(self.off)
        return before

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Put settings back."""
        for name, value in settings.items():
            setattr(self.owner, name, value)

"""What every part can do, whatever the thing is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

__all__ = ["InterventionError", "Part"]


class InterventionError(RuntimeError):
    """An applied intervention left something inconsistent; its transaction has been undone."""


class Part(ABC):
    """One thing that an intervention may change.

    Attributes:
        name: what it is called in a manifest; unique within an intervention.
    """

    name: str

    @property
    @abstractmethod
    def place(self) -> Hashable:
        """Where the thing is: equal for two parts that change the same one."""

    @abstractmethod
    def save(self) -> None:
        """Remember how it is now."""

    def check(self) -> None:  # noqa: B027 - most things cannot be left in a state that does not work
        """Refuse what could not work.

        Raises:
            InterventionError: what is wrong with what was left.
        """

    @abstractmethod
    def undo(self) -> None:
        """Put it back as it was saved, bit-equal and in place; once it is as it was, do nothing."""

    @abstractmethod
    def changes(self) -> list[dict[str, Any]]:
        """Return one record per tensor, number or switch that is not as it was saved, with before and after."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what was saved, as plain data and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier run saved."""

    def in_words(self) -> str:
        """Say what is other than its owner had it and in no checkpoint of the model; empty where nothing is."""
        return ""

    def standing(self) -> Any:
        """Return what it is now where no checkpoint of model or optimizer holds it, as plain data; else `None`."""
        return None

    def stand(self, value: Any) -> None:
        """Put into force again what `standing` returned in an earlier run."""
        raise NotImplementedError(f"{self.name} leaves nothing standing, got {value!r}")

"""What every action of a ladder is: a name and a validated set of plain values."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Action"]


class Action(BaseModel):
    """Base of the parameters of every action; subclass it, give it a name, and register it.

    Attributes:
        action: the name that a ladder uses, in snake_case.
        is_gradual: whether it goes on for long and changes little at a time, as training does: finer levels of a
            residual need not wait until it has been verified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    action: ClassVar[str]
    is_gradual: ClassVar[bool] = False

    def describe(self) -> str:
        """Return the action as one would call it: `reset_codes(scope=all, source=kmeans, refill=0.5)`."""
        aliases = {name: field.alias or name for name, field in type(self).model_fields.items()}
        return f"{self.action}({', '.join(f'{aliases[name]}={value}' for name, value in self)})"

    def plain(self) -> dict[str, Any]:
        """Return the parameters as a policy file writes them, which `model_validate` reads again."""
        return self.model_dump(mode="json", by_alias=True)

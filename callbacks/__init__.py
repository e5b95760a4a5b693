"""What you add to a Trainer. Each file translates one trainer's hooks into calls of a `Guard` and does no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .loggers import LoggerSink, scalars_of

if TYPE_CHECKING:
    from .lightning import CollapseGuard

__all__ = ["CollapseGuard", "LoggerSink", "scalars_of"]


def __getattr__(name: str) -> Any:
    """Return the callback, by now one of every Lightning that is loaded; a parser such as LightningCLI's asks late."""
    if name != "CollapseGuard":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    from . import lightning

    lightning.join_lightning()
    return lightning.CollapseGuard


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__

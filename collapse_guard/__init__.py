"""collapse_guard watches the codebooks of a vector-quantised model while it trains, and repairs them.

    guard = Guard("default")
    guard.attach(model, optimizer)
    ...
    optimizer.step()
    guard.step()

For Lightning, add `collapse_guard.callbacks.CollapseGuard` to the Trainer. Torch is loaded with the first name that
needs it, so that the command line, which mostly reads files, starts at once; lightning, faiss and scikit-learn are not
loaded here at all.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from collapse_guard.policies import Policy, PolicyError, Reading, load_policy

from .events import Event, Sink
from .sinks import ConsoleSink, JsonLinesSink, read_events

if TYPE_CHECKING:
    from .adapters import CodebookView, GenericVQ, NoQuantizerError, discover
    from .guard import Guard
    from .requests import Request

try:
    __version__ = version("collapse-guard")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

__all__ = [
    "CodebookView",
    "ConsoleSink",
    "Event",
    "GenericVQ",
    "Guard",
    "JsonLinesSink",
    "NoQuantizerError",
    "Policy",
    "PolicyError",
    "Reading",
    "Request",
    "Sink",
    "__version__",
    "discover",
    "load_policy",
    "read_events",
]

_WITH_TORCH = {
    "CodebookView": "adapters",
    "GenericVQ": "adapters",
    "Guard": "guard",
    "NoQuantizerError": "adapters",
    "Request": "requests",
    "discover": "adapters",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_WITH_TORCH[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """Name what is there, loaded or not."""
    return sorted({*globals(), *__all__})

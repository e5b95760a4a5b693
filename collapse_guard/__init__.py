"""collapse_guard watches the codebooks of a vector-quantised model while it trains, and repairs them.

    guard = Guard("default")
    guard.attach(model, optimizer)
    ...
    optimizer.step()
    guard.step()

For Lightning, add `collapse_guard.callbacks.CollapseGuard` to the Trainer. Importing this package loads torch, and
loads neither lightning, faiss nor scikit-learn.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from collapse_guard.policies import Policy, PolicyError, Reading, load_policy

from .adapters import CodebookView, GenericVQ, NoQuantizerError, discover
from .events import Event, Sink
from .guard import Guard
from .requests import Request
from .sinks import ConsoleSink, JsonLinesSink, read_events

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

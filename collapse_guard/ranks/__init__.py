"""Several ranks that train one model: what they tell each other so that their guards stay one guard."""

from __future__ import annotations

from .group import Alone, OtherRankError, PartedError, Ranks, join_ranks
from .keeping import bring_together
from .recorded import Pool, Recorded
from .roll import Part, Roll, Word, call_roll, say_farewell
from .tensors import fingerprint, share

__all__ = [
    "Alone",
    "OtherRankError",
    "Part",
    "PartedError",
    "Pool",
    "Ranks",
    "Recorded",
    "Roll",
    "Word",
    "bring_together",
    "call_roll",
    "fingerprint",
    "join_ranks",
    "say_farewell",
    "share",
]

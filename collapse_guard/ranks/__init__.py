"""Several ranks that train one model: what they tell each other so that their guards stay one guard."""

from __future__ import annotations

from .agreement import agree, join_or_part
from .group import Alone, OtherRankError, PartedError, Ranks, join_ranks
from .keeping import bring_together
from .recorded import Pool, Recorded
from .roll import Part, Purpose, Roll, Word, call_roll, meet
from .tensors import fingerprint, share

__all__ = [
    "Alone",
    "OtherRankError",
    "Part",
    "PartedError",
    "Pool",
    "Purpose",
    "Ranks",
    "Recorded",
    "Roll",
    "Word",
    "agree",
    "bring_together",
    "call_roll",
    "fingerprint",
    "join_or_part",
    "join_ranks",
    "meet",
    "share",
]

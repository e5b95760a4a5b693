"""The roll: what all ranks tell each other at one reading, in one exchange.

Each rank says where it stands, and of each codebook whether it could be read and what it adds up to. All of that is one
vector of float64 that is added up over the ranks: sums meet, and what is a rank's own lies in its own place, where the
others put zeros. Its length depends on the codebooks and the number of ranks alone, never on what was seen.

All else that ranks begin together begins with a roll, too: those that came for different things then find out, where
two different exchanges would wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

import numpy as np

from collapse_guard.adapters import CodebookView
from collapse_guard.sums import Sums

from .group import Alone

__all__ = ["Part", "Purpose", "Roll", "Word", "call_roll", "meet"]

_FAREWELL = timedelta(seconds=120)  # others may be between two readings
_WORD_NUMBERS = 7
_PART_NUMBERS = 6


class Purpose(Enum):
    """What a rank has come for."""

    READING = "takes a reading"
    TENDING = "tends an intervention"
    SAVING = "saves the state of all ranks"
    RESUMING = "loads a saved state"
    LEAVING = "has ended"


_PURPOSES = tuple(Purpose)


@dataclass(frozen=True, slots=True)
class Word:
    """Where a rank stands.

    Attributes:
        step: optimizer steps completed.
        story: a checksum of all decisions so far.
        loss: what the loop names as its loss. epoch: epochs begun.
        purpose: what it has come for.
    """

    step: int
    story: int = 0
    loss: float | None = None
    epoch: int | None = None
    purpose: Purpose = Purpose.READING


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank says of one codebook.

    Attributes:
        has_failed: its probe is out. is_started: its quantizer has made its start. is_frozen: its own updates are kept
            out.
        fingerprint: of the table, 48 bits; 0 where nobody asks.
        reshaped: 1 if positions were seen to be taken for features, 0 if not; `None` where that cannot be told.
        calls: updates of the quantizer that it counted; 0 where nobody knows how many.
    """

    has_failed: bool = False
    is_started: bool = True
    is_frozen: bool = False
    fingerprint: int = 0
    reshaped: int | None = None
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Roll:
    """What all ranks said, the same on each of them.

    Attributes:
        words: by rank. parts: by codebook, then by rank. sums: over all ranks, by codebook.
    """

    words: tuple[Word, ...]
    parts: Mapping[str, tuple[Part, ...]]
    sums: Mapping[str, Sums]

    @property
    def loss(self) -> float | None:
        """The mean of the ranks' losses; `None` where none has one."""
        losses = [word.loss for word in self.words if word.loss is not None]
        return sum(losses) / len(losses) if losses else None

    @property
    def epoch(self) -> int | None:
        """The first rank's epoch."""
        return self.words[0].epoch

    def reshaped(self, codebook: str) -> int | None:
        """Return 1 where any rank has seen positions taken for features, 0 where one has seen that they are not."""
        return max((part.reshaped for part in self.parts[codebook] if part.reshaped is not None), default=None)

    def calls(self, codebook: str) -> int:
        """Return how many updates of a codebook all ranks counted together."""
        return sum(part.calls for part in self.parts[codebook])

    def why_parted(self) -> str:
        """Say why the ranks cannot go on as one; empty where they can."""
        first = self.words[0]
        for rank, word in enumerate(self.words):
            if word.purpose is Purpose.LEAVING:
                return f"rank {rank} has ended after {word.step} steps"
            if word.purpose is not first.purpose:
                return (
                    f"rank 0 {first.purpose.value} after {first.step} steps and rank {rank} {word.purpose.value} after "
                    f"{word.step}: each rank must make the same calls of its guard, at the same steps"
                )
            if word.step != first.step:
                return (
                    f"rank 0 has called guard.step() {first.step} times and rank {rank} {word.step} times: each rank "
                    f"must call it after each optimizer step"
                )
            if word.story != first.story:
                return f"rank {rank} has decided otherwise than rank 0, of equal readings"
        return ""


def call_roll(
    ranks: Alone,
    word: Word,
    parts: Mapping[str, tuple[Part, Sums | None]],
    views: Mapping[str, CodebookView],
    patience: timedelta | None = None,
) -> Roll:
    """Tell and be told; all ranks call it at the same reading.

    Args:
        ranks: that train together.
        word: of this rank.
        parts: of this rank, by codebook; no sums where there are none to give.
        views: the codebooks, the same on all ranks.
        patience: how long to wait for the slowest rank, where it is not as long as for all else.
    """
    if ranks.size == 1:
        sums = {name: each for name, (_, each) in parts.items() if each is not None}
        return Roll((word,), {name: (part,) for name, (part, _) in parts.items()}, sums)
    sizes = {name: (view.K, view.D) for name, view in views.items()}
    mine = [_in_place(_numbers(word), ranks)]
    for name, (part, sums_of) in parts.items():
        mine.append(_in_place(_numbers_of(part), ranks))
        length = Sums.length(*sizes[name], ranks.size)
        mine.append(sums_of.pack(ranks.index, ranks.size) if sums_of is not None else np.zeros(length))
    split = np.split(ranks.add_up(np.concatenate(mine), patience), np.cumsum([len(each) for each in mine])[:-1])
    words = tuple(_word(numbers) for numbers in split[0].reshape(ranks.size, _WORD_NUMBERS))
    told, total = {}, {}
    for place, name in enumerate(parts):
        rows = split[1 + 2 * place].reshape(ranks.size, _PART_NUMBERS)
        told[name] = tuple(_part(row) for row in rows)
        total[name] = Sums.unpack(split[2 + 2 * place], *sizes[name], ranks.size)
    return Roll(words, told, total)


def meet(ranks: Alone, word: Word, views: Mapping[str, CodebookView]) -> Roll:
    """Call a roll at which nothing is read; who leaves waits for the others a while, and no longer.

    Args:
        ranks: that train together.
        word: of this rank.
        views: the codebooks, the same on all ranks.
    """
    patience = _FAREWELL if word.purpose is Purpose.LEAVING else None
    return call_roll(ranks, word, {name: (Part(), None) for name in views}, views, patience)


def _in_place(numbers: tuple[float, ...], ranks: Alone) -> np.ndarray:
    """Return the numbers of this rank in its place among zeros."""
    places = np.zeros((ranks.size, len(numbers)))
    places[ranks.index] = numbers
    return places.ravel()


def _numbers(word: Word) -> tuple[float, ...]:
    has_loss, has_epoch = word.loss is not None, word.epoch is not None
    purpose = _PURPOSES.index(word.purpose)
    return (word.step, word.story, purpose, has_loss, word.loss or 0.0, has_epoch, word.epoch or 0)


def _numbers_of(part: Part) -> tuple[float, ...]:
    reshaped = -1 if part.reshaped is None else part.reshaped
    return (part.has_failed, part.is_started, part.is_frozen, part.fingerprint, reshaped, part.calls)


def _part(numbers: np.ndarray) -> Part:
    has_failed, is_started, is_frozen, fingerprint, reshaped, calls = numbers.tolist()
    known = int(reshaped) if reshaped >= 0 else None
    return Part(bool(has_failed), bool(is_started), bool(is_frozen), int(fingerprint), known, int(calls))


def _word(numbers: np.ndarray) -> Word:
    step, story, purpose, has_loss, loss, has_epoch, epoch = numbers.tolist()
    return Word(
        int(step),
        int(story),
        loss if has_loss else None,
        int(epoch) if has_epoch else None,
        _PURPOSES[int(purpose)],
    )

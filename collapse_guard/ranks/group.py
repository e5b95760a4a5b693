"""The ranks of a run, and the few exchanges that their guards make. It knows no codebook and decides nothing.

The exchanges go over a process group of their own, gloo in host memory, whatever the model's own collectives use. What
a guard does wrong can therefore neither be taken for a gradient nor abort the run: an exchange that fails raises, and a
rank that leaves closes its connections, which the others see at once instead of waiting for it.

Every rank enters every exchange. Between two exchanges each rank computes by itself, from equal state; where that may
fail, `together` wraps it, and what fails on one rank then fails on all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Alone", "OtherRankError", "PartedError", "Ranks", "join_ranks"]

T = TypeVar("T")

_WORD = 1000  # bytes
_PATIENCE = timedelta(minutes=5)  # less than the ten after which NCCL aborts a run whose other ranks wait for this one


class PartedError(RuntimeError):
    """The ranks can no longer act as one: one has left, failed, or does something else."""


class OtherRankError(RuntimeError):
    """Something was given up on every rank because it failed on one; says on which, and how."""


class Alone:
    """A process that trains by itself: every exchange is with itself, and costs nothing.

    Attributes:
        index: of this rank, from 0. size: how many there are.
        parted: why the ranks no longer act as one; empty as long as they do.
    """

    index = 0
    size = 1
    parted = ""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the log and prints."""
        return self.index == 0

    def add_up(self, numbers: np.ndarray, patience: timedelta | None = None) -> np.ndarray:
        """Return the sum over the ranks of (n,) float64, the same on all of them bit for bit.

        Args:
            numbers: of this rank.
            patience: how long to wait for the slowest rank, where it is not as long as for all else.
        """
        return numbers

    def words(self, word: str) -> list[str]:
        """Return what every rank says, by rank, cut to 1000 bytes."""
        return [word]

    def gather(self, mine: Tensor) -> list[Tensor]:
        """Return the tensor of every rank, by rank; all have one shape and type and lie in host memory."""
        return [mine]

    def collect(self, mine: Tensor) -> list[Tensor]:
        """Return on the first rank the (n,) bytes of every rank, by rank, each of its own length; elsewhere nothing."""
        return [mine]

    def spread(self, tensor: Tensor) -> Tensor:
        """Return the first rank's tensor; all have one shape and type and lie in host memory."""
        return tensor

    def tell(self, text: str) -> str:
        """Return what the first rank says, of any length."""
        return text

    def word(self, word: str) -> str:
        """Return what one of the ranks says: the first that says anything, named where not all say the same."""
        said = self.words(word)
        if len(set(said)) == 1:
            return said[0]
        return next(f"rank {rank}: {each}" for rank, each in enumerate(said) if each)

    def together(self, work: Callable[[], T]) -> T:
        """Let each rank do its work, and raise on all where it raised on one.

        Args:
            work: local; it must not make any exchange.

        Raises:
            OtherRankError: it raised on some rank; says where and what.
        """
        return work()

    def leave(self, reason: str = "this rank has left") -> None:
        """Take part in nothing any more; the others notice at their next exchange."""
        self.parted = self.parted or reason


class Ranks(Alone):
    """Ranks that train together.

    Args:
        group: of gloo, for these exchanges alone; it is destroyed when the rank leaves.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Store the group."""
        self._group: dist.ProcessGroup | None = group
        self.index = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def _exchange(self, operation: Callable[[dist.ProcessGroup], T]) -> T:
        """Enter one collective; leave where it fails, so that nobody waits for this rank."""
        if self._group is None:
            raise PartedError(self.parted)
        try:
            return operation(self._group)
        except Exception as error:
            reason = f"an exchange with the other ranks failed ({_first_line(error)})"
        # Outside of the handler: its traceback would keep the group, and with it the connections, alive.
        self.leave(reason)
        raise PartedError(self.parted)

    def add_up(self, numbers: np.ndarray, patience: timedelta | None = None) -> np.ndarray:
        """See `Alone`."""
        total = torch.from_numpy(np.array(numbers, dtype=np.float64))

        def add(group: dist.ProcessGroup) -> None:
            work = dist.all_reduce(total, group=group, async_op=True)
            if work is not None:
                work.wait(patience) if patience is not None else work.wait()

        self._exchange(add)
        return total.numpy()

    def words(self, word: str) -> list[str]:
        """See `Alone`."""
        mine = torch.zeros(_WORD, dtype=torch.uint8)
        data = word.encode()[:_WORD]
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[:0]
        return [bytes(each.numpy()).rstrip(b"\0").decode(errors="ignore") for each in self.gather(mine)]

    def gather(self, mine: Tensor) -> list[Tensor]:
        """See `Alone`."""
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        self._exchange(lambda group: dist.all_gather(everyone, mine.contiguous(), group=group))
        return everyone

    def collect(self, mine: Tensor) -> list[Tensor]:
        """See `Alone`."""
        lengths = [int(each) for each in self.gather(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = mine
        everyone = [torch.empty_like(padded) for _ in lengths] if self.is_first else None
        self._exchange(lambda group: dist.gather(padded, everyone, dst=_first_of(group), group=group))
        return [each[:length] for each, length in zip(everyone or [], lengths, strict=False)]

    def spread(self, tensor: Tensor) -> Tensor:
        """See `Alone`."""
        tensor = tensor.clone()
        self._exchange(lambda group: dist.broadcast(tensor, src=_first_of(group), group=group))
        return tensor

    def tell(self, text: str) -> str:
        """See `Alone`."""
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        length = int(self.spread(torch.tensor([len(data)])))
        return bytes(self.spread(data if self.is_first else data.new_zeros(length)).numpy()).decode()

    def together(self, work: Callable[[], T]) -> T:
        """See `Alone`."""
        done: list[T] = []
        failure: Exception | None = None
        try:
            done.append(work())
        except Exception as error:
            failure = error
        word = f"{type(failure).__name__}: {failure}" if failure is not None else ""
        said = [(rank, each) for rank, each in enumerate(self.words(word)) if each]
        if said:
            where = (
                "all ranks" if len({each for _, each in said}) == 1 and len(said) == self.size else f"rank {said[0][0]}"
            )
            raise OtherRankError(f"{where}: {said[0][1]}") from failure
        return done[0]

    def leave(self, reason: str = "this rank has left") -> None:
        """See `Alone`."""
        super().leave(reason)
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(Exception):  # the run may have destroyed all groups already
                dist.destroy_process_group(group)


def _first_of(group: dist.ProcessGroup) -> int:
    """Return the number that the first rank of a group has among all: what torch before 2.6 asks for."""
    return dist.get_global_rank(group, 0)


def join_ranks(group: dist.ProcessGroup | None = None, *, patience: timedelta | None = None) -> Alone:
    """Return the ranks that this process trains with. Every one of them calls this, at the same point.

    Args:
        group: of the ranks that train copies, or shards, of one model; all ranks where not given.
        patience: how long an exchange waits for the slowest rank; 5 minutes where not given.

    Raises:
        RuntimeError: gloo is missing, or the ranks could not be reached.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return Alone()
    if not dist.is_gloo_available():
        raise RuntimeError("expected a torch with gloo, over which the guards of several ranks talk, got one without")
    members: Sequence[int] | None = None if group is None else dist.get_process_group_ranks(group)
    is_local = members is not None
    own = dist.new_group(members, timeout=patience or _PATIENCE, backend="gloo", use_local_synchronization=is_local)
    return Ranks(cast(dist.ProcessGroup, own))


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text.rpartition('] ')[2] or text}"[:200]

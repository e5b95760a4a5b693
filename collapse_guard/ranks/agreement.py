"""How ranks begin as one: each reaches the others, and finds out whether their guards are alike."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import ProcessGroup, get_rank

from .group import Alone, PartedError, join_ranks

__all__ = ["agree", "join_or_part"]


def join_or_part(group: ProcessGroup | None, patience: timedelta | None) -> Alone:
    """Return the ranks that train together; one that cannot reach the others has parted from them.

    Args:
        group: of these ranks, where they are not all. patience: how long to wait for the slowest; see `join_ranks`.
    """
    try:
        return join_ranks(group, patience=patience)
    except RuntimeError as error:
        alone = Alone()
        alone.index = get_rank()
        alone.leave(f"the ranks cannot talk to each other, and each of them must attach its guard: {error}")
        return alone


def agree(ranks: Alone, guard: str, total_steps: int | None) -> int | None:
    """Make sure that the guards of all ranks are alike, and return the planned length: the first rank's.

    Ranks that part over it agree on nothing; whoever asks `ranks.parted` next is told.

    Args:
        ranks: all enter.
        guard: what tells this rank's guard from another: policy, seed and codebooks, in a few words.
        total_steps: optimizer steps that this rank plans, if it knows.

    Raises:
        ValueError: they are not alike.
    """
    if ranks.size == 1:
        return total_steps
    try:
        said = ranks.words(f"{total_steps}|{guard}")
    except PartedError:
        return total_steps
    guards = [each.partition("|")[2] for each in said]
    for rank, other in enumerate(guards):
        if other != guards[0]:
            raise ValueError(
                f"expected the same guard and the same codebooks on every rank, got {guards[0]} on rank 0 and "
                f"{other} on rank {rank}; where only some ranks hold the quantizer, attach there with group=..."
            )
    planned = said[0].partition("|")[0]
    return None if planned == "None" else int(planned)

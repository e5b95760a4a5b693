"""The post of a guard: the model it is attached to, what it watches there, and the ranks that train it together.

Taking it puts hooks into the model, leaving it takes them out. Nothing is read and nothing decided here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from .adapters import CodebookView, GenericVQ, Unrecognised, discover
from .evaluation import Evaluations
from .events import Fault
from .execution import compiled_parts, refuse_replicas, unwrap_compiled
from .optimizer import inner_optimizer, why_out_of_reach
from .ranks import Alone, agree, join_or_part
from .watch import Watch

__all__ = ["Post", "nowhere", "take_post"]


@dataclass(frozen=True, kw_only=True)
class Post:
    """Where a guard stands.

    Attributes:
        model: that trains; of what `torch.compile` returned, the module inside.
        optimizers: all that may move a codebook; of one that another wraps, the inner one.
        ranks: that train it together.
        watch: its codebooks in training. evaluations: the same in evaluation.
        unrecognised: what looks like a quantizer and is not watched.
        total_steps: optimizer steps that the whole training is planned to take; `None` where that is not known.
        remarks: what is out of reach there.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    ranks: Alone
    watch: Watch
    evaluations: Evaluations
    unrecognised: Sequence[Unrecognised] = ()
    total_steps: int | None = None
    remarks: Sequence[str] = ()

    @property
    def views(self) -> list[CodebookView]:
        """The codebooks, in the order of the model's modules."""
        return [probe.view for probe in self.watch.probes.values()]

    def leave(self) -> None:
        """Take out all hooks, leave the quantizers to themselves and the other ranks to theirs."""
        self.evaluations.remove()
        self.watch.release()
        self.ranks.leave()


def nowhere(*, seed: int, fault: Fault) -> Post:
    """Return the post of a guard that is not attached: there is nothing to watch."""
    model, watch = nn.Module(), Watch((), seed=seed, fault=fault)
    evaluations = Evaluations(model, watch, fault, keeps_inputs=False)
    return Post(model=model, optimizers=(), ranks=Alone(), watch=watch, evaluations=evaluations)


def take_post(
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    adapters: Mapping[str, GenericVQ],
    guard: str,
    seed: int,
    total_steps: int | None,
    fault: Fault,
    group: ProcessGroup | None = None,
    patience: timedelta | None = None,
) -> Post:
    """Find the codebooks of a model and begin to record; every rank that trains it calls this.

    Args:
        model, optimizers: as the loop has them.
        adapters: module path -> description, for quantizers that are not recognised.
        guard: what tells the guard of this rank from others, in a few words; the codebooks are added.
        seed: of the probes' random streams.
        total_steps: that this rank plans; the first rank's counts.
        fault: where to say what goes wrong.
        group: of the ranks, where they are not all. patience: how long to wait for the slowest of them.

    Raises:
        NoQuantizerError: there is nothing to watch.
        ValueError: the model runs as copies, in `nn.DataParallel`; or the ranks' guards are not alike.
        RuntimeError: another guard watches this model.
    """
    refuse_replicas(model)
    whole, compiled = unwrap_compiled(model), compiled_parts(model)
    ranks = join_or_part(group, patience)
    try:
        found = discover(whole, adapters)
        watch = Watch(found.views, seed=seed, fault=fault, compiled=compiled, ranks=ranks)
        planned = agree(ranks, f"{guard}, {_in_short(found.views)}", total_steps)
        watch.install()
    except BaseException:
        ranks.leave()
        raise
    evaluations = Evaluations(whole, watch, fault, keeps_inputs=ranks.size == 1 and not compiled)
    evaluations.install()
    optimizers = (optimizers,) if isinstance(optimizers, Optimizer) else optimizers
    why = why_out_of_reach(optimizers)
    return Post(
        model=whole,
        optimizers=tuple(map(inner_optimizer, optimizers)),
        ranks=ranks,
        watch=watch,
        evaluations=evaluations,
        unrecognised=found.unrecognised,
        total_steps=planned,
        remarks=(f"{why}: what it remembers of a code outlives a reset",) if why else (),
    )


def _in_short(views: Sequence[CodebookView]) -> str:
    """Return a few words that differ where codebooks do."""
    books = sorted((view.name, view.K, view.D) for view in views)
    return f"{len(books)} codebooks ({zlib.crc32(repr(books).encode()):08x})"

"""The comparison: the same inputs in training and in evaluation mode, and what of the model makes the difference.

Each number is a perplexity that a replay showed; nothing is judged here. Exhibits are replayed one by one from the
state in which training left the quantizer, so that what an evaluation writes is seen apart from how it assigns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from collapse_guard.statistics import perplexity

from .exhibits import Exhibit
from .replay import GROUPS, Replayed, Replayer

__all__ = ["Comparison", "Facts", "compare"]

_ROUNDS = 8  # of the exhibits of an evaluation, to see where its writes lead


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was seen of one evaluation as it ran.

    Attributes:
        perplexity: of the evaluation as a whole. trained: of the latest tokens in training.
        table_moved: how far the codebook moved from the first to the last forward of the evaluation, relative to its
            size. weights_apart: how far the weights that evaluated are from those that train, likewise.
    """

    perplexity: float
    trained: float
    table_moved: float = 0.0
    weights_apart: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What replays showed, as perplexities unless said otherwise.

    Attributes:
        facts: of the evaluation as it ran.
        training, evaluating: inputs of training, in training and in evaluation mode.
        one_of: the same in evaluation mode, but for one group of modules in training mode, by group.
        all_but: the same in training mode, but for one group of modules in evaluation mode, by group.
        shown_training, shown_evaluating: inputs of the evaluation, in training and in evaluation mode; `None` where
            none were kept.
        resampled: share of tokens, inputs of training, that get another code when the quantizer trains once more.
        costlier: how many times as far latents are from their codes, E|z - e|^2, where the quantizer trains and draws
            codes at random; `None` where it draws none or does not show its latents, and where codes explain no more
            than the latents' mean in evaluation mode either.
        moved: how far tensors of the quantizer move in one forward in evaluation mode, relative to their size.
        begun, ended: inputs of the evaluation, again and again in evaluation mode: the first round and the last.
        shift: distance of the latents' means in training and in evaluation, both in evaluation mode, over their spread
            in training.
        modules: paths of the modules of each group that train.
        sees_before: whether what runs before the quantizer was replayed, too.
        latents: (n, D) finite, of inputs of training in evaluation mode, where they are shown.
    """

    facts: Facts
    training: float
    evaluating: float
    one_of: Mapping[str, float]
    all_but: Mapping[str, float]
    shown_training: float | None = None
    shown_evaluating: float | None = None
    resampled: float = 0.0
    costlier: float | None = None
    moved: Mapping[str, float] = field(default_factory=dict)
    begun: float | None = None
    ended: float | None = None
    shift: float | None = None
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sees_before: bool = True
    latents: Tensor | None = field(default=None, repr=False)

    def restored(self, group: str) -> float:
        """Return how much of the difference one group makes, in [0, 1], with inputs of training.

        The mean of what it brings back where it is the first to train and of what is lost where it is the last not to:
        the Shapley value of two groups (Shapley 1953), a fair share where they act together.
        """
        if group not in self.one_of:
            return 0.0
        alone = _share(self.one_of[group], self.evaluating, self.training)
        return (alone + 1 - _share(self.all_but[group], self.evaluating, self.training)) / 2


def compare(
    replayer: Replayer, training: Sequence[Exhibit], shown: Sequence[Exhibit], K: int, facts: Facts
) -> Comparison:
    """Replay what was kept.

    Args:
        replayer: of the model as it trains now.
        training: inputs of training, one or more. shown: inputs of the evaluation.
        K: number of codes.
        facts: of the evaluation as it ran.

    Raises:
        CannotTryError: the model could not be replayed.
    """

    def seen(train: Sequence[str]) -> float:
        return _perplexity(replayer.run(training, train).each, K)

    groups = replayer.groups(training)
    there = [group for group in GROUPS if groups[group]]
    evaluated = replayer.run(training)
    alone = {group: replayer.run(training, [group]) for group in there}
    resampled = _resampled(replayer, training) if "quantizer" in there else 0.0
    found = Comparison(
        facts=facts,
        training=seen(GROUPS),
        evaluating=_perplexity(evaluated.each, K),
        one_of={group: _perplexity(run.each, K) for group, run in alone.items()},
        all_but={group: seen([each for each in there if each != group]) for group in there},
        resampled=resampled,
        costlier=_costlier(alone["quantizer"], evaluated, replayer.table) if resampled else None,
        moved=evaluated.moved,
        modules=groups,
        sees_before=replayer.sees_before,
        latents=_latents(evaluated),
    )
    return found if not shown else _with_evaluation(found, replayer, shown, K)


def _with_evaluation(found: Comparison, replayer: Replayer, shown: Sequence[Exhibit], K: int) -> Comparison:
    """Add what the inputs of the evaluation show."""
    evaluated = replayer.run(shown)
    begun = ended = None
    if any(found.moved.values()):
        each = replayer.run(list(shown) * _ROUNDS, afresh=False).each
        begun, ended = _perplexity(each[: len(shown)], K), _perplexity(each[-len(shown) :], K)
    return replace(
        found,
        shown_training=_perplexity(replayer.run(shown, GROUPS).each, K),
        shown_evaluating=_perplexity(evaluated.each, K),
        begun=begun,
        ended=ended,
        shift=_shift(found.latents, _latents(evaluated)),
    )


def _resampled(replayer: Replayer, training: Sequence[Exhibit]) -> float:
    """Return the share of tokens of one input that another draw gives another code."""
    first, second = (replayer.run(training[-1:], ["quantizer"], seed=seed).each[0] for seed in (1, 2))
    return float((first != second).float().mean()) if len(first) == len(second) and len(first) else 0.0


def _costlier(trained: Replayed, evaluated: Replayed, table: Tensor) -> float | None:
    """Return by what factor codes are farther from the latents in one replay than in another; see `Comparison`."""
    one, other = (_error(each, table) for each in (trained, evaluated))
    return one / other if one is not None and other and other < 1 else None


def _error(run: Replayed, table: Tensor) -> float | None:
    """Return E|z - e|^2 / E|z - mean z|^2 of a replay; `None` where it shows no latents."""
    codes = torch.cat(list(run.each))
    if run.latents is None or len(codes) != len(run.latents):
        return None
    latents = run.latents[run.latents.isfinite().all(dim=-1)]
    apart = (run.latents - table[codes.to(table.device)].to(run.latents)).square().sum(dim=-1)
    spread = (latents - latents.mean(dim=0)).square().sum(dim=-1).mean()
    return float(apart[apart.isfinite()].mean() / spread)


def _shift(one: Tensor | None, other: Tensor | None) -> float | None:
    """Return the distance of two means over the spread about the first; `None` without latents."""
    if one is None or other is None:
        return None
    one, other = one.double(), other.double()
    spread = float((one - one.mean(dim=0)).square().sum(dim=-1).mean().sqrt())
    apart = float((one.mean(dim=0) - other.mean(dim=0)).norm())
    return apart / spread if spread > 0 else None


def _latents(run: Replayed) -> Tensor | None:
    """Return the finite latents of a run, (n, D); `None` where there are none."""
    if run.latents is None:
        return None
    found = run.latents[run.latents.isfinite().all(dim=-1)]
    return found if len(found) else None


def _perplexity(each: Sequence[Tensor], K: int) -> float:
    counts = torch.bincount(torch.cat(list(each)).cpu(), minlength=K).numpy()
    return perplexity(counts) if counts.sum() else 0.0


def _share(value: float, low: float, high: float) -> float:
    """Return where a value lies between two others, in [0, 1]; 0 where they do not differ.

    >>> _share(5.0, 0.0, 10.0), _share(12.0, 0.0, 10.0), _share(1.0, 3.0, 3.0)
    (0.5, 1.0, 0.0)
    """
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0

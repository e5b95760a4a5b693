"""Acting: one ACT decision as one transaction, on one codebook or on several levels of a residual, coarse first.

Levels that cannot take the action are refused, and those whose latents are no longer known once a coarser level was
written are postponed, as are those whose commitment weight is shared with one that has just changed it, while the
others go on. What raises puts all of them back.

Where several ranks train together each does the same from what all of them recorded; then they agree on what came of
it, and the first rank's codebook becomes that of all. What is refused on one rank is refused on all, and what raises on
one puts all of them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from collapse_guard.policies import Decision

from .adapters import CodebookView
from .entries import Entry
from .interventions import Intervention, Site, Transaction, find_intervention, tensors_of
from .ranks import Alone, OtherRankError, Recorded, share
from .residual import Levels

__all__ = ["Deed", "act_together", "share_codebook"]

_logger = logging.getLogger("collapse_guard")


@dataclass(slots=True)
class Deed:
    """What an ACT decision does to one codebook.

    Attributes:
        decision: about this codebook alone.
        entry: of the ledger; its `result` says what became of it.
        probe: the codebook, and what was recorded of it on all ranks.
        summary: what was done or why not. manifest: what was touched.
    """

    decision: Decision
    entry: Entry
    probe: Recorded
    summary: str = ""
    manifest: list[dict[str, Any]] = field(default_factory=list)

    @property
    def touches(self) -> frozenset[str]:
        """What the intervention may have changed; nothing where it was not applied."""
        return self.entry.intervention.touches if self.entry.intervention is not None else frozenset()


def act_together(
    deeds: Sequence[Deed],
    levels: Levels,
    optimizers: Sequence[Optimizer],
    site_of: Callable[[Deed], Site],
    ranks: Alone,
) -> None:
    """Carry out an ACT on its codebooks, coarse first; write on each deed what became of it.

    Args:
        deeds: coarse first.
        levels: of the residual that the codebooks belong to.
        optimizers: those that may hold moments of their rows.
        site_of: makes the site of an intervention.
        ranks: that act together.
    """
    written: Recorded | None = None
    weighed: list[Deed] = []
    where = ""
    try:
        for deed in deeds:
            where = deed.entry.codebook
            intervention, verdict, why = _considered(deed, levels, written, weighed, site_of, ranks)
            if verdict:
                deed.entry.result, deed.summary = verdict, why
                continue
            _apply(deed, intervention, optimizers, ranks)
            weighed += [deed] if "commitment" in intervention.touches else []
            if "codebook" in intervention.touches:
                written = written or deed.probe
                levels.refresh(deed.probe)
    except Exception as error:  # foreign tensors may fail in any way
        _put_back(deeds, error, where)
        if written is not None:
            levels.refresh(written)
        return
    applied = [deed.probe for deed in deeds if deed.entry.result == "applied"]
    for probe in applied:
        probe.window.restart()  # a reading never straddles an intervention
    if applied:
        levels.restart_below(applied[0])


def _considered(
    deed: Deed,
    levels: Levels,
    written: Recorded | None,
    weighed: Sequence[Deed],
    site_of: Callable[[Deed], Site],
    ranks: Alone,
) -> tuple[Intervention[Any], str, str]:
    """Return the intervention, and where it is not to be applied here and now the result, and why."""

    def consider() -> tuple[Intervention[Any], str, str]:
        intervention = find_intervention(deed.entry.action)(deed.decision.params, site_of(deed))
        writes, weighs = (part in intervention.touches for part in ("codebook", "commitment"))
        stale = levels.why_stale(deed.probe, written) if writes and written is not None else None
        if (wait := stale or (_why_shared(deed, weighed) if weighs else None)) is not None:
            return intervention, "postponed", wait
        reason = intervention.refusal()
        return (intervention, "", "") if reason is None else (intervention, "refused", reason)

    intervention, verdict, why = ranks.together(consider)
    if ranks.size > 1:
        verdict = next((each for each in ranks.words(verdict) if each), "")
        why = ranks.word(why)
    return intervention, verdict, why


def _why_shared(deed: Deed, weighed: Sequence[Deed]) -> str | None:
    """Return why a commitment weight is not changed once more: several levels may share one."""
    mine = deed.probe.view.commitment
    for other in weighed:
        theirs = other.probe.view.commitment
        if mine is not None and theirs is not None and mine.place == theirs.place:
            return f"its commitment weight is also that of {other.entry.codebook}, which has just changed it"
    return None


def _apply(deed: Deed, intervention: Intervention[Any], optimizers: Sequence[Optimizer], ranks: Alone) -> None:
    view = deed.probe.view
    transaction = ranks.together(lambda: Transaction(view, optimizers, intervention.touches))
    try:
        deed.summary = ranks.together(intervention.apply)
        if "codebook" in intervention.touches:
            share_codebook(view, optimizers, ranks)
        ranks.together(transaction.check)
    except BaseException:
        transaction.undo()
        raise
    deed.entry.transaction, deed.entry.intervention = transaction, intervention
    deed.manifest = transaction.manifest()


def share_codebook(view: CodebookView, optimizers: Sequence[Optimizer], ranks: Alone) -> None:
    """Make a codebook that was just written what it is on the first rank: table, EMA and optimizer rows.

    Raises:
        OtherRankError: it still differs on some rank.
    """
    if ranks.size > 1:
        share(ranks, tensors_of(view, optimizers))
        view.written()


def _put_back(deeds: Sequence[Deed], error: Exception, where: str) -> None:
    """Undo what was applied on any codebook, and refuse the action on all."""
    _logger.debug("intervention failed", exc_info=error)
    what = str(error) if isinstance(error, OtherRankError) else f"{type(error).__name__}: {error}"
    for deed in reversed(deeds):
        entry = deed.entry
        if entry.transaction is not None:
            entry.transaction.undo()
        entry.transaction = entry.intervention = None
        entry.result, deed.manifest = "refused", []
        whose = "" if entry.codebook == where else f"{where}: "
        deed.summary = f"{whose}{what}; everything was put back"

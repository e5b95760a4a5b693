"""Acting: one ACT decision as one transaction, on one codebook or on several levels of a residual, coarse first.

Levels that cannot take the action are refused, and those whose latents are no longer known once a coarser level was
written are postponed, as are those that would change what another one has just changed, such as a commitment weight
that several share, while the others go on. What raises puts all of them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from collapse_guard.policies import Decision

from .entries import Entry
from .interventions import Intervention, Site, Transaction, find_intervention
from .probe import Probe
from .residual import Levels

__all__ = ["Deed", "act_together"]

_logger = logging.getLogger("collapse_guard")


@dataclass(slots=True)
class Deed:
    """What an ACT decision does to one codebook.

    Attributes:
        decision: about this codebook alone.
        entry: of the ledger; its `result` says what became of it.
        probe: of the codebook.
        summary: what was done or why not. manifest: what was touched.
        sketch: codes before and after among the latents, where the codebook was written.
    """

    decision: Decision
    entry: Entry
    probe: Probe
    summary: str = ""
    manifest: list[dict[str, Any]] = field(default_factory=list)
    sketch: dict[str, Any] | None = None

    @property
    def touches(self) -> frozenset[str]:
        """What the intervention may have changed; nothing where it was not applied."""
        return self.entry.intervention.touches if self.entry.intervention is not None else frozenset()


def act_together(deeds: Sequence[Deed], levels: Levels, site_of: Callable[[Deed], Site]) -> None:
    """Carry out an ACT on its codebooks, coarse first; write on each deed what became of it.

    Args:
        deeds: coarse first.
        levels: of the residual that the codebooks belong to.
        site_of: makes the site of an intervention.
    """
    written: Probe | None = None
    applied: list[Deed] = []
    where = ""
    try:
        for deed in deeds:
            where = deed.entry.codebook
            intervention = find_intervention(deed.entry.action)(deed.decision.params, site_of(deed))
            writes = "codebook" in intervention.touches
            stale = levels.why_stale(deed.probe, written) if writes and written is not None else None
            if (wait := stale or _why_shared(intervention, applied)) is not None:
                deed.entry.result, deed.summary = "postponed", wait
            elif (reason := intervention.refusal()) is not None:
                deed.entry.result, deed.summary = "refused", reason
            else:
                _apply(deed, intervention)
                applied.append(deed)
                if writes:
                    written = written or deed.probe
                    levels.refresh(deed.probe)
    except Exception as error:  # foreign tensors may fail in any way
        _put_back(deeds, error, where)
        if written is not None:
            levels.refresh(written)
        return
    for deed in applied:
        deed.probe.window.restart()  # a reading never straddles an intervention
    if applied:
        levels.restart_below(applied[0].probe)


def _why_shared(intervention: Intervention[Any], applied: Sequence[Deed]) -> str | None:
    """Return why something is not changed once more: several levels may share a weight, and all share an optimizer."""
    if not applied:
        return None
    mine = {part.place: part.name for part in intervention.parts()}
    for other in applied:
        for part in other.entry.transaction.parts if other.entry.transaction is not None else ():
            if part.place in mine:
                what = mine[part.place].replace("_", " ")
                return f"its {what} is also that of {other.entry.codebook}, which has just changed it"
    return None


def _apply(deed: Deed, intervention: Intervention[Any]) -> None:
    transaction = Transaction(intervention.parts())
    try:
        deed.summary = intervention.apply()
        transaction.check()
    except BaseException:
        transaction.undo()
        raise
    deed.entry.transaction, deed.entry.intervention = transaction, intervention
    deed.entry.parts = [part for part in transaction.parts if part.standing() is not None]
    deed.manifest = transaction.manifest()


def _put_back(deeds: Sequence[Deed], error: Exception, where: str) -> None:
    """Undo what was applied on any codebook, and refuse the action on all."""
    _logger.debug("intervention failed", exc_info=error)
    what = f"{type(error).__name__}: {error}"
    for deed in reversed(deeds):
        entry = deed.entry
        if entry.transaction is not None:
            entry.transaction.undo()
        entry.let_go()
        entry.result, deed.manifest = "refused", []
        whose = "" if entry.codebook == where else f"{where}: "
        deed.summary = f"{whose}{what}; everything was put back"

"""Acting: one ACT decision as one transaction, on one codebook or on several levels of a residual, coarse first.

Levels that cannot take the action are refused, and those whose latents are no longer known once a coarser level was
written are postponed, as are those that would change what another one has just changed, such as a commitment weight
that several share, while the others go on. What raises puts all of them back. Heads of one quantizer are no levels, and
act one after another: what would go further with a number that another one has changed at this step, or whose change is
still on trial, is postponed, too.

Where several ranks train together each does the same from what all of them recorded; then they agree on what came of
it, and the first rank's codebook becomes that of all. What is refused on one rank is refused on all, and what raises on
one puts all of them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from collapse_guard.policies import Decision

from .adapters import CodebookView
from .entries import Entry
from .interventions import Intervention, Site, Transaction, find_intervention, tensors_of
from .ranks import Alone, OtherRankError, Recorded, share
from .residual import Levels
from .sketch import MOST_SKETCHED, sketch

__all__ = ["Deed", "act_together", "share_codebook"]

_SKETCHED_LATENTS = 1024
_logger = logging.getLogger("collapse_guard")


@dataclass(slots=True)
class Deed:
    """What an ACT decision does to one codebook.

    Attributes:
        decision: about this codebook alone.
        entry: of the ledger; its `result` says what became of it.
        probe: the codebook, and what was recorded of it on all ranks.
        summary: what was done or why not. manifest: what was touched.
        sketch: codes before and after among the latents, where the codebook was written.
    """

    decision: Decision
    entry: Entry
    probe: Recorded
    summary: str = ""
    manifest: list[dict[str, Any]] = field(default_factory=list)
    sketch: dict[str, Any] | None = None

    @property
    def touches(self) -> frozenset[str]:
        """What the intervention may have changed; nothing where it was not applied."""
        return self.entry.intervention.touches if self.entry.intervention is not None else frozenset()

    @property
    def fate_of_ids(self) -> str:
        """What became of token ids where the codebook was written, in words."""
        facts = self.entry.intervention.facts if self.entry.intervention is not None else {}
        if "ids_changed" not in facts:
            return "token ids are permuted"
        return f"{facts['ids_changed']} of {facts['ids_compared']} token ids changed"


def act_together(
    deeds: Sequence[Deed],
    levels: Levels,
    site_of: Callable[[Deed], Site],
    ranks: Alone | None = None,
    *,
    earlier: Sequence[Entry] = (),
) -> None:
    """Carry out an ACT on its codebooks, coarse first; write on each deed what became of it, with a picture.

    Args:
        deeds: coarse first.
        levels: of the residual that the codebooks belong to.
        site_of: makes the site of an intervention.
        ranks: that act together.
        earlier: what was done at this step before, or may still be undone, on other codebooks.
    """
    codes = [_codes_of(deed) for deed in deeds[:MOST_SKETCHED]]
    _act(deeds, levels, site_of, ranks if ranks is not None else Alone(), earlier)
    for deed, before in zip(deeds, codes, strict=False):
        if "codebook" in deed.touches and before is not None:
            deed.sketch = _sketched(deed, before)


def _act(
    deeds: Sequence[Deed],
    levels: Levels,
    site_of: Callable[[Deed], Site],
    ranks: Alone,
    earlier: Sequence[Entry],
) -> None:
    written: Recorded | None = None
    applied: list[Deed] = []
    where = ""
    try:
        for deed in deeds:
            where = deed.entry.codebook
            intervention, verdict, why = _considered(deed, levels, written, site_of, ranks, applied, earlier)
            if verdict:
                deed.entry.result, deed.summary = verdict, why
                continue
            _apply(deed, intervention, ranks)
            applied.append(deed)
            if "codebook" in intervention.touches:
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


def _considered(
    deed: Deed,
    levels: Levels,
    written: Recorded | None,
    site_of: Callable[[Deed], Site],
    ranks: Alone,
    applied: Sequence[Deed],
    earlier: Sequence[Entry],
) -> tuple[Intervention[Any], str, str]:
    """Return the intervention, and where it is not to be applied here and now the result, and why."""

    def consider() -> tuple[Intervention[Any], str, str]:
        intervention = find_intervention(deed.entry.action)(deed.decision.params, site_of(deed))
        writes = "codebook" in intervention.touches
        stale = levels.why_stale(deed.probe, written) if writes and written is not None else None
        before = [*(each.entry for each in applied), *(earlier if intervention.goes_further else ())]
        if (wait := stale or _why_shared(intervention, before, deed.decision.step)) is not None:
            return intervention, "postponed", wait
        reason = intervention.refusal()
        return (intervention, "", "") if reason is None else (intervention, "refused", reason)

    intervention, verdict, why = ranks.together(consider)
    if ranks.size > 1:
        verdict = next((each for each in ranks.words(verdict) if each), "")
        why = ranks.word(why)
    return intervention, verdict, why


def _why_shared(intervention: Intervention[Any], before: Sequence[Entry], step: int) -> str | None:
    """Return why something is not changed once more: several levels may share a weight, and all share an optimizer."""
    if not before:
        return None
    mine = {part.place: part.name for part in intervention.parts()}
    for other in before:
        for part in other.transaction.parts if other.transaction is not None else ():
            if part.place in mine:
                what = mine[part.place].replace("_", " ")
                when = (
                    "has just changed it" if other.step == step else f"changed it at step {other.step}, still on trial"
                )
                return f"its {what} is also that of {other.codebook}, which {when}"
    return None


def _apply(deed: Deed, intervention: Intervention[Any], ranks: Alone) -> None:
    transaction = ranks.together(lambda: Transaction(intervention.parts()))
    try:
        deed.summary = ranks.together(intervention.apply)
        if "codebook" in intervention.touches:
            share_codebook(deed.probe.view, intervention.site.optimizers, ranks)
        ranks.together(transaction.check)
    except BaseException:
        transaction.undo()
        raise
    deed.entry.transaction, deed.entry.intervention = transaction, intervention
    deed.entry.parts = [part for part in transaction.parts if part.standing() is not None]
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
        entry.let_go()
        entry.result, deed.manifest = "refused", []
        whose = "" if entry.codebook == where else f"{where}: "
        deed.summary = f"{whose}{what}; everything was put back"


def _codes_of(deed: Deed) -> Tensor | None:
    """Return a copy of the codes, for a picture; `None` where they cannot be read, which is no reason not to act."""
    try:
        return deed.probe.view.codebook().clone()
    except Exception as error:  # foreign tensors may fail in any way; what matters of it is told where it is acted on
        _logger.debug("no sketch of %s", deed.entry.codebook, exc_info=error)
        return None


def _sketched(deed: Deed, before: Tensor) -> dict[str, Any] | None:
    """Return the picture of what was done; `None` where none can be made, which changes nothing of what was done."""
    try:
        return sketch(deed.probe.window.latest(_SKETCHED_LATENTS), before, deed.probe.view.codebook())
    except Exception as error:  # a decomposition that does not converge, foreign tensors
        _logger.debug("no sketch of %s", deed.entry.codebook, exc_info=error)
        return None

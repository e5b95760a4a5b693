"""Judging: the policy decides on the readings of one step; they are told, and what it decided is carried out.

Where several ranks train together each decides by itself, from equal readings. Ranks that have not made the same
decisions find out at the next reading, by a checksum of them all.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from collapse_guard.policies import Decision, Health, PolicyEngine, Reading, taken_together

from .diagnosis import Clinic
from .events import EventLog
from .ledger import Ledger
from .ranks import Alone
from .requests import Requests
from .snapshots import Snapshots
from .watch import Watch

__all__ = ["Judge", "explain_alike"]

Explain: TypeAlias = "Callable[[Sequence[Reading]], Sequence[Reading]]"
"""Adds to readings of the levels of one residual, or of one codebook, their causes where somebody wants to know."""


class Judge:
    """Judges the readings of a run.

    Args:
        engine: of the policy. ledger: carries out what it decides. watch: the codebooks.
        snapshots: taken while every codebook is healthy.
        log: where to tell. requests: what only the loop can do. ranks: that decide alike.

    Attributes:
        story: a checksum of all decisions so far: the same on all ranks; 0 where a process trains by itself.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        ledger: Ledger,
        watch: Watch,
        snapshots: Snapshots,
        *,
        log: EventLog,
        requests: Requests,
        ranks: Alone,
    ) -> None:
        """Store the parts."""
        self._engine, self._ledger, self._watch = engine, ledger, watch
        self._log, self._requests, self._snapshots, self._ranks = log, requests, snapshots, ranks
        self.story = 0

    def judge(
        self, step: int, taken: Sequence[Reading], explain: Explain, uses: Mapping[str, list[int]] | None = None
    ) -> None:
        """Let the policy decide on readings of one step, tell them, and carry out what it decided.

        Args:
            step: of the readings. taken: the readings. explain: adds their causes.
            uses: histograms that are told beside them, by codebook.
        """
        asked_before = self._requests.open_count
        for bundle in taken_together(taken):
            together = explain(bundle)
            decisions = self._remembered(self._engine.observe_together(together))
            for reading in together:
                fields = reading.as_record()
                del fields["step"]
                if uses and reading.codebook in uses:
                    fields["uses"] = uses[reading.codebook]
                self._log.emit("reading", step, health=self._engine.health(reading.codebook).value, **fields)
            self._ledger.carry_out(decisions, self._engine, self._watch.probes)
        if taken and all(self._engine.health(name) is Health.HEALTHY for name in self._watch.readings):
            self._snapshots.consider(step)
        if self._requests.open_count > asked_before:
            self._ranks.words("")  # all ranks have come this far: what is asked for is asked for on all

    def _remembered(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Return decisions, and take them into the story."""
        decisions = list(decisions)
        for each in decisions if self._ranks.size > 1 else ():
            told = (
                f"{each.kind} {each.codebooks or each.codebook} {each.rule} {each.rung} {each.attempt} {each.outcome}"
            )
            self.story = zlib.crc32(told.encode(), self.story)
        return decisions


def explain_alike(readings: Sequence[Reading], clinic: Clinic, engine: PolicyEngine, ranks: Alone) -> Sequence[Reading]:
    """Return readings with their causes, where the policy wants to know them; on several ranks the first one's.

    Args:
        readings: of the levels of one residual, or of one codebook.
    """
    if ranks.size == 1 or not engine.wants_causes(readings):
        return clinic.explain(readings, engine.wants_causes)
    found = clinic.explain(readings, engine.wants_causes) if ranks.is_first else ()
    said = ranks.tell(json.dumps([each.as_dict() for each in found]))
    return [Reading.from_dict(each) for each in json.loads(said)]

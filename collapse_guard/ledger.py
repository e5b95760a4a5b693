"""The ledger: carries out what the policy decided, keeps what is needed to undo it, and tells what became of it."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.optim import Optimizer

from collapse_guard.policies import Decision, DecisionKind, Outcome, PolicyEngine, actions

from .events import EventLog
from .interventions import Intervention, Site, Transaction, find_intervention
from .probe import Probe
from .reasons import explain
from .requests import REQUESTABLE, Request, Requests

__all__ = ["Entry", "Ledger"]

_logger = logging.getLogger("collapse_guard")
_TOLD_AS = {
    DecisionKind.PENDING: "pending",
    DecisionKind.ALERT: "alert",
    DecisionKind.SKIP: "skip",
    DecisionKind.CLEARED: "cleared",
    DecisionKind.EXHAUSTED: "exhausted",
}
_RECORDED = ("attempt", "codebook", "rule", "rung", "action", "params", "step", "result", "undone")
_JUDGED_BY = ("step", "perplexity", "perplexity_ratio", "usage", "norm_ratio", "relative_error", "loss")


@dataclass(slots=True)
class Entry:
    """One intervention, from its application to its outcome.

    Attributes:
        attempt: its number in the run.
        codebook: name of the codebook.
        rule: name of the rule that decided on it.
        rung: its place on the rule's ladder, from 0.
        action: name of the action.
        params: the action's parameters as plain data.
        step: when it was applied.
        result: `refused`, `applied`, `recovered`, `failed` or `inconclusive`.
        undone: whether it was rolled back.
        transaction: the snapshot, while it may still be undone.
        intervention: the acting object, while it is in force.
    """

    attempt: int
    codebook: str
    rule: str
    rung: int
    action: str
    params: dict[str, Any]
    step: int
    result: str = "applied"
    undone: bool = False
    transaction: Transaction | None = field(default=None, repr=False)
    intervention: Intervention[Any] | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return what happened as plain data, without what is needed to undo it."""
        return {name: getattr(self, name) for name in _RECORDED}


class Ledger:
    """Carries out decisions.

    Args:
        log: where to tell.
        optimizers: those that may hold moments of codebook rows.
        seed: base of each attempt's seed.
        dead_below: share of the uniform share under which a code is dead.
        requests: where to ask for what only the training loop can do.
    """

    def __init__(
        self,
        log: EventLog,
        optimizers: Sequence[Optimizer],
        *,
        seed: int,
        dead_below: float = 0.1,
        requests: Requests | None = None,
    ) -> None:
        """Store the parts."""
        self._requests = requests if requests is not None else Requests(log)
        self.entries: list[Entry] = []
        self._log = log
        self._optimizers = optimizers
        self._seed = seed
        self._dead_below = dead_below
        self._decayed: set[str] = set()  # codebooks whose commitment weight is not what their owner set
        self._counts: dict[str, np.ndarray] = {}
        self._versions: dict[str, int] = {}

    def note(self, codebook: str, counts: np.ndarray) -> None:
        """Remember the (K,) counts of the latest reading; interventions ask them which codes are dead."""
        self._counts[codebook] = counts

    def carry_out(self, decisions: Iterable[Decision], engine: PolicyEngine, probes: Mapping[str, Probe]) -> None:
        """Act on each decision in order, report back, and carry out what follows from the report."""
        for decision in decisions:
            if decision.kind in _TOLD_AS:
                self._tell(decision)
            elif decision.codebook not in probes:  # of a resumed run whose model has changed
                reason = f"the model no longer has it; what was open there ends: {decision.reason}"
                self._log.emit("fault", decision.step, where=decision.codebook, reason=reason)
            elif decision.kind is DecisionKind.ACT:
                applied, reason = self._act(decision, probes[decision.codebook])
                self.carry_out(engine.report(decision, applied=applied, reason=reason), engine, probes)
            else:
                self._settle(decision, probes[decision.codebook])

    def tend(self, step: int, probes: Mapping[str, Probe]) -> None:
        """At a step boundary: hold frozen codebooks and let interventions in force keep themselves up to date."""
        for name, probe in probes.items():
            try:
                probe.view.hold()
            except Exception as error:
                probe.view.unfreeze()
                reason = f"holding its codebook raised {type(error).__name__}: {error}; it is no longer held"
                self._log.emit("fault", step, where=name, reason=reason)
        for entry in self.entries:
            if entry.intervention is None or not entry.intervention.stays:
                continue
            try:
                done = entry.intervention.tend(step - entry.step)
            except Exception as error:
                entry.intervention = None
                reason = f"tending {entry.action} raised {type(error).__name__}: {error}; it is no longer tended"
                self._log.emit("fault", step, where=entry.codebook, reason=reason)
                continue
            if done is not None:
                self._log.emit(
                    "tended", step, codebook=entry.codebook, action=entry.action, attempt=entry.attempt, summary=done
                )

    def _act(self, decision: Decision, probe: Probe) -> tuple[bool, str]:
        """Apply one intervention as a transaction; return whether it stands, and what was done or why not."""
        assert decision.action is not None
        assert decision.attempt is not None
        entry = Entry(
            decision.attempt,
            decision.codebook,
            decision.rule,
            decision.rung or 0,
            decision.action,
            decision.params.model_dump(mode="json") if decision.params is not None else {},
            decision.step,
        )
        site = self._site(entry, probe)
        self.entries.append(entry)
        manifest: list[dict[str, Any]] = []
        try:
            intervention = find_intervention(decision.action)(decision.params, site)
            if (reason := intervention.refusal()) is not None:
                entry.result = "refused"
            else:
                reason, manifest = self._apply(entry, intervention, probe)
        except Exception as error:  # foreign tensors may fail in any way; the transaction has put them back
            entry.result = "refused"
            reason = f"{type(error).__name__}: {error}; everything was put back"
            _logger.debug("intervention failed", exc_info=error)
        self._log.emit(
            "intervention",
            decision.step,
            codebook=decision.codebook,
            rule=decision.rule,
            attempt=entry.attempt,
            rung=entry.rung,
            action=entry.action,
            params=entry.params,
            result=entry.result,
            summary=reason,
            codebook_version=self._versions.get(entry.codebook, 0),
            manifest=manifest,
        )
        return entry.result == "applied", reason

    def _site(self, entry: Entry, probe: Probe) -> Site:
        counts = self._counts.get(entry.codebook, np.zeros(probe.view.K, dtype=np.int64))
        return Site(
            view=probe.view,
            window=probe.window,
            optimizers=self._optimizers,
            counts=counts,
            seed=self._seed * 1_000_003 + entry.attempt,
            dead_below=self._dead_below,
            ask=lambda kind: self._ask(kind, entry.step, entry.codebook, entry.rule, f"rung {entry.rung + 1}: {kind}"),
        )

    def _apply(self, entry: Entry, intervention: Intervention[Any], probe: Probe) -> tuple[str, list[dict[str, Any]]]:
        transaction = Transaction(probe.view, self._optimizers, intervention.touches)
        try:
            summary = intervention.apply()
            transaction.check()
        except BaseException:
            transaction.undo()
            raise
        entry.transaction, entry.intervention = transaction, intervention
        if "commitment" in intervention.touches:
            self._decayed.add(entry.codebook)
        if "codebook" in intervention.touches:
            self._versions[entry.codebook] = self._versions.get(entry.codebook, 0) + 1
            summary += "; token ids are permuted"
        probe.window.restart()  # a reading never straddles an intervention
        return summary, transaction.manifest()

    def _settle(self, decision: Decision, probe: Probe) -> None:
        """Write the outcome; undo the tries of this rung where the engine says so."""
        assert decision.outcome is not None
        entry = next((e for e in reversed(self.entries) if e.attempt == decision.attempt), None)
        undone: list[int] = []
        if entry is not None:
            if entry.result != "refused":
                entry.result = decision.outcome.value
            if decision.rollback:
                undone = self._undo(entry, probe, decision.step)
            elif decision.outcome is not Outcome.FAILED:
                for each in self._tries(entry):
                    each.transaction = None  # it stands; nothing will undo it any more
            if entry.intervention is not None and not entry.intervention.stays:
                entry.intervention = None
        self._log.emit(
            "outcome",
            decision.step,
            codebook=decision.codebook,
            rule=decision.rule,
            attempt=decision.attempt,
            rung=decision.rung,
            action=decision.action,
            outcome=decision.outcome.value,
            reason=decision.reason,
            undone=undone,
            before=decision.before and decision.before.excerpt(*_JUDGED_BY),
            after=decision.after and decision.after.excerpt(*_JUDGED_BY),
        )

    def _undo(self, last: Entry, probe: Probe, step: int) -> list[int]:
        """Put back every failed try of this rung, newest first; return their attempt numbers."""
        undone = []
        for entry in self._tries(last):
            if entry.transaction is None:
                continue
            try:
                entry.transaction.undo()
                entry.undone = True
                undone.append(entry.attempt)
            except Exception as error:
                reason = f"undoing {entry.action} raised {type(error).__name__}: {error}"
                self._log.emit("fault", step, where=entry.codebook, reason=reason)
            entry.transaction = entry.intervention = None
        probe.window.restart()
        return undone

    def in_force(self) -> list[dict[str, Any]]:
        """Return what stays in force, as plain data: codebook, action, and the step since when."""
        names = ("codebook", "action", "step", "attempt")
        standing = (entry for entry in self.entries if entry.intervention is not None and entry.intervention.stays)
        return [{name: getattr(entry, name) for name in names} for entry in standing]

    def _tries(self, entry: Entry) -> list[Entry]:
        """Return all tries of this entry's rung on its codebook, newest first."""
        rung = (entry.codebook, entry.rule, entry.rung)
        return [each for each in reversed(self.entries) if (each.codebook, each.rule, each.rung) == rung]

    def _tell(self, decision: Decision) -> None:
        fields: dict[str, Any] = {"codebook": decision.codebook, "rule": decision.rule, "severity": decision.severity}
        if decision.action is not None:
            fields["action"] = decision.action
        fields["reason"] = decision.reason
        if decision.then is not None:
            fields["then"] = decision.then
            if decision.then in REQUESTABLE:
                fields["reason"] += f"; the policy asks for {decision.then} now"
                self._ask(decision.then, decision.step, decision.codebook, decision.rule, decision.reason)
        if decision.kind is DecisionKind.ALERT and decision.before is not None:
            fields |= {"why": explain(decision.before), "reading": decision.before.as_dict()}
        self._log.emit(_TOLD_AS[decision.kind], decision.step, **fields)

    def _ask(self, kind: str, step: int, codebook: str, rule: str, reason: str) -> None:
        self._requests.ask(Request(kind=kind, step=step, codebook=codebook, rule=rule, reason=reason))

    def state_dict(self, probes: Mapping[str, Probe]) -> dict[str, Any]:
        """Return all entries with what is needed to undo and tend them, as plain data and tensors.

        A commitment weight is a number on a module, in no state dict of the model: the value in force is kept here.
        """
        entries = []
        for entry in self.entries:
            record = entry.as_dict()
            record["in_force"] = entry.intervention.state_dict() if entry.intervention is not None else None
            record["transaction"] = entry.transaction.state_dict() if entry.transaction is not None else None
            entries.append(record)
        counts = {name: values.tolist() for name, values in self._counts.items()}
        knobs = {name: probes[name].view.commitment for name in sorted(self._decayed) if name in probes}
        commitments = {name: knob.get() for name, knob in knobs.items() if knob is not None}
        return {"entries": entries, "versions": dict(self._versions), "counts": counts, "commitments": commitments}

    def load_state_dict(self, state: Mapping[str, Any], probes: Mapping[str, Probe], rules: Container[str]) -> None:
        """Rebuild the entries; interventions in force take hold again before the first forward.

        Args:
            state: from `state_dict`.
            probes: of this run, by codebook name.
            rules: names of the rules of this run's policy; what another rule had open ends inconclusive.
        """
        self._versions = dict(state["versions"])
        self._counts = {name: np.asarray(values, dtype=np.int64) for name, values in state["counts"].items()}
        self.entries = []
        for record in state["entries"]:
            entry = Entry(**{name: record[name] for name in _RECORDED})
            self.entries.append(entry)
            probe = probes.get(entry.codebook)
            if entry.result == "applied" and (probe is None or entry.rule not in rules):
                entry.result = "inconclusive"
                record = {**record, "transaction": None}
            if probe is None:
                continue
            if record["transaction"] is not None:
                entry.transaction = Transaction.restore(record["transaction"], probe.view, self._optimizers)
            if record["in_force"] is not None:
                params = actions()[entry.action].model_validate(entry.params)
                entry.intervention = find_intervention(entry.action)(params, self._site(entry, probe))
                entry.intervention.load_state_dict(record["in_force"])
                if entry.intervention.stays:
                    probe.view.freeze()
        for name, value in state["commitments"].items():
            knob = probes[name].view.commitment if name in probes else None
            if knob is not None:
                knob.set(value)
                self._decayed.add(name)

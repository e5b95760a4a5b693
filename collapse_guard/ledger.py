"""The ledger: carries out what the policy decided, keeps what is needed to undo it, and tells what became of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from collapse_guard.policies import Decision, DecisionKind, Outcome, PolicyEngine, Reading, actions

from .acting import Deed, act_together, share_codebook
from .entries import Entry, standing, tries_of
from .evaluation import Evaluations
from .events import EventLog
from .interventions import Intervention, Site, Transaction, find_intervention
from .probe import Probe
from .ranks import Alone, PartedError, Pool
from .requests import REQUESTABLE, Request, Requests
from .residual import Levels, members_of
from .snapshots import Snapshots
from .telling import TOLD_AS, fields_of_act, fields_of_outcome, fields_of_word

__all__ = ["Entry", "Ledger", "without_tables"]


class Ledger:
    """Carries out decisions.

    Args:
        log: where to tell.
        optimizers: those that may hold moments of codebook rows.
        seed: base of each attempt's seed.
        dead_below: share of the uniform share under which a code is dead.
        requests: where to ask for what only the training loop can do.
        progress: returns the share of the planned training that is done, or `None` where no plan is known.
        ranks: that act together.
        model: that trains, for interventions that look beyond a codebook.
        evaluations: what reads the codebooks in evaluation.
        snapshots: the last healthy snapshot of the run, for those that go back to it.
    """

    def __init__(
        self,
        log: EventLog,
        optimizers: Sequence[Optimizer],
        *,
        seed: int,
        dead_below: float = 0.1,
        requests: Requests | None = None,
        progress: Callable[[], float | None] = lambda: None,
        ranks: Alone | None = None,
        model: nn.Module | None = None,
        evaluations: Evaluations | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Store the parts."""
        self._ranks = ranks if ranks is not None else Alone()
        self._pool = Pool(self._ranks)
        self._progress = progress
        self._model, self._evaluations, self._snapshots = model, evaluations, snapshots
        self._health: Callable[[str], str] = lambda codebook: "unknown"
        self._requests = requests if requests is not None else Requests(log)
        self.entries: list[Entry] = []
        self._log = log
        self._optimizers = optimizers
        self._seed = seed
        self._dead_below = dead_below
        self._unheld: set[str] = set()  # codebooks that could not be held; said once
        self._counts: dict[str, np.ndarray] = {}
        self._versions: dict[str, int] = {}
        self.withdrawn: dict[str, int] = {}  # alerts that were none, by codebook

    def note(self, codebook: str, counts: np.ndarray) -> None:
        """Remember the (K,) counts of the latest reading; interventions ask them which codes are dead."""
        self._counts[codebook] = counts

    def version_of(self, codebook: str) -> int:
        """Return how often a codebook was written."""
        return self._versions.get(codebook, 0)

    def rewritten(self) -> dict[str, int]:
        """Return how often each codebook was written, and put back."""
        undone = [entry.codebook for entry in self.entries if entry.undone and entry.writes_rows]
        names = {*self._versions, *undone}
        return {name: self._versions.get(name, 0) + undone.count(name) for name in sorted(names)}

    def carry_out(self, decisions: Iterable[Decision], engine: PolicyEngine, probes: Mapping[str, Probe]) -> None:
        """Act on each decision in order, report back, and carry out what follows from the report."""
        self._health = lambda codebook: engine.health(codebook).value
        for decision in decisions:
            if decision.kind in TOLD_AS:
                self._tell(decision, probes)
                continue
            known = [part for part in decision.parts if part.codebook in probes]
            gone = {part.codebook for part in decision.parts} - {part.codebook for part in known}
            for codebook in sorted(gone):  # of a resumed run whose model has changed
                reason = f"the model no longer has it; what was open there ends: {decision.reason}"
                self._log.emit("fault", decision.step, where=codebook, reason=reason)
            if decision.kind is DecisionKind.ACT:
                deeds = self._act(decision, known, probes) if known else []
                answers = {deed.entry.codebook: deed for deed in deeds}
                refused = {name: deed.summary for name, deed in answers.items() if deed.entry.result == "refused"}
                postponed = {name: deed.summary for name, deed in answers.items() if deed.entry.result == "postponed"}
                refused |= dict.fromkeys(gone, "the model no longer has it")
                self.carry_out(engine.report_together(decision, refused=refused, postponed=postponed), engine, probes)
            elif known:
                undone = {part.codebook: self._settle(part, probes) for part in known}
                self._log.emit("outcome", decision.step, **fields_of_outcome(decision, undone, probes))

    def hold(self, step: int, probes: Mapping[str, Probe]) -> None:
        """At a step boundary, before anything is read: put back what an optimizer did to frozen codebooks."""
        for name, probe in probes.items():
            if name in self._unheld:
                continue
            try:
                probe.view.hold()
            except Exception as error:
                self._unheld.add(name)
                probe.view.unfreeze()
                reason = f"holding its codebook raised {type(error).__name__}: {error}; it is no longer held"
                self._log.emit("fault", step, where=name, reason=reason)

    @property
    def keeps_codebooks(self) -> bool:
        """Whether an intervention is open that keeps a codebook up from what is recorded."""
        return any(each.intervention is not None and "codebook" in each.intervention.touches for each in self.entries)

    def tend(self, step: int, probes: Mapping[str, Probe], *, after_reading: bool) -> None:
        """At a step boundary: let interventions keep themselves up to date, before or after anything is read."""
        for entry in self.entries:
            intervention = entry.intervention
            if intervention is None or not entry.is_due(step, after_reading=after_reading):
                continue
            before = intervention.writes
            try:
                done = self._tended(intervention, probes[entry.codebook], step - entry.step)
            except PartedError:  # what is in force stays
                raise
            except Exception as error:
                entry.release()
                reason = f"tending {entry.action} raised {type(error).__name__}: {error}; it is no longer tended"
                self._log.emit("fault", step, where=entry.codebook, reason=reason)
                continue
            if intervention.writes > before:
                self._versions[entry.codebook] = self.version_of(entry.codebook) + 1
            self._tell_tended(entry, step, done, is_over=intervention.is_over)
            if intervention.is_over:
                entry.intervention = None

    def wants_tending(self, step: int) -> bool:
        """Whether anything is due before this step is read: the same on all ranks."""
        return any(entry.is_due(step, after_reading=False) for entry in self.entries)

    def release(self) -> None:
        """Take out what interventions keep in force: the guard goes."""
        for entry in self.entries:
            entry.release()

    def _tended(self, intervention: Intervention[Any], probe: Probe, steps: int) -> str | None:
        """Tend one intervention on all ranks, and make its codebook the same on all of them."""
        self._pool.gather([probe])

        def tend() -> str | None:
            for hold in intervention.holds():
                hold.raise_failure()
            return intervention.tend(steps)

        try:
            return self._ranks.together(tend)
        finally:  # also where it raised on some of them
            if "codebook" in intervention.touches:
                share_codebook(probe.view, self._optimizers, self._ranks)

    def _tell_tended(self, entry: Entry, step: int, done: str | None, *, is_over: bool = False) -> None:
        if done is not None:
            facts = {"codebook": entry.codebook, "action": entry.action, "attempt": entry.attempt, "summary": done}
            facts |= entry.intervention.facts if entry.intervention is not None else {}
            self._log.emit("tended", step, **facts, is_over=is_over, codebook_version=self.version_of(entry.codebook))

    def _act(self, decision: Decision, parts: Sequence[Decision], probes: Mapping[str, Probe]) -> list[Deed]:
        """Apply one intervention as a transaction, on each of its codebooks; tell, and return what became of it."""
        try:
            recorded = self._pool.gather(members_of(probes[parts[0].codebook], probes))
            levels = Levels(recorded)
        except Exception as error:
            if self._ranks.size > 1:  # the others go on without this rank
                raise
            return self._refuse(decision, parts, probes, f"raised {type(error).__name__}: {error}; nothing was touched")
        by_name = {each.view.name: each for each in recorded}
        deeds = [Deed(part, Entry.of(part), by_name[part.codebook]) for part in parts]
        earlier = [each for each in self.entries if each.step == decision.step or each.transaction is not None]
        self.entries += [deed.entry for deed in deeds]
        asked: set[str] = set()

        def ask(kind: str) -> None:  # once, however many levels do
            if kind not in asked:
                asked.add(kind)
                reason = f"rung {(decision.rung or 0) + 1}: {kind}"
                self._ask(kind, decision.step, decision.codebook, decision.rule, reason)

        act_together(
            deeds,
            levels,
            lambda deed: self._site(deed.entry, probes, ask, deed.decision.before),
            self._ranks,
            earlier=[each for each in earlier if each.codebook not in by_name],
        )
        for deed in deeds:
            if "codebook" in deed.touches:
                self._versions[deed.entry.codebook] = self.version_of(deed.entry.codebook) + 1
                deed.summary += f"; {deed.fate_of_ids}"
        if any("model" in deed.touches for deed in deeds):
            _forget_all(probes)
        self._log.emit("intervention", decision.step, **fields_of_act(decision, deeds, self._versions, probes))
        return deeds

    def _refuse(
        self, decision: Decision, parts: Sequence[Decision], probes: Mapping[str, Probe], why: str
    ) -> list[Deed]:
        """Refuse an intervention on each of its codebooks: what was asked for must have an answer."""
        deeds = [Deed(part, Entry.of(part), probes[part.codebook], summary=why) for part in parts]
        for deed in deeds:
            deed.entry.result = "refused"
            self.entries.append(deed.entry)
        self._log.emit("intervention", decision.step, **fields_of_act(decision, deeds, self._versions, probes))
        return deeds

    def _site(
        self,
        entry: Entry,
        probes: Mapping[str, Probe],
        ask: Callable[[str], None],
        reading: Reading | None = None,
    ) -> Site:
        probe = self._pool.of(probes[entry.codebook])
        counts = self._counts.get(entry.codebook, np.zeros(probe.view.K, dtype=np.int64))
        return Site(
            view=probe.view,
            window=probe.window,
            optimizers=self._optimizers,
            counts=counts,
            seed=self._seed * 1_000_003 + entry.attempt,
            dead_below=self._dead_below,
            ask=ask,
            progress=self._progress,
            model=self._model,
            evaluations=self._evaluations,
            views=[each.view for each in probes.values()],
            health=lambda: self._health(entry.codebook),
            standing=lambda: [
                each.intervention
                for each in self.entries
                if each is not entry and each.is_in_force and each.intervention is not None
            ],
            ranks=self._ranks.size,
            snapshots=self._snapshots,
            encoder=lambda: without_tables(probes[entry.codebook].feeds, probes),
            reading=reading,
            mix=lambda: probes[entry.codebook].mix or None,
        )

    def _settle(self, decision: Decision, probes: Mapping[str, Probe]) -> list[int]:
        """Note the outcome on one codebook; undo the tries of this rung where the engine says so, and return those."""
        assert decision.outcome is not None
        whose = (decision.attempt, decision.codebook)
        entry = next((each for each in reversed(self.entries) if (each.attempt, each.codebook) == whose), None)
        if entry is None:
            return []
        undone: list[int] = []
        if entry.intervention is not None and not entry.intervention.stays:
            self._tell_tended(entry, decision.step, entry.intervention.ending())
        if entry.result != "refused":
            entry.result = decision.outcome.value
        if decision.rollback:
            undone = self._undo(entry, probes, decision.step)
        elif decision.kept or decision.outcome is not Outcome.FAILED:
            for each in tries_of(entry, self.entries):
                each.transaction = None  # it stands; nothing will undo it any more
        if entry.intervention is not None and not entry.intervention.stays:
            entry.intervention = None
        return undone

    def _undo(self, last: Entry, probes: Mapping[str, Probe], step: int) -> list[int]:
        """Put back every failed try of this rung, newest first; return their attempt numbers."""
        undone = []
        probe = probes[last.codebook]
        levels = Levels.of(probe, probes)
        touches = find_intervention(last.action).touches
        for entry in tries_of(last, self.entries):
            if entry.transaction is None:
                continue
            if self._is_built_on(entry, touches):
                entry.transaction = None  # what came after it would be undone, too: it stands
                continue
            try:
                self._ranks.together(entry.transaction.undo)
                if entry.transaction.parts:  # one that only told, or asked, leaves nothing to be undone
                    entry.undone = True
                    undone.append(entry.attempt)
            except Exception as error:
                reason = f"undoing {entry.action} raised {type(error).__name__}: {error}"
                self._log.emit("fault", step, where=entry.codebook, reason=reason)
                if "codebook" in touches:  # on some ranks it was undone
                    share_codebook(probe.view, self._optimizers, self._ranks)
            entry.let_go()
        if "codebook" in touches and undone:
            levels.refresh(probe)
        if "model" in touches and undone:
            _forget_all(probes)
        probe.window.restart()
        levels.restart_below(probe)
        return undone

    def _is_built_on(self, entry: Entry, touches: frozenset[str]) -> bool:
        """Whether another rung has changed the same things of the codebook since, and that stands."""
        later = takewhile(lambda each: each is not entry, reversed(self.entries))
        return any(
            each.codebook == entry.codebook
            and (each.rule, each.rung) != (entry.rule, entry.rung)
            and each.result not in ("refused", "postponed")
            and not each.undone
            and touches & find_intervention(each.action).touches
            for each in later
        )

    def in_force(self) -> list[dict[str, Any]]:
        """Return what stays in force, as plain data; see `standing`."""
        return standing(self.entries)

    def _tell(self, decision: Decision, probes: Mapping[str, Probe]) -> None:
        if decision.kind is DecisionKind.WITHDRAWN:
            for name in decision.codebooks:
                self.withdrawn[name] = self.withdrawn.get(name, 0) + 1
        self._log.emit(TOLD_AS[decision.kind], decision.step, **fields_of_word(decision, probes))
        if decision.then is not None and decision.then in REQUESTABLE:
            self._ask(decision.then, decision.step, decision.codebook, decision.rule, decision.reason)

    def _ask(self, kind: str, step: int, codebook: str, rule: str, reason: str) -> None:
        self._requests.ask(Request(kind=kind, step=step, codebook=codebook, rule=rule, reason=reason))

    def state_dict(self, probes: Mapping[str, Probe]) -> dict[str, Any]:
        """Return all entries with what is needed to undo and tend them, as plain data and tensors.

        A commitment weight is a number on a module, in no state dict of the model: such values in force are kept here,
        and the names of the codebooks whose own replacement of dead codes is switched off.
        """
        entries = []
        for entry in self.entries:
            record = entry.as_dict()
            record["in_force"] = entry.intervention.state_dict() if entry.intervention is not None else None
            record["transaction"] = entry.transaction.state_dict() if entry.transaction is not None else None
            record["values"] = entry.values()
            entries.append(record)
        counts = {name: values.tolist() for name, values in self._counts.items()}
        tallies = {"versions": dict(self._versions), "withdrawn": dict(self.withdrawn), "counts": counts}
        taken_over = sorted(name for name, probe in probes.items() if probe.view.is_taken_over)
        return {"entries": entries, **tallies, "taken_over": taken_over}

    def load_state_dict(self, state: Mapping[str, Any], probes: Mapping[str, Probe], rules: Container[str]) -> None:
        """Rebuild the entries; interventions in force take hold again before the first forward.

        Args:
            state: from `state_dict`.
            probes: of this run, by codebook name.
            rules: names of the rules of this run's policy; what another rule had open ends inconclusive.
        """
        self._versions = dict(state["versions"])
        self.withdrawn = dict(state.get("withdrawn", {}))
        self._counts = {name: np.asarray(values, dtype=np.int64) for name, values in state["counts"].items()}
        self.entries = []
        for record in state["entries"]:
            entry = Entry.from_dict(record)
            self.entries.append(entry)
            probe = probes.get(entry.codebook)
            if entry.result == "applied" and (probe is None or entry.rule not in rules):
                entry.result = "inconclusive"
                record = {**record, "transaction": None}
            if probe is not None:
                self._reinstate(entry, record, probes)
        for name in state.get("taken_over", ()):
            if name in probes:
                probes[name].view.take_over()

    def _reinstate(self, entry: Entry, record: Mapping[str, Any], probes: Mapping[str, Probe]) -> None:
        """Take up again what an entry left in force, and what may still be undone."""
        snapshot, in_force, values = (record[name] for name in ("transaction", "in_force", "values"))
        if snapshot is None and in_force is None and not values:
            return
        params = actions()[entry.action].model_validate(entry.params)
        intervention = find_intervention(entry.action)(params, self._site(entry, probes, _asked_already))
        parts = intervention.parts()
        if snapshot is not None:
            entry.transaction = Transaction.restore(snapshot, parts)
        entry.parts = [part for part in parts if part.name in values]
        for part in entry.parts:
            if snapshot is None:
                part.save()  # as this run's owner has it
            part.stand(values[part.name])
        if in_force is not None:
            entry.intervention = intervention
            intervention.load_state_dict(in_force)


def _forget_all(probes: Mapping[str, Probe]) -> None:
    """Begin all windows anew, their latents forgotten: another model made them."""
    for probe in probes.values():
        probe.window.restart()
        probe.window.forget()


def without_tables(parameters: Iterable[nn.Parameter], probes: Mapping[str, Probe]) -> list[nn.Parameter]:
    """Return the parameters that are no codebook: a coarser level's may lie behind the input of a finer one."""
    tables = {id(ref.whole()) for probe in probes.values() for ref in probe.view.refs().values()}
    return [each for each in parameters if id(each) not in tables]


def _asked_already(kind: str) -> None:
    """What a restored intervention asked of the training loop, it asked for when it was applied."""

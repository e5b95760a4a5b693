"""The shift: a guard's work at its post, one optimizer step after another.

At each step boundary it holds what is frozen, tends what is in force, and where a reading is due takes it and lets it
be judged. All that it knows is in its parts, which a resumed run goes on from. It may raise: to contain that is for the
guard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from collapse_guard.policies import Policy, PolicyEngine, Reading

from .aftermath import Aftermath
from .diagnosis import Clinic
from .events import Fault
from .judging import Judge, explain_alike
from .ledger import Ledger
from .measure import Loss, number_of
from .pace import Pace
from .post import Post
from .ranks import OtherRankError, PartedError, Purpose, Word
from .reports import describe_resume, describe_without_epoch, describe_without_loss
from .requests import Requests
from .sinks import Journal
from .sketch import is_told, uses_of
from .snapshots import wanted_snapshots

__all__ = ["Shift"]

_STATE_SCHEMA = 1


class Shift:
    """What is done for one run, from its first step or from where a saved one stood.

    Args:
        post: where. policy: under which. log: where to tell.
        seed: base of the seeds of interventions.
        progress: returns the share of the planned training that is done, or `None` where no plan is known.
        readings_taken: how many readings of each codebook were taken, by name; it goes on counting.
        fault: where to say what went wrong.

    Attributes:
        step: optimizer steps completed.
        engine: decides. ledger: acts. requests: what is asked of the loop.
    """

    def __init__(
        self,
        post: Post,
        policy: Policy,
        log: Journal,
        *,
        seed: int,
        progress: Callable[[], float | None],
        readings_taken: Counter[str],
        fault: Fault,
    ) -> None:
        """Make the parts; nothing is read before `begin`."""
        self._post, self._watch, self._evaluations, self._ranks = post, post.watch, post.evaluations, post.ranks
        self._policy, self._log, self._fault, self._readings_taken = policy, log, fault, readings_taken
        self._without_epoch = describe_without_epoch(policy)  # what a loop that does not say its epoch makes of it
        self._without_loss, self._first_epoch = describe_without_loss(policy), 0
        self.step = self._read_at = 0
        self._pace = Pace()
        self._clinic = Clinic(fault)
        self._snapshots = wanted_snapshots(policy, post.model, post.optimizers)
        self.engine = PolicyEngine(policy)
        self.requests = Requests(log)
        self.ledger = Ledger(
            log,
            post.optimizers,
            seed=seed,
            dead_below=policy.sample.dead_below,
            requests=self.requests,
            progress=progress,
            model=post.model,
            evaluations=post.evaluations,
            snapshots=self._snapshots,
            ranks=post.ranks,
        )
        self._aftermath = Aftermath(post.optimizers, self.ledger, post.watch, ranks=post.ranks, fault=fault)
        self._judge = Judge(
            self.engine, self.ledger, post.watch, self._snapshots, log=log, requests=self.requests, ranks=post.ranks
        )

    def begin(self) -> None:
        """Take the first marks, before the first step."""
        self._watch.rest(self._pace.rests)
        self._clinic.begin(self._watch.probes, self._post.model)

    # One step

    def take_step(self, loss: Loss, epoch: int | None) -> None:
        """Do what is to be done after one optimizer step.

        Args:
            loss: as the loop names it. epoch: epochs begun, from 0.

        Raises:
            PartedError: the ranks cannot go on as one.
        """
        self.step += 1
        self.requests.remind(self.step)
        self.ledger.hold(self.step, self._watch.probes)
        if not self._ranks.parted:
            self._tend_and_read(loss, epoch)

    def _tend_and_read(self, loss: Loss, epoch: int | None) -> None:
        if self._ranks.size > 1 and self.ledger.wants_tending(self.step):
            self._watch.meet(self._word(Purpose.TENDING))
        self.ledger.tend(self.step, self._watch.probes, after_reading=False)
        self._watch.notice_silence()
        if self._left() <= 0:
            self._read(self._number_of(loss), epoch)
            self.ledger.tend(self.step, self._watch.probes, after_reading=True)
        self._arm()
        is_calm = not (self.engine.is_suspect or self.ledger.keeps_codebooks)
        self._watch.rest(self._pace.turn(max(self._left() - 1, 0), is_calm=is_calm))

    def _left(self) -> int:
        """Return how many steps it is until the next reading; none or fewer where it is due."""
        sample = self._policy.sample
        every = sample.when_suspect_steps if self.engine.is_suspect else sample.every_steps
        return self._read_at + every - self.step

    def _arm(self) -> None:
        """Have the gradients of the coming step felt, where a reading is due after it."""
        if self._left() <= 1:
            self._clinic.arm(self.step + 1, is_suspect=self.engine.is_suspect)

    def _read(self, loss: float | None, epoch: int | None) -> None:
        self._read_at = self.step
        sample = self._policy.sample
        if epoch is None and self._without_epoch:
            self._fault("epoch", self._without_epoch)
        enough = sample.min_tokens if self.step >= self._policy.warmup_steps else 0
        word = Word(self.step, self._judge.story, loss, epoch)
        taken: list[Reading] = []
        uses: dict[str, list[int]] = {}
        ratio = self._aftermath.moment_ratio(self.step)
        written, rewrites = self.ledger.rewritten(), self._rewrites()

        def known(name: str) -> dict[str, Any]:
            stands = self._watch.probes[name].view.stands
            return {"rewrites": rewrites[name], "frozen": int(stands), "moment_ratio": ratio}

        readings = self._watch.read(word, dead_below=sample.dead_below, min_tokens=enough, known=known)
        for reading, counts in readings:
            if is_told(self._readings_taken[reading.codebook]):
                uses[reading.codebook] = uses_of(counts)
            self._readings_taken[reading.codebook] += 1
            self.ledger.note(reading.codebook, counts)
            self._clinic.note(
                reading, counts, is_suspect=self.engine.is_suspect, version=written.get(reading.codebook, 0)
            )
            taken.append(reading)
        self._miss_loss(taken)
        has_all = not self._watch.misses(self.step)
        self._pace.note(taken, every=sample.every_steps, min_tokens=enough, has_all=has_all)
        clinic, engine, ranks = self._clinic, self.engine, self._ranks
        self._judge.judge(self.step, taken, lambda bundle: explain_alike(bundle, clinic, engine, ranks), uses)

    def _miss_loss(self, taken: Sequence[Reading]) -> None:
        """Say so where readings have no loss, not before a metric of a whole epoch would have been logged."""
        if not (self._without_loss and taken and taken[0].loss is None):
            return
        now = taken[0].epoch
        if self._readings_taken[taken[0].codebook] == 1:
            self._first_epoch = now or 0
        elif now is None or now > self._first_epoch:
            self._fault("loss", self._without_loss)

    def _rewrites(self) -> dict[str, int]:
        """Return how often each codebook was written, of the levels of a residual the one that was written most."""
        most: dict[str, int] = {}
        owners = {name: probe.view.group or name for name, probe in self._watch.probes.items()}
        for name, owner in owners.items():
            most[owner] = max(self.ledger.version_of(name), most.get(owner, 0))
        return {name: most[owner] for name, owner in owners.items()}

    def _number_of(self, loss: Loss) -> float | None:
        """Return the loss as a number; one that cannot be had must not keep a reading, or other ranks, waiting."""
        try:
            return number_of(loss)
        except Exception as error:
            self._fault("loss", f"asking for the loss raised {type(error).__name__}: {error}; readings go on without")
            return None

    # Between two steps

    def begin_evaluation(self) -> None:
        """Begin to count in evaluation, where one process trains by itself."""
        if self._ranks.size == 1:
            self._evaluations.begin()
        elif self._ranks.is_first:
            what = f"{self._ranks.size} ranks train together, and evaluation is read where one trains alone"
            self._fault("evaluation", f"{what}: rules of stage eval do not fire; training is guarded all the same")

    def read_evaluation(self, loss: Loss, epoch: int | None) -> None:
        """End the evaluation that runs, and let its readings be judged.

        Args:
            loss: as the loop names it. epoch: epochs begun, from 0.
        """
        number, dead_below = self._number_of(loss), self._policy.sample.dead_below
        found = self._evaluations.end(step=self.step, epoch=epoch, loss=number, dead_below=dead_below)
        wants = self.engine.wants_causes
        self._judge.judge(
            self.step, [each for each, _ in found], lambda bundle: self._evaluations.explain(bundle, wants)
        )

    def part(self, reason: str) -> None:
        """Stop, on every rank: what is in force stays, and nothing more is read or changed."""
        self._ranks.leave(reason)
        for probe in self._watch.probes.values():
            probe.remove()
        unmet = ", ".join(sorted({request.kind for request in self.requests.take()}))
        lost = f"; what was asked for and not yet done is dropped: {unmet}" if unmet else ""
        self._fault(
            "ranks",
            f"{self._ranks.parted}. The ranks no longer act as one: nothing is read or changed from step {self.step} "
            f"on, what is in force stays{lost}; training goes on",
        )

    def say_farewell(self) -> bool:
        """Let ranks that go on know that this one does not.

        Returns:
            Whether all ranks end here.
        """
        if self._ranks.size == 1 or self._ranks.parted:
            return False
        try:
            return self._watch.farewell(self.step)
        except PartedError as error:  # a rank failed after the last reading: nobody would know it otherwise
            self.part(str(error))
            return False

    def settle(self) -> None:
        """Settle what is open: the run ends."""
        self.ledger.carry_out(self.engine.finish(self.step), self.engine, self._watch.probes)
        self.requests.remind(self.step)

    def _word(self, purpose: Purpose) -> Word:
        """Return what this rank tells the others of itself."""
        return Word(self.step, self._judge.story, purpose=purpose)

    # State

    def state_dict(self, *, together: bool) -> dict[str, Any]:
        """Return the parts as plain data and tensors.

        Args:
            together: every rank calls this, after the same step; the first rank's then holds what all recorded.
        """
        watched = self._watch_state(together=together)
        return {
            "schema": _STATE_SCHEMA,
            "run": self._log.run,
            "step": self.step,
            "read_at": self._read_at,
            "policy": {"name": self._policy.name, "fingerprint": self._policy.fingerprint()},
            "engine": self.engine.state_dict(),
            "watch": watched,
            "pace": self._pace.state_dict(),
            "clinic": self._clinic.state_dict(),
            "ledger": self.ledger.state_dict(self._watch.probes),
            "requests": self.requests.state_dict(),
            "snapshot": self._snapshots.state_dict(),
        }

    def _watch_state(self, *, together: bool) -> dict[str, Any]:
        """Return what was recorded, by all ranks where they can still be asked."""
        if together and self._ranks.size > 1 and not self._ranks.parted:
            try:
                self._watch.meet(self._word(Purpose.SAVING))
                return self._watch.state_dict(together=True)
            except PartedError as error:
                self.part(str(error))
            except OtherRankError as error:
                self._fault("state", f"{error}; what other ranks recorded is not in it")
        return self._watch.state_dict()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; every rank calls this.

        Raises:
            PartedError: the ranks cannot go on as one.
            Exception: what is in the state does not fit, on this rank or on another; some of it is in force.
        """
        if self._ranks.size > 1:
            self._watch.meet(self._word(Purpose.RESUMING))
        self._ranks.together(lambda: self._restore(state))

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state.get("schema") != _STATE_SCHEMA:
            raise ValueError(f"expected guard state of schema {_STATE_SCHEMA}, got {state.get('schema')}")
        self.step, self._read_at = int(state["step"]), int(state["read_at"])
        self.engine.load_state_dict(state["engine"])
        self._watch.load_state_dict(state["watch"])
        self._clinic.load_state_dict(state.get("clinic", {}))
        rules = {rule.name for rule in self._policy.rules}
        self.ledger.load_state_dict(state["ledger"], self._watch.probes, rules)
        self.requests.load_state_dict(state["requests"])
        if state["snapshot"] is not None:
            self._snapshots.load_state_dict(state["snapshot"])
        self._pace.load_state_dict(state.get("pace", {}))
        self._watch.rest(self._pace.rests)
        self._arm()
        self._log.emit("resumed", self.step, **describe_resume(self._policy, state, self.ledger))

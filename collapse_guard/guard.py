"""The guard: takes readings, lets the policy decide, acts, and writes down what came of it.

Framework-free. A loop attaches it to a model, calls `step()` after each optimizer step and closes it. Nothing that
fails in here may fail the run: an exception is contained, told once, and what raised it is switched off.

Where several ranks train together, each has a guard, and all of them decide and do the same; see `ranks`.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.distributed import ProcessGroup, get_rank
from torch.optim import Optimizer

from collapse_guard.policies import Decision, Health, Policy, PolicyEngine, Reading, load_policy, taken_together

from .adapters import CodebookView, GenericVQ, discover
from .diagnosis import Clinic
from .evaluation import Evaluations
from .events import EventLog, Sink
from .execution import compiled_parts, refuse_replicas, unwrap_compiled
from .history.kept import Kept
from .interventions import ladders_on
from .kmeans import KMeansTokenizer
from .ledger import Ledger, without_tables
from .measure import Loss, number_of
from .optimizer import inner_optimizer, moment_sums, movers_of, ratio_of_moments
from .pace import Pace
from .ranks import Alone, OtherRankError, PartedError, Purpose, Word, join_ranks
from .reports import (
    describe_environment,
    describe_idle_rules,
    describe_unrecognised,
    describe_views,
    describe_without_epoch,
    summarise,
)
from .requests import Requests
from .sinks import ConsoleSink, JsonLinesSink, Verbosity, new_run, open_sinks
from .sketch import is_told, uses_of
from .snapshots import Snapshots, wanted_snapshots
from .tokenizers import save_tokenizers, tokenizers_of
from .watch import Watch

__all__ = ["Guard"]

_logger = logging.getLogger("collapse_guard")
_STATE_SCHEMA = 1
_AFTERMATH_STEPS = 500  # half of what Adam's usual 0.999 takes to forget two thirds of what it has seen

Explain: TypeAlias = "Callable[[Sequence[Reading]], Sequence[Reading]]"


class Guard:
    """Watches the codebooks of a model that trains and repairs them under a policy.

    Perplexity and counts of a reading are pooled over the steps since the one before it that were recorded: all of them
    while anything is suspected or kept up, and while all is well an evenly spread part; see `pace`.

    Args:
        policy: preset name, path of a YAML file, mapping, or a loaded policy.
        log_dir: directory of the run; `collapse_guard/events.jsonl` is written below it. `None` writes no file.
        console: whether to print alerts, interventions and the summary.
        verbosity: how much is printed: `quiet`, `normal` or `detailed`; see `ConsoleSink`.
        sinks: further places for events to go.
        adapters: module path -> description, for quantizers that are not recognised.
        seed: of the guard's own random streams; the run's are never touched.
        total_steps: optimizer steps that the whole training is planned to take, if that is known: what moves codes
            steadily stops before the end.
        log_max_bytes: bound on the event log, which then forgets its oldest part; see `JsonLinesSink`. Without one
            it grows with the readings.

    Attributes:
        requests: what the policy asks of the loop, such as to stop; see `Requests.take`.

    Raises:
        PolicyError: the policy is not valid; every problem is listed with file and line.
        ValueError: an unknown verbosity.

    Example:
        >>> from collapse_guard import Guard
        >>> guard = Guard("observe", console=False)
        >>> guard.policy.mode
        'observe'
    """

    def __init__(
        self,
        policy: str | Path | Mapping[str, Any] | Policy = "default",
        *,
        log_dir: str | Path | None = None,
        console: bool = True,
        verbosity: Verbosity = "normal",
        sinks: Sequence[Sink] = (),
        adapters: Mapping[str, GenericVQ] | None = None,
        seed: int = 0,
        total_steps: int | None = None,
        log_max_bytes: int | None = None,
    ) -> None:
        """Load and validate the policy; nothing is hooked, opened or printed before `attach`."""
        self.policy = load_policy(policy)
        self._log_dir = log_dir
        self._console = ConsoleSink(verbosity=verbosity) if console else None
        self._log_max_bytes = log_max_bytes
        self._extra_sinks = tuple(sinks)
        self._history = Kept()
        self._readings_taken: Counter[str] = Counter()
        self._adapters = dict(adapters or {})
        self._seed = seed
        self.total_steps = total_steps
        self._step = 0
        self._read_at = 0
        self._seconds = 0.0
        self._attached_at = 0.0
        self._run = ""
        self._log = EventLog()
        self._file: JsonLinesSink | None = None
        self._kept: dict[str, KMeansTokenizer] = {}  # the fallbacks that were in force at the end
        self.requests = Requests(self._log)
        self._engine = PolicyEngine(self.policy)
        self._is_attached = False
        self._state_at_close: dict[str, Any] | None = None
        self._without_epoch = ""  # what a loop that does not say its epoch makes of the policy
        self._ranks = Alone()
        self._story = 0  # a checksum of all decisions: the same on all ranks
        self._watch = Watch((), seed=seed, fault=self._fault)
        self._pace = Pace()
        self._evaluations = Evaluations(nn.Module(), self._watch, self._fault, keeps_inputs=False)
        self._model: nn.Module | None = None
        self._optimizers: Sequence[Optimizer] = ()
        self._ledger: Ledger | None = None
        self._snapshots: Snapshots | None = None
        self._clinic = Clinic(self._fault)
        self._broken: set[str] = set()

    # Lifetime

    def attach(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        *,
        group: ProcessGroup | None = None,
        patience: timedelta | None = None,
    ) -> Guard:
        """Find the codebooks of a model and begin to watch them.

        Call it when the model is on its device, before a compiled model's first forward. Where several ranks train
        together, every rank calls it, and from then on calls `step` and `close` as the others do.

        Args:
            model: the model that is trained; of what `torch.compile` returned, the module inside is meant.
            optimizers: all that may move a codebook; of one that another wraps, the inner one is meant.
            group: of the ranks that train this model together, where those are not all ranks.
            patience: how long to wait for the slowest of them; 5 minutes where not given.

        Raises:
            NoQuantizerError: there is nothing to watch; says what was looked at.
            ValueError: the model runs as copies, in `nn.DataParallel`; or the ranks' guards are not alike.
            RuntimeError: the guard is attached already, or another guard watches this model.
        """
        if self.is_attached:
            raise RuntimeError("this guard is attached already; close it first, or make one guard per model")
        refuse_replicas(model)
        ranks = self._join(group, patience)
        try:
            found = discover(unwrap_compiled(model), self._adapters)
            watch = Watch(found.views, seed=self._seed, fault=self._fault, compiled=compiled_parts(model), ranks=ranks)
            self._agree(ranks, watch)
            watch.install()
        except BaseException:
            ranks.leave()
            raise
        self._ranks, self._story = ranks, 0
        optimizers = (optimizers,) if isinstance(optimizers, Optimizer) else optimizers
        optimizers = tuple(map(inner_optimizer, optimizers))
        self._run, self._log.closing = new_run(), False
        self._log.sinks, self._file = open_sinks(
            self._log_dir if ranks.is_first else None,
            run=self._run,
            max_bytes=self._log_max_bytes,
            console=self._console if ranks.is_first else None,
            further=[self._history, *self._extra_sinks],
        )
        ladders = ladders_on(self.policy, found.views)
        self._without_epoch = describe_without_epoch(self.policy)
        self._is_attached, self._state_at_close, self._kept = True, None, {}
        self._watch = watch
        keeps_inputs = self._ranks.size == 1 and not compiled_parts(model)
        self._evaluations = Evaluations(unwrap_compiled(model), watch, self._fault, keeps_inputs=keeps_inputs)
        self._evaluations.install()
        self._attached_at, self._seconds = time.perf_counter(), 0.0
        self._model, self._optimizers = unwrap_compiled(model), optimizers
        self._begin_afresh()
        self._log.emit(
            "attached",
            self._step,
            policy=self.policy.name,
            policy_source=self.policy.source,
            mode=self.policy.mode,
            policy_fingerprint=self.policy.fingerprint(),
            policy_as_run=self.policy.model_dump(mode="json", by_alias=True),
            environment=describe_environment(),
            ranks=ranks.size,
            log=str(self._file.path) if self._file is not None else None,
            codebooks=describe_views(found.views),
            unrecognised=describe_unrecognised(found.unrecognised),
            idle_rules=describe_idle_rules(self.policy, found.views),
            powerless={ladder.rule: list(books) for ladder in ladders if (books := ladder.powerless_on)},
        )
        if ranks.parted:
            self._part(ranks.parted)
        return self

    def _join(self, group: ProcessGroup | None, patience: timedelta | None) -> Alone:
        """Return the ranks that train together; a guard that cannot reach the others stops."""
        try:
            return join_ranks(group, patience=patience)
        except RuntimeError as error:
            alone = Alone()
            alone.index = get_rank()
            alone.leave(f"the ranks cannot talk to each other, and each of them must attach its guard: {error}")
            return alone

    def _agree(self, ranks: Alone, watch: Watch) -> None:
        """Make sure that the guards of all ranks are alike; the planned length is the first rank's.

        Raises:
            ValueError: they are not.
        """
        if ranks.size == 1:
            return
        books = sorted((name, probe.view.K, probe.view.D) for name, probe in watch.probes.items())
        me = f"policy {self.policy.name!r} ({self.policy.fingerprint()[:12]}), seed {self._seed}, "
        me += f"{len(books)} codebooks ({zlib.crc32(repr(books).encode()):08x})"
        try:
            said = ranks.words(f"{self.total_steps}|{me}")
        except PartedError:
            return  # told once the log is open
        guards = [each.partition("|")[2] for each in said]
        for rank, other in enumerate(guards):
            if other != guards[0]:
                raise ValueError(
                    f"expected the same guard and the same codebooks on every rank, got {guards[0]} on rank 0 and "
                    f"{other} on rank {rank}; where only some ranks hold the quantizer, attach there with group=..."
                )
        planned = said[0].partition("|")[0]
        self.total_steps = None if planned == "None" else int(planned)

    @property
    def is_attached(self) -> bool:
        """Whether the guard is watching."""
        return self._is_attached

    def close(self, *, ended_by: str | None = None) -> None:
        """Settle what is open, print the summary, release hooks and files; safe to repeat and after an exception.

        Args:
            ended_by: name of the exception that ended the run, for the summary.
        """
        if not self.is_attached:
            return
        try:
            self._summarise(ended_by, together=self._say_farewell(ended_by))
        except Exception as error:
            _logger.warning("the summary could not be written: %s: %s", type(error).__name__, error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Release hooks and files, as the end of the process would: nothing is settled, nothing more is said."""
        if self._ledger is not None:
            self._ledger.release()
        self._evaluations.remove()
        self._watch.release()
        self._ranks.leave()
        self._is_attached = False
        self._log.close()

    def _say_farewell(self, ended_by: str | None) -> bool:
        """Let ranks that go on know that this one does not; after an exception nobody is waited for.

        Returns:
            Whether all ranks end here.
        """
        if self._ranks.size == 1 or self._ranks.parted or ended_by is not None:
            return False
        try:
            return self._watch.farewell(self._step)
        except PartedError as error:  # a rank failed after the last reading: nobody would know it otherwise
            self._part(str(error))
            return False

    def _summarise(self, ended_by: str | None, *, together: bool) -> None:
        assert self._ledger is not None
        # What is saved after the end must be able to go on: with verifications open, not settled for the summary.
        self._state_at_close = self.state_dict(together=together)
        self._log.closing = True
        self._ledger.carry_out(self._engine.finish(self._step), self._engine, self._watch.probes)
        self.requests.remind(self._step)
        self._kept = tokenizers_of(self._ledger, self._watch.probes, self._step, self._fault)
        file = self._file
        saved = {} if file is None else save_tokenizers(self._kept, file.path.parent, file.run, self._fault)
        total = time.perf_counter() - self._attached_at
        self._log.emit(
            "summary",
            self._step,
            ended_by=ended_by,
            **summarise(self._ledger, self._watch, self._engine),
            tokenizers=saved,
            guard_seconds=self.seconds,
            run_seconds=total,
            guard_share=self.seconds / total if total > 0 else 0.0,
        )

    def __enter__(self) -> Guard:
        """Return the guard."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened."""
        self.close(ended_by=kind.__name__ if kind is not None else None)

    # Life

    @property
    def readings(self) -> Mapping[str, Reading]:
        """The latest reading of each codebook, by name."""
        return self._watch.readings

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """What was done so far, as plain data, in order: step, codebook, rule, action, params, result."""
        return [entry.as_dict() for entry in self._ledger.entries] if self._ledger is not None else []

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was told so far as flat records, as `pandas.DataFrame` takes them.

        Each has the same keys: `step`, `time`, `event`, `codebook`, `health`, the numbers of a reading and the words of
        what happened; what does not apply is `None`. Memory is bounded, to some 10 MB: of more than 10,000 readings
        every second goes, the one with the higher perplexity of two neighbours; of more than 1,000 other events the
        middle ones.
        """
        return self._history.records()

    def plot_history(self) -> Any:
        """Return the course of each codebook, with thresholds and interventions, as a plotly figure.

        Raises:
            MissingExtraError: plotly is not installed; says what to install.
        """
        from .report import figure_of_history

        return figure_of_history(self.history, self.policy)

    def tokenizer(self, codebook: str) -> KMeansTokenizer:
        """Return the fallback that stands in for a codebook, as a tokenizer of its own: a copy, as it is now.

        After `close` it is the one that the run ended with, which is also saved below the log directory.

        Args:
            codebook: name, as `readings` and the log have it.

        Raises:
            ValueError: no fallback is in force there; lists the codebooks on which one is.
        """
        kept = self._kept
        if self.is_attached and self._ledger is not None:
            kept = tokenizers_of(self._ledger, self._watch.probes, self._step, self._fault)
        if codebook not in kept:
            raise ValueError(
                f"codebook: expected one on which a fallback tokenizer is in force ({', '.join(kept) or 'none here'}), "
                f"got {codebook!r}; to make a tokenizer of any latents, call KMeansTokenizer.fit"
            )
        return kept[codebook]

    def step(self, *, loss: Loss = None, epoch: int | None = None) -> None:
        """Tell the guard that one optimizer step is complete. Reads, decides and acts where due; never raises.

        Args:
            loss: the value that verification may look at: a number, a tensor of one element, or a function that returns
                one and is called only when a reading is due. A tensor is not waited for on other steps.
            epoch: epochs begun, from 0.
        """
        if self._model is None and "attach" not in self._broken:
            self._broken.add("attach")
            _logger.warning("guard.step() was called before guard.attach(model, optimizer): nothing is guarded")
        self._step += self.is_attached
        self._contain(lambda: self._take_step(loss, epoch))

    def _take_step(self, loss: Loss, epoch: int | None) -> None:
        assert self._ledger is not None
        self.requests.remind(self._step)
        self._ledger.hold(self._step, self._watch.probes)
        if not self._ranks.parted:
            self._tend_and_read(loss, epoch)

    @contextmanager
    def evaluate(self, *, epoch: int | None = None) -> Iterator[None]:
        """Read the codebooks in evaluation: around one whole validation, between two steps.

            with guard.evaluate():
                validate(model)

        What the model is called with in there makes one reading of each codebook, of stage `eval`; nothing of it counts
        for training. Swap averaged weights in and out inside of the block.

        Args:
            epoch: epochs begun, from 0.
        """
        self.begin_evaluation()
        try:
            yield
        except BaseException:
            self._evaluations.abandon()
            raise
        self.end_evaluation(epoch=epoch)

    def begin_evaluation(self) -> None:
        """Begin an evaluation, for loops that cannot use `evaluate`; never raises."""
        if self._ranks.size == 1:
            self._contain(self._evaluations.begin)
        elif self.is_attached and self._ranks.is_first:
            what = f"{self._ranks.size} ranks train together, and evaluation is read where one trains alone"
            self._fault("evaluation", f"{what}: rules of stage eval do not fire; training is guarded all the same")

    def end_evaluation(self, *, loss: Loss = None, epoch: int | None = None) -> None:
        """End an evaluation: read, decide and act where due; never raises. The model trains with its own weights again.

        Args:
            loss: as for `step`.
            epoch: epochs begun, from 0.
        """
        self._contain(lambda: self._read_evaluation(number_of(loss), epoch))

    def offer(self, batch: object) -> None:
        """Hand in the batch of the coming step, training or evaluation, to compare modes with if need be.

        Only of use where a loop calls encoder and quantizer one after the other, and its model has a `validation_step`
        or a `training_step` that takes a batch and a number.
        """
        if self._evaluations.exhibits is not None:
            self._evaluations.exhibits.offer(batch)

    def _contain(self, act: Callable[[], None]) -> None:
        """Do something for an attached guard; the one place that catches broadly: the run is not its victim."""
        if not self.is_attached:
            return
        start = time.perf_counter()
        try:
            with torch.inference_mode(False):  # a loop may evaluate in it; what is kept from there must serve training
                act()
        except PartedError as error:
            self._part(str(error))
        except Exception as error:
            self._fault("guard", f"{type(error).__name__}: {error}")
            _logger.debug("guard failed", exc_info=error)
            if self._ranks.size > 1 and not self._ranks.parted:  # this rank no longer knows what the others know
                self._part(f"the guard of rank {self._ranks.index} failed")
        self._seconds += time.perf_counter() - start

    def _read_evaluation(self, loss: float | None, epoch: int | None) -> None:
        dead_below = self.policy.sample.dead_below
        found = self._evaluations.end(step=self._step, epoch=epoch, loss=loss, dead_below=dead_below)
        wants = self._engine.wants_causes
        self._judge([reading for reading, _ in found], lambda bundle: self._evaluations.explain(bundle, wants))

    def _tend_and_read(self, loss: Loss, epoch: int | None) -> None:
        assert self._ledger is not None
        if self._ranks.size > 1 and self._ledger.wants_tending(self._step):
            self._watch.meet(self._word(Purpose.TENDING))
        self._ledger.tend(self._step, self._watch.probes, after_reading=False)
        self._watch.notice_silence()
        if self._left() <= 0:
            self._read(self._number_of(loss), epoch)
            self._ledger.tend(self._step, self._watch.probes, after_reading=True)
        self._arm()
        is_calm = not (self._engine.is_suspect or self._ledger.keeps_codebooks)
        self._watch.rest(self._pace.turn(max(self._left() - 1, 0), is_calm=is_calm))

    def _arm(self) -> None:
        """Have the gradients of the coming step felt, where a reading is due after it."""
        if self._left() <= 1:
            self._clinic.arm(self._step + 1, is_suspect=self._engine.is_suspect)

    def _number_of(self, loss: Loss) -> float | None:
        """Return the loss as a number; one rank that cannot say its own must not keep the others waiting."""
        try:
            return number_of(loss)
        except Exception as error:
            if self._ranks.size == 1:
                raise
            self._fault("loss", f"asking for the loss raised {type(error).__name__}: {error}")
            return None

    def _part(self, reason: str) -> None:
        """Stop, on every rank: what is in force stays, and nothing more is read or changed."""
        self._ranks.leave(reason)
        for probe in self._watch.probes.values():
            probe.remove()
        unmet = ", ".join(sorted({request.kind for request in self.requests.take()}))
        lost = f"; what was asked for and not yet done is dropped: {unmet}" if unmet else ""
        self._fault(
            "ranks",
            f"{self._ranks.parted}. The ranks no longer act as one: nothing is read or changed from step {self._step} "
            f"on, what is in force stays{lost}; training goes on",
        )

    @property
    def rewritten(self) -> dict[str, int]:
        """How often each codebook was rewritten so far, by interventions, refits and what undid them."""
        return self._ledger.rewritten() if self._ledger is not None else {}

    def views(self, names: Iterable[str]) -> list[CodebookView]:
        """Return the handles of some codebooks, by name."""
        return [self._watch.probes[name].view for name in names]

    @property
    def steps(self) -> int:
        """Optimizer steps that the guard was told of."""
        return self._step

    @property
    def seconds(self) -> float:
        """Time spent in the guard since it was attached: hooks, readings and interventions."""
        return self._seconds + self._watch.seconds

    def _word(self, purpose: Purpose) -> Word:
        """Return what this rank tells the others of itself."""
        return Word(self._step, self._story, purpose=purpose)

    def _left(self) -> int:
        """Return how many steps it is until the next reading; none or fewer where it is due."""
        sample = self.policy.sample
        every = sample.when_suspect_steps if self._engine.is_suspect else sample.every_steps
        return self._read_at + every - self._step

    def _read(self, loss: float | None, epoch: int | None) -> None:
        assert self._ledger is not None
        self._read_at = self._step
        sample = self.policy.sample
        if epoch is None and self._without_epoch:
            self._fault("epoch", self._without_epoch)
        enough = sample.min_tokens if self._step >= self.policy.warmup_steps else 0
        word = Word(self._step, self._story, loss, epoch)
        readings = self._watch.read(word, dead_below=sample.dead_below, min_tokens=enough)
        taken: list[Reading] = []
        uses: dict[str, list[int]] = {}
        ratio = self._moment_ratio() if self._is_after_trouble() else None
        written = self._ledger.rewritten()
        for taken_now, counts in readings:
            name = taken_now.codebook
            reading = replace(
                taken_now,
                rewrites=self._ledger.version_of(name),
                frozen=int(self._watch.probes[name].view.is_frozen),
                moment_ratio=ratio,
            )
            if is_told(self._readings_taken[reading.codebook]):
                uses[reading.codebook] = uses_of(counts)
            self._readings_taken[reading.codebook] += 1
            self._ledger.note(reading.codebook, counts)
            self._clinic.note(
                reading, counts, is_suspect=self._engine.is_suspect, version=written.get(reading.codebook, 0)
            )
            taken.append(reading)
        has_all = not self._watch.misses(self._step)
        self._pace.note(taken, every=sample.every_steps, min_tokens=enough, has_all=has_all)
        self._judge(taken, self._explained, uses)

    def _is_after_trouble(self) -> bool:
        """Whether the guard has intervened lately, so that what optimizers remember may be of what made it."""
        entries = self._ledger.entries if self._ledger is not None else []
        return bool(entries) and self._step - entries[-1].step <= _AFTERMATH_STEPS

    def _moment_ratio(self) -> float | None:
        """Return how much larger gradients the encoder's optimizer remembers than it is shown, over all ranks."""
        probes = self._watch.probes
        feeds = without_tables((each for probe in probes.values() for each in probe.feeds), probes)
        try:
            sums = moment_sums(movers_of(self._optimizers, feeds))
        except Exception as error:  # foreign optimizers may fail in any way; the other ranks wait for this one
            self._fault("moments", f"what optimizers remember cannot be read: {type(error).__name__}: {error}")
            sums = np.zeros(2)
        return ratio_of_moments(*self._ranks.add_up(sums).tolist())

    def _judge(self, taken: Sequence[Reading], explain: Explain, uses: Mapping[str, list[int]] | None = None) -> None:
        """Let the policy decide on readings of one step, tell them, and carry out what it decided.

        Args:
            taken: the readings. explain: adds their causes. uses: histograms that are told beside them, by codebook.
        """
        assert self._ledger is not None
        asked_before = self.requests.open_count
        for bundle in taken_together(taken):
            together = explain(bundle)
            decisions = self._remembered(self._engine.observe_together(together))
            for reading in together:
                fields = {key: value for key, value in reading.as_record().items() if key != "step"}
                fields |= {"uses": uses[reading.codebook]} if uses and reading.codebook in uses else {}
                self._log.emit("reading", self._step, health=self._engine.health(reading.codebook).value, **fields)
            self._ledger.carry_out(decisions, self._engine, self._watch.probes)
        if (
            taken
            and self._snapshots is not None
            and all(self._engine.health(name) is Health.HEALTHY for name in self._watch.readings)
        ):
            self._snapshots.consider(self._step)
        if self.requests.open_count > asked_before:
            self._ranks.words("")  # all ranks have come this far: what is asked for is asked for on all

    def _explained(self, readings: Sequence[Reading]) -> Sequence[Reading]:
        """Return readings with their causes, where somebody wants to know them; on several ranks the first one's."""
        if self._ranks.size == 1 or not self._engine.wants_causes(readings):
            return self._clinic.explain(readings, self._engine.wants_causes)
        found = self._clinic.explain(readings, self._engine.wants_causes) if self._ranks.is_first else ()
        said = self._ranks.tell(json.dumps([each.as_dict() for each in found]))
        return [Reading.from_dict(each) for each in json.loads(said)]

    def _remembered(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Return decisions; ranks that have not made the same ones find out at the next reading."""
        decisions = list(decisions)
        for each in decisions if self._ranks.size > 1 else ():
            told = (
                f"{each.kind} {each.codebooks or each.codebook} {each.rule} {each.rung} {each.attempt} {each.outcome}"
            )
            self._story = zlib.crc32(told.encode(), self._story)
        return decisions

    # State

    def state_dict(self, *, together: bool = False) -> dict[str, Any]:
        """Return all state as plain data and tensors; a checkpoint with it still loads with `weights_only=True`.

        After `close` it is the state that the run ended in, verifications still open: a resumed run goes on from there.
        Where it cannot be had, that is told, and the state is empty: the run's own checkpoint must not fail for it.

        Args:
            together: every rank calls this, after the same step. The first rank's state then also holds what the others
                recorded, and the run goes on from it exactly on as many ranks.
        """
        if self._state_at_close is not None:
            return self._state_at_close
        try:
            return self._state(self._watch_state(together=together))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}; a checkpoint made now does not hold the guard's state"
            self._fault("state", reason)
            _logger.debug("guard state could not be had", exc_info=error)
            return {}

    def _state(self, watched: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema": _STATE_SCHEMA,
            "run": self._run,
            "step": self._step,
            "read_at": self._read_at,
            "policy": {"name": self.policy.name, "fingerprint": self.policy.fingerprint()},
            "engine": self._engine.state_dict(),
            "watch": watched,
            "pace": self._pace.state_dict(),
            "clinic": self._clinic.state_dict(),
            "ledger": self._ledger.state_dict(self._watch.probes) if self._ledger is not None else {},
            "requests": self.requests.state_dict(),
            "snapshot": self._snapshots.state_dict() if self._snapshots is not None else None,
        }

    def _watch_state(self, *, together: bool) -> dict[str, Any]:
        """Return what was recorded, by all ranks where they can still be asked."""
        if together and self._ranks.size > 1 and not self._ranks.parted:
            try:
                self._watch.meet(self._word(Purpose.SAVING))
                return self._watch.state_dict(together=True)
            except PartedError as error:
                self._part(str(error))
            except OtherRankError as error:
                self._fault("state", f"{error}; what other ranks recorded is not in it")
        return self._watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved guard stood. Call it after `attach`, with the model's own weights restored.

        A policy that changed in between wins, and the log says so. State that cannot be read is told, and the guard
        starts afresh: the run itself must be able to resume.

        Raises:
            RuntimeError: the guard is not attached.
        """
        if not self.is_attached:
            raise RuntimeError(
                "expected a guard that is attached, got one that is not: call guard.attach(model, optimizer) first, "
                "then guard.load_state_dict(state)"
            )
        knobs = [probe.view.commitment for probe in self._watch.probes.values()]
        weights = [(knob, knob.get()) for knob in knobs if knob is not None]
        try:
            if self._ranks.size > 1:
                self._watch.meet(self._word(Purpose.RESUMING))
            self._ranks.together(lambda: self._restore(state))
        except Exception as error:
            if isinstance(error, PartedError):
                self._part(str(error))
            self._fault("resume", f"{type(error).__name__}: {error}; the guard starts afresh")
            _logger.debug("guard state could not be restored", exc_info=error)
            if self._ledger is not None:
                self._ledger.release()
            self._watch.begin_afresh()  # nothing of what was restored before the error stays in force
            for knob, weight in weights:
                knob.set(weight)
            self._begin_afresh()

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self._ledger is not None
        if state.get("schema") != _STATE_SCHEMA:
            raise ValueError(f"expected guard state of schema {_STATE_SCHEMA}, got {state.get('schema')}")
        self._step, self._read_at = int(state["step"]), int(state["read_at"])
        self._engine.load_state_dict(state["engine"])
        self._watch.load_state_dict(state["watch"])
        self._clinic.load_state_dict(state.get("clinic", {}))
        rules = {rule.name for rule in self.policy.rules}
        self._ledger.load_state_dict(state["ledger"], self._watch.probes, rules)
        self.requests.load_state_dict(state["requests"])
        if self._snapshots is not None and state["snapshot"] is not None:
            self._snapshots.load_state_dict(state["snapshot"])
        self._pace.load_state_dict(state.get("pace", {}))
        self._watch.rest(self._pace.rests)
        self._arm()
        self._log.emit(
            "resumed",
            self._step,
            policy=self.policy.name,
            policy_changed=state["policy"]["fingerprint"] != self.policy.fingerprint(),
            policy_before=state["policy"],
            in_force=self._ledger.in_force(),
            continues=state.get("run"),
        )

    def _begin_afresh(self) -> None:
        self._step = self._read_at = 0
        self._pace = Pace()
        self._watch.rest(self._pace.rests)
        self._engine = PolicyEngine(self.policy)
        self.requests = Requests(self._log)
        assert self._model is not None
        self._clinic = Clinic(self._fault)
        self._clinic.begin(self._watch.probes, self._model)
        self._snapshots = wanted_snapshots(self.policy, self._model, self._optimizers)
        self._ledger = Ledger(
            self._log,
            self._optimizers,
            seed=self._seed,
            dead_below=self.policy.sample.dead_below,
            requests=self.requests,
            progress=self._progress,
            model=self._model,
            evaluations=self._evaluations,
            snapshots=self._snapshots,
            ranks=self._ranks,
        )

    def _progress(self) -> float | None:
        return None if self.total_steps is None else self._step / max(self.total_steps, 1)

    # Parts

    def _fault(self, where: str, reason: str) -> None:
        if (where + reason) not in self._broken:
            self._broken.add(where + reason)
            self._log.emit("fault", self._step, where=where, reason=reason)
            if not self._ranks.is_first:  # whose log nobody reads
                _logger.warning("rank %d: %s: %s", self._ranks.index, where, reason)

"""The guard: what a training loop calls. It takes its post in a model, works one shift there, and goes.

Framework-free. A loop attaches it to a model, calls `step()` after each optimizer step and closes it. What is done at a
step is told in `shift`. Nothing that fails there may fail the run: an exception is contained here, told once, and what
raised it is switched off.

Where several ranks train together, each has a guard, and all of them decide and do the same; see `ranks`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from collapse_guard.policies import Policy, Reading, load_policy

from .adapters import CodebookView, GenericVQ
from .events import Sink
from .history.kept import Kept
from .kmeans import KMeansTokenizer
from .measure import Loss
from .post import nowhere, take_post
from .ranks import PartedError
from .reports import describe_start, summarise
from .shift import Shift
from .sinks import ConsoleSink, Journal, Verbosity
from .tokenizers import save_tokenizers, tokenizers_of
from .watch import Watch

__all__ = ["Guard"]

_logger = logging.getLogger("collapse_guard")


class Guard:
    """Watches the codebooks of a model that trains and repairs them under a policy.

    Perplexity and counts of a reading are pooled over the steps since the one before it that were recorded: all of them
    while anything is suspected or kept up, and while all is well the last ones before a reading; see `pace`.

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
        self.total_steps = total_steps
        self._adapters = dict(adapters or {})
        self._seed = seed
        self._history = Kept()
        self._log = Journal(
            log_dir,
            console=ConsoleSink(verbosity=verbosity) if console else None,
            further=[self._history, *sinks],
            max_bytes=log_max_bytes,
        )
        self._broken: set[str] = set()  # what went wrong, and was told
        self._readings_taken: Counter[str] = Counter()
        self._is_attached = False
        self._attached_at = self._seconds = 0.0
        self._state_at_close: dict[str, Any] | None = None
        self._kept: dict[str, KMeansTokenizer] = {}  # the fallbacks that were in force at the end
        self._post = nowhere(seed=seed, fault=self._fault)
        self._begin_shift()

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
        post = take_post(
            model,
            optimizers,
            adapters=self._adapters,
            guard=f"policy {self.policy.name!r} ({self.policy.fingerprint()[:12]}), seed {self._seed}",
            seed=self._seed,
            total_steps=self.total_steps,
            fault=self._fault,
            group=group,
            patience=patience,
        )
        try:
            self._log.begin(is_first=post.ranks.is_first)
        except Exception:  # a bound on the log that is too small, for one: nobody would watch at this post
            post.leave()
            raise
        self._post, self.total_steps = post, post.total_steps
        self._is_attached, self._state_at_close, self._kept = True, None, {}
        self._attached_at, self._seconds = time.perf_counter(), 0.0
        self._begin_shift()
        self._log.emit("attached", self.steps, **describe_start(self.policy, post, self._log.path))
        for remark in post.remarks:
            self._fault("optimizer", remark)
        if post.ranks.parted:
            self._shift.part(post.ranks.parted)
        return self

    def _begin_shift(self) -> None:
        self._shift = Shift(
            self._post,
            self.policy,
            self._log,
            seed=self._seed,
            progress=self._progress,
            readings_taken=self._readings_taken,
            fault=self._fault,
        )
        self.requests = self._shift.requests
        self._shift.begin()

    def _progress(self) -> float | None:
        return None if self.total_steps is None else self.steps / max(self.total_steps, 1)

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
            together = ended_by is None and self._shift.say_farewell()  # after an exception nobody is waited for
            self._summarise(ended_by, together=together)
        except Exception as error:
            _logger.warning("the summary could not be written: %s: %s", type(error).__name__, error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Release hooks and files, as the end of the process would: nothing is settled, nothing more is said."""
        self._shift.ledger.release()
        self._post.leave()
        self._is_attached = False
        self._log.close()

    def _summarise(self, ended_by: str | None, *, together: bool) -> None:
        # What is saved after the end must be able to go on: with verifications open, not settled for the summary.
        self._state_at_close = self.state_dict(together=together)
        self._log.closing = True
        self._shift.settle()
        self._kept = self._tokenizers()
        folder = self._log.path.parent if self._log.path is not None else None
        saved = save_tokenizers(self._kept, folder, self._log.run, self._fault) if folder is not None else {}
        total = time.perf_counter() - self._attached_at
        self._log.emit(
            "summary",
            self.steps,
            ended_by=ended_by,
            **summarise(self._shift.ledger, self._watch, self._shift.engine),
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

    def step(self, *, loss: Loss = None, epoch: int | None = None) -> None:
        """Tell the guard that one optimizer step is complete. Reads, decides and acts where due; never raises.

        Args:
            loss: the value that verification may look at: a number, a tensor of one element, or a function that returns
                one and is called only when a reading is due. A tensor is not waited for on other steps.
            epoch: epochs begun, from 0.
        """
        if not self._log.run and "attach" not in self._broken:
            self._broken.add("attach")
            _logger.warning("guard.step() was called before guard.attach(model, optimizer): nothing is guarded")
        self._contain(lambda: self._shift.take_step(loss, epoch))

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
            self._post.evaluations.abandon()
            raise
        self.end_evaluation(epoch=epoch)

    def begin_evaluation(self) -> None:
        """Begin an evaluation, for loops that cannot use `evaluate`; never raises."""
        self._contain(self._shift.begin_evaluation)

    def end_evaluation(self, *, loss: Loss = None, epoch: int | None = None) -> None:
        """End an evaluation: read, decide and act where due; never raises. The model trains with its own weights again.

        Args:
            loss: as for `step`.
            epoch: epochs begun, from 0.
        """
        self._contain(lambda: self._shift.read_evaluation(loss, epoch))

    def offer(self, batch: object) -> None:
        """Hand in the batch of the coming step, training or evaluation, to compare modes with if need be.

        Only of use where a loop calls encoder and quantizer one after the other, and its model has a `validation_step`
        or a `training_step` that takes a batch and a number.
        """
        if self._post.evaluations.exhibits is not None:
            self._post.evaluations.exhibits.offer(batch)

    def _contain(self, act: Callable[[], None]) -> None:
        """Do something for an attached guard; the one place that catches broadly: the run is not its victim."""
        if not self.is_attached:
            return
        start = time.perf_counter()
        try:
            # A loop may evaluate in it; what is kept from there must serve training.
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
                act()
        except PartedError as error:
            self._shift.part(str(error))
        except Exception as error:
            self._fault("guard", f"{type(error).__name__}: {error}")
            _logger.debug("guard failed", exc_info=error)
            ranks = self._post.ranks
            if ranks.size > 1 and not ranks.parted:  # this rank no longer knows what the others know
                self._shift.part(f"the guard of rank {ranks.index} failed")
        self._seconds += time.perf_counter() - start

    def _fault(self, where: str, reason: str) -> None:
        """Tell, once, what went wrong."""
        if (where + reason) not in self._broken:
            self._broken.add(where + reason)
            self._log.emit("fault", self.steps, where=where, reason=reason)
            ranks = self._post.ranks
            if not ranks.is_first:  # whose log nobody reads
                _logger.warning("rank %d: %s: %s", ranks.index, where, reason)

    # What came of it

    @property
    def _watch(self) -> Watch:
        return self._post.watch

    @property
    def readings(self) -> Mapping[str, Reading]:
        """The latest reading of each codebook, by name."""
        return self._watch.readings

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """What was done so far, as plain data, in order: step, codebook, rule, action, params, result."""
        return [entry.as_dict() for entry in self._shift.ledger.entries]

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
        kept = self._tokenizers() if self.is_attached else self._kept
        if codebook not in kept:
            raise ValueError(
                f"codebook: expected one on which a fallback tokenizer is in force ({', '.join(kept) or 'none here'}), "
                f"got {codebook!r}; to make a tokenizer of any latents, call KMeansTokenizer.fit"
            )
        return kept[codebook]

    def _tokenizers(self) -> dict[str, KMeansTokenizer]:
        return tokenizers_of(self._shift.ledger, self._watch.probes, self.steps, self._fault)

    @property
    def rewritten(self) -> dict[str, int]:
        """How often each codebook was rewritten so far, by interventions, refits and what undid them."""
        return self._shift.ledger.rewritten()

    def views(self, names: Iterable[str]) -> list[CodebookView]:
        """Return the handles of some codebooks, by name."""
        return [self._watch.probes[name].view for name in names]

    @property
    def steps(self) -> int:
        """Optimizer steps that the guard was told of."""
        return self._shift.step

    @property
    def seconds(self) -> float:
        """Time spent in the guard since it was attached: hooks, readings and interventions."""
        return self._seconds + self._watch.seconds

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
            return self._shift.state_dict(together=together)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}; a checkpoint made now does not hold the guard's state"
            self._fault("state", reason)
            _logger.debug("guard state could not be had", exc_info=error)
            return {}

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
        views = self._post.views
        knobs = [knob for view in views for knob in (view.commitment, view.decay, view.threshold, view.temperature)]
        owned = [(knob, knob.save()) for knob in knobs if knob is not None]
        try:
            self._shift.resume(state)
        except Exception as error:
            if isinstance(error, PartedError):
                self._shift.part(str(error))
            self._fault("resume", f"{type(error).__name__}: {error}; the guard starts afresh")
            _logger.debug("guard state could not be restored", exc_info=error)
            self._shift.ledger.release()
            self._watch.begin_afresh()  # nothing of what was restored before the error stays in force
            for knob, number in owned:
                knob.restore(number)
            self._begin_shift()

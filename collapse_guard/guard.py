"""The guard: takes readings, lets the policy decide, acts, and writes down what came of it.

Framework-free. A loop attaches it to a model, calls `step()` after each optimizer step and closes it. Nothing that
fails in here may fail the run: an exception is contained, told once, and what raised it is switched off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed
from torch import nn
from torch.optim import Optimizer

from collapse_guard.policies import Health, Policy, PolicyEngine, Reading, load_policy

from .adapters import CodebookView, GenericVQ, discover
from .events import EventLog, Sink
from .ledger import Ledger
from .measure import read_window
from .probe import Probe
from .reports import describe_views, summarise
from .sinks import ConsoleSink, JsonLinesSink

__all__ = ["Guard"]

_logger = logging.getLogger("collapse_guard")
_STATE_SCHEMA = 1


class Guard:
    """Watches the codebooks of a model that trains and repairs them under a policy.

    Args:
        policy: preset name, path of a YAML file, mapping, or a loaded policy.
        log_dir: directory of the run; `collapse_guard/events.jsonl` is written below it. `None` writes no file.
        console: whether to print alerts, interventions and the summary.
        sinks: further places for events to go.
        adapters: module path -> description, for quantizers that are not recognised.
        seed: of the guard's own random streams; the run's are never touched.

    Raises:
        PolicyError: the policy is not valid; every problem is listed with file and line.

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
        sinks: Sequence[Sink] = (),
        adapters: Mapping[str, GenericVQ] | None = None,
        seed: int = 0,
    ) -> None:
        """Load and validate the policy; nothing is hooked, opened or printed before `attach`."""
        self.policy = load_policy(policy)
        self.readings: dict[str, Reading] = {}
        self._log_dir = log_dir
        self._console = console
        self._extra_sinks = tuple(sinks)
        self._adapters = dict(adapters or {})
        self._seed = seed
        self._step = 0
        self._read_at = 0
        self._seconds = 0.0
        self._attached_at = 0.0
        self._log = EventLog()
        self._engine = PolicyEngine(self.policy)
        self._is_attached = False
        self._state_at_close: dict[str, Any] | None = None
        self._probes: dict[str, Probe] = {}
        self._ledger: Ledger | None = None
        self._first: dict[str, Reading] = {}
        self._broken: set[str] = set()

    # Lifetime

    def attach(self, model: nn.Module, optimizers: Optimizer | Sequence[Optimizer] = ()) -> Guard:
        """Find the codebooks of a model and begin to watch them.

        Call it when the model is on its device, before torch.compile.

        Args:
            model: the model that is trained.
            optimizers: all that may move a codebook.

        Raises:
            NoQuantizerError: there is nothing to watch; says what was looked at.
            RuntimeError: the guard is attached already.
        """
        if self.is_attached:
            raise RuntimeError("this guard is attached already; close it first, or make one guard per model")
        found = discover(model, self._adapters)
        optimizers = (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)
        world = _world_size()
        if world > 1 and self.policy.mode == "act":
            self.policy = self.policy.with_mode("observe")
            self._engine = PolicyEngine(self.policy)
        self._open_sinks()
        self._is_attached, self._state_at_close = True, None
        self._probes = {}
        self._attached_at, self._seconds = time.perf_counter(), 0.0
        self._ledger = Ledger(self._log, optimizers, seed=self._seed)
        for index, view in enumerate(found.views):
            self._watch(view, self._seed + index)
        self._log.emit(
            "attached",
            self._step,
            policy=self.policy.name,
            policy_source=self.policy.source,
            mode=self.policy.mode,
            policy_fingerprint=self.policy.fingerprint(),
            codebooks=describe_views(found.views),
            unrecognised=[{"name": item.name, "reason": item.reason} for item in found.unrecognised],
        )
        if world > 1:
            self._fault("distributed", f"{world} ranks: this version counts this rank's tokens only and does not act")
        return self

    @property
    def is_attached(self) -> bool:
        """Whether the guard is watching."""
        return self._is_attached

    def close(self) -> None:
        """Settle what is open, print the summary, release hooks and files; safe to repeat and after an exception."""
        if not self.is_attached:
            return
        try:
            assert self._ledger is not None
            # What is saved after the end must be able to go on: with verifications open, not settled for the summary.
            self._state_at_close = self.state_dict()
            self._ledger.carry_out(self._engine.finish(self._step), self._engine, self._probes)
            total = time.perf_counter() - self._attached_at
            self._log.emit(
                "summary",
                self._step,
                **summarise(self._ledger, self._first, self.readings, self._health()),
                guard_seconds=self.seconds,
                run_seconds=total,
                guard_share=self.seconds / total if total > 0 else 0.0,
            )
        except Exception as error:
            _logger.warning("the summary could not be written: %s: %s", type(error).__name__, error)
        finally:
            for probe in self._probes.values():
                probe.remove()
                probe.view.unfreeze()
            self._is_attached = False
            self._log.close()

    def __enter__(self) -> Guard:
        """Return the guard."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened."""
        self.close()

    # Life

    def step(self, *, loss: float | None = None, epoch: int | None = None) -> None:
        """Tell the guard that one optimizer step is complete. Reads, decides and acts where due; never raises.

        Args:
            loss: the value that verification may look at.
            epoch: epochs begun, from 0.
        """
        if not self.is_attached:
            return
        start = time.perf_counter()
        self._step += 1
        try:
            assert self._ledger is not None
            self._ledger.tend(self._step, self._probes)
            if self._is_due():
                self._read(loss, epoch)
        except Exception as error:  # the one place that catches broadly: the run is not the victim of its guard
            self._fault("guard", f"{type(error).__name__}: {error}")
            _logger.debug("guard failed", exc_info=error)
        self._seconds += time.perf_counter() - start

    @property
    def steps(self) -> int:
        """Optimizer steps that the guard was told of."""
        return self._step

    @property
    def seconds(self) -> float:
        """Time spent in the guard since it was attached: hooks, readings and interventions."""
        return self._seconds + sum(probe.seconds for probe in self._probes.values())

    def _is_due(self) -> bool:
        sample = self.policy.sample
        every = sample.when_suspect_steps if self._engine.is_suspect else sample.every_steps
        return self._step - self._read_at >= every

    def _read(self, loss: float | None, epoch: int | None) -> None:
        assert self._ledger is not None
        self._read_at = self._step
        for name, probe in self._probes.items():
            reading, counts = read_window(
                probe.window,
                probe.view,
                step=self._step,
                epoch=epoch,
                loss=loss,
                dead_below=self.policy.sample.dead_below,
            )
            if reading.tokens >= self.policy.sample.min_tokens or self._step < self.policy.warmup_steps:
                probe.window.restart()  # a window with too few tokens for a verdict goes on instead
            self.readings[name] = reading
            self._first.setdefault(name, reading)
            self._ledger.note(name, counts)
            decisions = self._engine.observe(reading)
            fields = {key: value for key, value in reading.as_dict().items() if key != "step"}
            self._log.emit("reading", self._step, health=self._engine.health(name).value, **fields)
            self._ledger.carry_out(decisions, self._engine, self._probes)

    def _health(self) -> dict[str, Health]:
        return {name: self._engine.health(name) for name in self._probes}

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return all state as plain data and tensors; a checkpoint with it still loads with `weights_only=True`.

        After `close` it is the state that the run ended in, verifications still open: a resumed run goes on from there.
        """
        if self._state_at_close is not None:
            return self._state_at_close
        return {
            "schema": _STATE_SCHEMA,
            "step": self._step,
            "read_at": self._read_at,
            "policy": {"name": self.policy.name, "fingerprint": self.policy.fingerprint()},
            "engine": self._engine.state_dict(),
            "windows": {name: probe.window.state_dict() for name, probe in self._probes.items()},
            "first": {name: reading.as_dict() for name, reading in self._first.items()},
            "ledger": self._ledger.state_dict() if self._ledger is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved guard stood. Call it after `attach`, with the model's own weights restored.

        A policy that changed in between wins, and the log says that it changed. State that does not fit is told and
        left out.
        """
        if state.get("schema") != _STATE_SCHEMA:
            self._fault(
                "resume", f"expected guard state of schema {_STATE_SCHEMA}, got {state.get('schema')}; starting afresh"
            )
            return
        self._step, self._read_at = int(state["step"]), int(state["read_at"])
        self._engine.load_state_dict(state["engine"])
        self._first = {name: Reading.from_dict(record) for name, record in state["first"].items()}
        for name, window in state["windows"].items():
            try:
                self._probes[name].window.load_state_dict(window, self._probes[name].view.codebook().device)
            except (KeyError, ValueError) as error:
                self._fault("resume", f"window of {name!r}: {error}")
        if self._ledger is not None:
            self._ledger.load_state_dict(state["ledger"], self._probes)
        before, now = state["policy"]["fingerprint"], self.policy.fingerprint()
        self._log.emit("resumed", self._step, policy=self.policy.name, policy_changed=before != now)

    # Parts

    def _watch(self, view: CodebookView, seed: int) -> None:
        def probe_failed(error: Exception) -> None:
            self._fault(
                view.name, f"its probe raised {type(error).__name__}: {error}; {view.name} is no longer watched"
            )

        probe = Probe(view, seed=seed, on_error=probe_failed)
        probe.install()
        self._probes[view.name] = probe

    def _open_sinks(self) -> None:
        sinks: list[Sink] = [ConsoleSink()] if self._console else []
        if self._log_dir is not None:
            sinks.append(JsonLinesSink(self._log_dir))
        self._log.sinks = [*sinks, *self._extra_sinks]

    def _fault(self, where: str, reason: str) -> None:
        if (where + reason) not in self._broken:
            self._broken.add(where + reason)
            self._log.emit("fault", self._step, where=where, reason=reason)


def _world_size() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1

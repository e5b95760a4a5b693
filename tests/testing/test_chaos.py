"""Chaos: injected collapses x quantizers x phases of the guard, with a part of the guard that fails besides.

The user's run finishes in every case, and each contained fault is told exactly once. `make chaos` runs all cases; the
suite runs some of them, among which every quantizer, kind, phase and fault occurs.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from collapse_guard import Event, Guard
from collapse_guard.hooks import Hook
from collapse_guard.policies import Phase
from collapse_guard.testing import KINDS, Injection, inject
from collapse_guard.testing.injection import Kind
from tests.contract.all_cases import CASES
from tests.contract.case import Case
from tests.loops import Recorder
from tests.test_execution import Model

FAMILIES = (
    "vector-quantize-pytorch VectorQuantize ema",
    "vector-quantize-pytorch VectorQuantize cosine",
    "vector-quantize-pytorch VectorQuantize learnable",
    "vector-quantize-pytorch VectorQuantize optimizer inside",
    "vector-quantize-pytorch VectorQuantize separate heads",
    "vector-quantize-pytorch ResidualVQ",
    "encodec VectorQuantization",
    "descript-audio-codec VectorQuantize",
    "taming-transformers VectorQuantizer2",
    "nsvq NSVQ",
)
PHASES = ("armed", "pending", "verifying", "cooling", "fallback", "resumed")
FAULTS = ("none", "sink", "probe", "reading", "action", "hold")
MARK = "chaos was here"
STEPS_AFTER = 14
BY_ID = {case.id: case for case in CASES}


def policy(phase: str) -> dict[str, Any]:
    ladder = ["fallback_tokenizer"] if phase == "fallback" else [{"reset_codes": {"scope": "all"}}]
    while_it_lasts, over = ("step < 7", "step >= 7") if phase == "cooling" else ("tokens > 0", "tokens < 0")
    rule = {
        "name": "always", "when": while_it_lasts, "for": 3,
        "clear": {"when": over, "for": 2}, "severity": "warning",
        "cooldown": "9 steps", "verify": {"within": "12 steps"}, "ladder": ladder,
    }  # fmt: skip
    return {
        "version": 1, "name": "chaos", "mode": "act", "warmup": "1 steps", "rules": [rule],
        "sample": {"every": "2 steps", "when_suspect": "2 steps", "min_tokens": 1},
        "budget": {"interventions": 100, "refill_after": "10 steps"},
    }  # fmt: skip


def all_cases() -> list[tuple[str, str, Kind, str]]:
    """Every quantizer in every phase under every injection; the faults take turns, so that each meets each."""
    found = []
    for number, (family, phase, kind) in enumerate(itertools.product(FAMILIES, PHASES, KINDS)):
        if (kind == "scale" and "cosine" in family) or (kind == "scale" and "descript" in family):
            continue  # compared by angle: refused, as another test checks
        found.append((family, phase, kind, FAULTS[(number + number // 36) % len(FAULTS)]))
    return found


def some_cases() -> list[tuple[str, str, Kind, str]]:
    """Some of each quantizer, and with them each phase, kind and fault."""
    return all_cases()[::13]


class FailingSink:
    def write(self, event: Event) -> None:
        raise OSError(MARK)

    def close(self) -> None:
        raise OSError("closing fails, too")


def raising(*_: Any, **__: Any) -> Any:
    raise RuntimeError(MARK)


class Loop:
    """A user's run: trains one case under a guard, and knows how to go on from a checkpoint."""

    def __init__(self, case: Case, phase: str) -> None:
        torch.manual_seed(0)
        self.case, self.recorder, self.policy = case, Recorder(), policy(phase)
        self.done = 0
        self._begin()

    def _begin(self) -> None:
        self.model = Model(self.case).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.guard = Guard(self.policy, console=False, sinks=[self.recorder])
        self.guard.attach(self.model, self.optimizer)

    def train(self, steps: int, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(self.case.batch()).backward()
            self.optimizer.step()
            self.guard.step()
            self.done += 1
            if until():
                return

    @property
    def probes(self) -> list[Any]:
        return list(self.guard._watch.probes.values())

    def stands_in(self, phase: str) -> bool:
        if phase == "fallback":
            return bool(self.guard._shift.ledger.in_force())
        return any(self.guard._shift.engine.phase(probe.view.name, "always") is Phase(phase) for probe in self.probes)

    def resume(self) -> None:
        """Go on from a checkpoint in a model and a guard that are new."""
        file = io.BytesIO()
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "guard": self.guard}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        self.guard.close()
        self._begin()
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.guard.load_state_dict(saved["guard"])


def reach(loop: Loop, phase: str) -> None:
    if phase == "resumed":
        loop.train(9)
        loop.resume()
    elif phase == "armed":
        loop.train(1)
    else:
        loop.train(40, until=lambda: loop.stands_in(phase))
        assert loop.stands_in(phase), f"{phase} was not reached in 40 steps"


def break_something(loop: Loop, fault: str, patch: pytest.MonkeyPatch) -> None:
    """Let one part of the guard fail from now on."""
    probe = loop.probes[0]
    if fault == "sink":
        loop.guard._log.sinks.append(FailingSink())
    elif fault == "probe":
        patch.setattr(probe.window, "add", raising)
    elif fault == "reading":
        patch.setattr(type(probe.window), "spread", raising)
    elif fault == "hold":
        patch.setattr(probe.view, "hold", raising)
    elif fault == "action":
        patch.setattr(type(probe.view), "write_rows", raising)


def reports(loop: Loop, fault: str) -> Iterator[int]:
    """How often each contained fault was told: by codebook that failed, or by intervention."""
    marked = [event for event in loop.recorder.of("fault") if MARK in str(event.fields["reason"])]
    if fault == "action":
        assert marked == []
        for event in loop.recorder.of("intervention"):
            parts = event.fields.get("members") or [event.fields]
            if any(part["result"] == "refused" for part in parts):
                yield str(event.fields["summary"]).count(MARK)
    else:
        places = [event.fields["where"] for event in marked]
        yield from (places.count(place) for place in set(places))
        assert places, "a fault that nobody was told of"


def survive(family: str, phase: str, kind: Kind, fault: str, patch: pytest.MonkeyPatch) -> None:
    loop = Loop(BY_ID[family], phase)
    with ExitStack() as stack:
        stack.callback(lambda: loop.guard.close())
        reach(loop, phase)
        before = loop.done
        injector = stack.enter_context(inject(loop.model, Injection(kind, until=4)))
        if fault != "none":
            break_something(loop, fault, patch)
        loop.train(STEPS_AFTER)
        assert loop.done == before + STEPS_AFTER, "the user's run finishes"
        assert injector.fired
        loop.guard.close()
    told = loop.recorder.of("fault")
    if fault == "none":
        assert told == []
    else:
        assert set(reports(loop, fault)) <= {1}
        assert len(told) == len({(event.fields["where"], event.fields["reason"]) for event in told})
    assert loop.recorder.of("summary")
    hooks = (hook for module in loop.model.modules() for hook in module._forward_hooks.values())
    assert not any(isinstance(hook, Hook) for hook in hooks)


def test_the_cases_are_many_and_the_sample_meets_everything() -> None:
    assert len(all_cases()) >= 300
    for index, values in enumerate((FAMILIES, PHASES, KINDS, FAULTS)):
        assert {case[index] for case in some_cases()} == set(values)


@pytest.mark.parametrize("case", some_cases(), ids=" / ".join)
def test_the_run_finishes_and_each_fault_is_told_once(
    case: tuple[str, str, Kind, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survive(*case, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=" / ".join)
def test_the_run_finishes_in_every_case(case: tuple[str, str, Kind, str], monkeypatch: pytest.MonkeyPatch) -> None:
    survive(*case, monkeypatch)

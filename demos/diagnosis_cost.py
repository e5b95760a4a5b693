"""What a diagnosis costs: CPU time of the clinic at readings at which nobody asks why, and at those that ask.

The least of several readings is told, which hardly minds what else the machine does, and the median beside it. The
codebook is large; that a step of such a model costs many times more is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from collapse_guard.diagnosis import Clinic
from collapse_guard.policies import load_policy

from .scenarios import Course, Scenario
from .scenarios.data import Sheet
from .scenarios.quantizers import EmaQuantizer

__all__ = ["COST_BOUND", "DiagnosisCost", "cost_as_markdown", "measure_cost"]

K, D = 8192, 256
COST_BOUND = 0.050
_EVERY, _FIRST_ASKED = 2, 12


@dataclass(frozen=True, slots=True)
class DiagnosisCost:
    """CPU seconds of the clinic in one run, one number for each reading.

    Attributes:
        run: what is wrong with it. tokens: of a reading.
        note: what it costs to remember a reading, whatever it shows.
        quiet: to learn that nobody asks. explain: to say why where a rule asks.
        found: the likeliest cause at the last of them.
    """

    run: str
    tokens: int
    note: list[float]
    quiet: list[float]
    explain: list[float]
    found: str


def measure_cost(readings: int = 12) -> list[DiagnosisCost]:
    """Train a starved and a runaway codebook of 8192 codes in 256 dimensions, with so many readings that ask."""
    starved, runaway = (lambda: EmaQuantizer(K, D, decay=0.99)), (lambda: EmaQuantizer(K, D, unscaled=True))
    return [_cost("more codes than tokens", starved, readings), _cost("factor n missing", runaway, readings)]


def _cost(name: str, quantizer: Callable[[], nn.Module], readings: int) -> DiagnosisCost:
    steps = _FIRST_ASKED + _EVERY * readings
    made = Scenario(name=name, family="home-made EMA", says="", quantizer=quantizer, data=Sheet(), D=D, steps=steps)
    course, note, explain = Course(made, seed=0), list[float](), list[float]()
    with _timed("note", note), _timed("explain", explain):
        course.run(_policy(steps))
    taken = [event for event in course.events if event.event == "reading"]
    asked = [bool(event.fields.get("causes")) for event in taken]
    causes = [event.fields["causes"][0]["cause"] for event in taken if event.fields.get("causes")]
    quiet, spent = (
        [seconds for seconds, is_asked in zip(explain, asked, strict=True) if is_asked is kind]
        for kind in (False, True)
    )
    return DiagnosisCost(name, int(taken[-1].fields["tokens"]), note, quiet, spent, causes[-1] if causes else "")


def _policy(steps: int) -> dict[str, Any]:
    """Return a policy that only looks, and from a step on asks why at every reading."""
    plain = load_policy("observe").model_dump(mode="json", by_alias=True)
    asked = range(_FIRST_ASKED, steps + 1, _EVERY)
    rules = [{"name": f"asked_{step}", "when": f"step >= {step}", "severity": "info"} for step in asked]
    sample = {**plain["sample"], "every": f"{_EVERY} steps", "when_suspect": f"{_EVERY} steps"}
    return {**plain, "name": "asked", "mode": "observe", "warmup": "0 steps", "sample": sample, "rules": rules}


@contextmanager
def _timed(name: str, spent: list[float]) -> Iterator[None]:
    """Note the CPU time of each call of a method of the clinic."""
    method = getattr(Clinic, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.process_time() - began)

    setattr(Clinic, name, timed)
    try:
        yield
    finally:
        setattr(Clinic, name, method)


def cost_as_markdown(costs: list[DiagnosisCost]) -> str:
    """Return the table, with the bound."""
    rows = [
        f"| {cost.run} | {cost.tokens} | {_least(cost.note)} | {_least(cost.quiet)} | {_least(cost.explain)} "
        f"| {cost.found or '-'} |"
        for cost in costs
    ]
    return "\n".join(
        [
            "## What it costs",
            "",
            f"CPU time of the clinic on one core, K = {K}, D = {D}: the least of so many readings, in brackets their",
            f"median. The bound for a reading at which a rule asks why is {1000 * COST_BOUND:g} ms.",
            "",
            "| run | tokens a reading | remember it | nobody asks | a rule asks why | named first |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _least(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"{1000 * min(seconds):.3f} ms of {len(seconds)} ({1000 * statistics.median(seconds):.3f} ms)"

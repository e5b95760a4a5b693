"""How fast the policy engine decides, and what it remembers: readings per second on one core, bytes over a long run.

Only the engine is timed: readings are made beforehand, and nothing is measured, logged or acted upon. What is timed is
the processor's time of this process, so that others on the machine disturb less. `bench` times what guarding costs a
training step.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import time
import tracemalloc
from collections.abc import Iterator

from rich import box, get_console
from rich.table import Table

from collapse_guard.policies import DecisionKind, Policy, PolicyEngine, Reading, load_policy

__all__ = ["DERIVED_POLICY", "engine_readings", "main"]

_CODEBOOKS = 8
_ROUNDS = 5
_PER_ROUND = 40_000
_EARLY, _LATE = 100_000, 1_000_000

DERIVED_POLICY = {
    "version": 1,
    "name": "default with rel() and trend()",
    "extends": "default",
    "rules": [
        {"name": "fallen", "when": "rel(perplexity) < 0.2", "for": 3},
        {"name": "sliding", "when": "trend(perplexity over 8 readings) < -0.1", "for": 3},
    ],
}


def engine_readings(count: int, period: int = 500, codebooks: int = _CODEBOOKS) -> Iterator[Reading]:
    """Yield readings of codebooks in turn, each of which collapses again and again, and is well after a reset.

    Args:
        count: of all codebooks together.
        period: of how many readings of a codebook three are collapsed.
        codebooks: how many there are; they collapse at different times.
    """
    for number in range(count):
        turn, book = divmod(number, codebooks)
        is_collapsed = (turn + 37 * book) % period < 3
        perplexity = 1.0 if is_collapsed else 80.0 + turn % 7
        yield Reading(
            step=10 * turn,
            codebook=f"quantizer.layers.{book}",
            K=256,
            D=64,
            tokens=2048,
            perplexity=perplexity,
            ceiling=240.0,
            perplexity_ratio=perplexity / 240,
            usage=perplexity / 256,
            dead_fraction=1 - perplexity / 256,
            top_share=1 / perplexity,
            relative_error=0.9 if is_collapsed else 0.1,
            finite_fraction=1.0,
            loss=1.0,
        )


def _decide(engine: PolicyEngine, among: Iterator[Reading]) -> int:
    """Let an engine decide on readings, as if every action were applied; return how many it asked for."""
    acts = 0
    for reading in among:
        for decision in engine.observe(reading):
            if decision.kind is DecisionKind.ACT:
                acts += 1
                engine.report(decision, applied=True)
    return acts


def _per_second(policy: Policy, period: int) -> float:
    """Return readings per second: the median of rounds on one engine."""
    engine, rates = PolicyEngine(policy), []
    coming = engine_readings(_PER_ROUND * (_ROUNDS + 1), period)
    for round_number in range(_ROUNDS + 1):
        made = iter(list(itertools.islice(coming, _PER_ROUND)))
        start = time.process_time()
        _decide(engine, made)
        if round_number:  # the first round warms caches
            rates.append(_PER_ROUND / (time.process_time() - start))
    return statistics.median(rates)


def _remembered(policy: Policy) -> tuple[list[int], list[int], int]:
    """Return the bytes in use, and those of the written state, early and late in a long run; and the interventions."""
    engine, coming = PolicyEngine(policy), engine_readings(_LATE)
    in_use, written, acts = [], [], 0
    tracemalloc.start()
    for count in (_EARLY, _LATE - _EARLY):
        acts += _decide(engine, itertools.islice(coming, count))
        gc.collect()
        in_use.append(tracemalloc.get_traced_memory()[0])
        written.append(len(json.dumps(engine.state_dict())))
    tracemalloc.stop()
    return in_use, written, acts


def main() -> None:
    """Print two tables."""
    policies = [load_policy("default"), load_policy(DERIVED_POLICY)]
    speed = Table(title=f"The engine alone, {_CODEBOOKS} codebooks, one core", box=box.SIMPLE_HEAD)
    for column in ("policy", "collapsed", "readings per second", "a reading"):
        speed.add_column(column)
    for policy, period in itertools.product(policies, (500, 6)):
        rate = _per_second(policy, period)
        speed.add_row(policy.name, f"3 of {period} readings", f"{rate:,.0f}", f"{1e6 / rate:.1f} us")
    get_console().print(speed)
    in_use, written, acts = _remembered(policies[-1])
    memory = Table(title=f"What it remembers: {policies[-1].name}, {acts:,} interventions", box=box.SIMPLE_HEAD)
    for column in ("after", "memory", "state_dict as JSON"):
        memory.add_column(column)
    for count, used, size in zip((_EARLY, _LATE), in_use, written, strict=True):
        memory.add_row(f"{count:,} readings", f"{used / 1024:.1f} KiB", f"{size / 1024:.1f} KiB")
    get_console().print(memory)


if __name__ == "__main__":
    main()

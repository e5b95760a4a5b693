"""Runs of two to four ranks in which things go wrong at random, one or several: none may hang, and each must finish.

    python -m tests.ranks.chaos 100        # a hundred seeded runs, each with a time-out

A run that ends with its ranks still acting as one must end with the same model on all of them, bit for bit.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import torch
from torch import nn

from collapse_guard import Guard
from collapse_guard.interventions import INTERVENTIONS
from tests.crew import Crew, HangError
from tests.ranks import loops

__all__ = ["case", "main", "run"]

_TIMEOUT = 120.0
_STEPS = 22
TROUBLES = (
    "nothing",
    "apply raises",
    "probe raises",
    "guard raises",
    "engine raises",
    "spoilt again",
    "sink raises",
    "drift",
)


class Trouble:
    """What goes wrong in a run: which, on which rank, before which step."""

    def __init__(self, seed: int, size: int) -> None:
        random_ = random.Random(seed)
        number = random_.choice((1, 1, 2, 3))
        self.plan = [
            (random_.choice(TROUBLES), random_.randrange(size), random_.randrange(1, _STEPS)) for _ in range(number)
        ]
        self._undo: list[Any] = []

    def __call__(self, step: int, rank: int, guard: Guard, model: nn.Module) -> None:
        """Let it happen where it is time to."""
        for what, where, when in self.plan:
            if when == step and (where == rank or what == "spoilt again"):
                self._happen(what, guard, model)

    def _happen(self, what: str, guard: Guard, model: nn.Module) -> None:
        if what == "apply raises":
            self._break_actions()
        elif what == "probe raises":
            name = random.Random(len(guard._watch.probes)).choice(sorted(guard._watch.probes))
            guard._watch.probes[name].window.add = _raise  # type: ignore[method-assign]
        elif what == "guard raises":
            guard._shift.ledger.note = _raise  # type: ignore[method-assign]
        elif what == "engine raises":
            guard._shift.engine.observe_together = _raise  # type: ignore[method-assign]
        elif what == "spoilt again":
            loops.spoil(model)
        elif what == "sink raises":
            guard._log.sinks[0].write = _raise  # type: ignore[method-assign]
        elif what == "drift":
            with torch.no_grad():
                for view in (probe.view for probe in guard._watch.probes.values()):
                    view.codebook().mul_(1.01)

    def _break_actions(self) -> None:
        for action in ("reset_codes", "fallback_tokenizer"):
            kind = INTERVENTIONS[action]
            self._undo.append((kind, kind.apply))
            kind.apply = _raise  # type: ignore[method-assign]

    def end(self) -> None:
        """Repair the classes, which later runs in this process share."""
        for kind, real in reversed(self._undo):
            kind.apply = real


def _raise(*_: Any, **__: Any) -> Any:
    raise RuntimeError("chaos")


def case(rank: int, size: int, *, seed: int) -> dict[str, Any]:
    """Run one seeded case on one rank."""
    random_ = random.Random(1000 + seed)
    trouble = Trouble(seed, size)
    masked = (random_.randrange(size),) if random_.random() < 0.3 else ()
    kind = random_.choice(("ema", "ema", "learnable", "residual"))
    try:
        told = loops.ddp_run(
            rank, size, kind=kind, steps=_STEPS, masked=masked if kind != "residual" else (), during=trouble, seed=seed
        )
    finally:
        trouble.end()
    reasons = [fields["where"] for _, event, fields in told["story"] if event == "fault"]
    return {"end": told["end"], "has_parted": "ranks" in reasons, "plan": trouble.plan, "kind": kind}


def run(crew: Crew, seed: int) -> dict[str, Any]:
    """Run one case; return what became of it.

    Raises:
        HangError: a rank did not come back.
        AssertionError: a rank raised, or ranks that act as one do not hold the same model.
    """
    size = 2 + seed % 3
    told = crew.run(case, size, timeout=_TIMEOUT, seed=seed)
    drifted = any(what == "drift" for what, _, _ in told[0]["plan"])
    silenced = any(what == "sink raises" for what, _, _ in told[0]["plan"])
    parted = [each["has_parted"] for each in told]
    if not drifted:
        assert all(each["end"] == told[0]["end"] for each in told), told[0]["plan"]
    assert silenced or len(set(parted)) == 1, (told[0]["plan"], parted)
    return {"size": size, "plan": told[0]["plan"], "kind": told[0]["kind"], "parted": parted[0]}


def main() -> None:
    """Run so many cases as the command line says, and tell what became of them."""
    number, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    crew, hangs, failures, parted = Crew(), 0, 0, 0
    start = time.monotonic()
    try:
        for seed in range(first, first + number):
            try:
                done = run(crew, seed)
                parted += done["parted"]
                sys.stdout.write(f"{seed} {done}\n")
            except HangError as error:
                hangs += 1
                sys.stdout.write(f"{seed} HANG {error}\n")
            except AssertionError as error:
                failures += 1
                sys.stdout.write(f"{seed} FAILED {error}\n")
            sys.stdout.flush()
    finally:
        crew.dismiss()
    seconds = time.monotonic() - start
    sys.stdout.write(f"{number} runs, {hangs} hangs, {failures} failures, {parted} parted, {seconds:.0f} s\n")
    raise SystemExit(bool(hangs or failures))


if __name__ == "__main__":
    main()

"""How long the log of a very long run takes to be seen: one of a million events, `watch --once` and `report`.

The log is written as a guard writes it: readings of eight codebooks, one of which collapses now and then, with an
alert, an intervention and its outcome. What is timed is the whole command, from its start to its end.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapse_guard import Event
from collapse_guard.policies import Reading, load_policy
from collapse_guard.sinks import JsonLinesSink

__all__ = ["LogCost", "log_costs_as_markdown", "measure_log", "write_long_log"]

_PAGE = Path("docs/benchmarks/log.md")
_BOOKS = 8
_EVERY = 10
_TOLD_USES = 256
_COMMANDS = {"watch --once": ("watch", "--once"), "watch --whole": ("watch", "--whole"), "report": ("report",)}


@dataclass(frozen=True, slots=True)
class LogCost:
    """One command on one log.

    Attributes:
        command: what of `collapse-guard`. cpu, wall: seconds. size: bytes of what it printed or wrote.
    """

    command: str
    cpu: float
    wall: float
    size: int


def long_story(count: int, collapse_every: int) -> Iterator[Event]:
    """Yield so many events of a run, the first of which says what it was attached to."""
    policy, rng = load_policy("default"), random.Random(0)
    names = [f"quantizer.layers.{book}" for book in range(_BOOKS)]
    facts: dict[str, Any] = {"policy_fingerprint": policy.fingerprint(), "policy_source": "default", "mode": "act"}
    facts["policy_as_run"] = policy.model_dump(mode="json", by_alias=True)
    books = [{"name": name, "K": 1024, "D": 64, "adapter": "home-made", "kind": "ema"} for name in names]
    told, turn = 1, 0
    yield Event("attached", 0, {"policy": "default", "codebooks": books, **facts})
    while True:
        for name in names:
            number, rest = divmod(turn + 1, collapse_every)
            is_collapsed = rest == 0 and name == names[(number - 1) % _BOOKS]
            for event in _events(turn, name, number if is_collapsed else 0, rng):
                yield event
                told += 1
                if told >= count:
                    return
        turn += 1


def _events(turn: int, name: str, attempt: int, rng: random.Random) -> Iterator[Event]:
    """Yield a reading, and if it is collapsed, so that there is an attempt, what the guard did about it."""
    is_collapsed = attempt > 0
    step, perplexity = _EVERY * turn, 1.0 if is_collapsed else 200 * rng.uniform(0.9, 1.1)
    numbers: dict[str, Any] = {
        "ceiling": 800.0,
        "perplexity": perplexity,
        "perplexity_ratio": perplexity / 800,
        "usage": perplexity / 250,
        "dead_fraction": 1 - perplexity / 250,
        "top_share": 3 / (2 + perplexity),
        "norm_ratio": rng.uniform(0.8, 1.2),
        "used_norm_ratio": rng.uniform(0.8, 1.2),
        "relative_error": 2.0 if is_collapsed else rng.uniform(0.1, 0.2),
        "latent_rank": rng.uniform(20, 30),
        "codebook_rank": rng.uniform(20, 30),
        "latent_variance": rng.uniform(0.9, 1.1),
        "finite_fraction": 1.0,
        "loss": rng.uniform(0.9, 1.1),
    }
    fields = Reading(step=step, codebook=name, K=1024, D=64, tokens=2048, **numbers).as_record()
    del fields["step"]
    if turn < _TOLD_USES:
        fields["uses"] = [rng.randrange(64) for _ in range(64)]
    yield Event("reading", step, {"health": "collapsed" if is_collapsed else "healthy", **fields})
    if is_collapsed:
        who = {"codebook": name, "rule": "collapsed", "attempt": attempt, "action": "reset_codes"}
        yield Event("alert", step, who | {"severity": "critical", "reason": "perplexity 1.00 < 1.5 for 2 readings"})
        yield Event("intervention", step, who | {"result": "applied", "summary": "1024 of 1024 codes placed by kmeans"})
        ends = {"before": {"perplexity": 1.0}, "after": {"perplexity": 200.0}, "reason": "perplexity 200 >= 10"}
        yield Event("outcome", step + 5 * _EVERY, who | ends | {"outcome": "recovered"})


def write_long_log(log_dir: Path, count: int, *, collapse_every: int = 5000) -> Path:
    """Write the log of a run of so many events, one codebook collapsing every so many readings; return its path."""
    sink = JsonLinesSink(log_dir, run="long")
    for event in long_story(count, collapse_every):
        sink.write(event)
    sink.close()
    return sink.path


def measure_log(log_dir: Path) -> list[LogCost]:
    """Run each command on a log in a process of its own, and return what it took."""
    found = []
    for name, words in _COMMANDS.items():
        code = "import sys; from collapse_guard.cli import main; sys.argv[0] = 'collapse-guard'; main()"
        page = log_dir / "report.html"
        arguments = [*words, str(log_dir), *(("-o", str(page)) if name == "report" else ())]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append(LogCost(name, cpu, wall, page.stat().st_size if name == "report" else len(done.stdout)))
    return found


def log_costs_as_markdown(events: int, size: int, costs: list[LogCost]) -> str:
    """Return the page: what each command took on a log of so many events and bytes."""
    rows = [f"| `{each.command}` | {each.cpu:.1f} s | {each.wall:.1f} s | {_bytes(each.size)} |" for each in costs]
    return "\n".join(
        [
            "# A long log",
            "",
            f"Written by `make bench-log`: a log of {events:,} events of {_BOOKS} codebooks, {size / 1e6:.0f} MB, and",
            "what `collapse-guard` takes to show it, the start of Python included. CPU is the processor's time of one",
            "process; wall is what one waits, on a machine of two cores that had other work at the same time.",
            "",
            "| command | CPU | wall | output |",
            "|---|---|---|---|",
            *rows,
            "",
            "The bars: a first screen within 2 s, a report within 30 s and 15 MB. `watch --once` shows what the end of",
            "the log says; `--whole` folds all of it first, as the live view does meanwhile.",
            "",
        ]
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def main() -> None:
    """Measure and write the page; a log of another length is only printed."""
    parser = argparse.ArgumentParser(prog="make bench-log", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        size = write_long_log(Path(folder), events).stat().st_size
        text = log_costs_as_markdown(events, size, measure_log(Path(folder)))
    print(text)
    if events == parser.get_default("events"):
        _PAGE.write_text(text, encoding="utf-8")

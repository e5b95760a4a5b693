"""The page of what a long run does, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench_endurance import Endured

__all__ = ["endurance_as_markdown"]

_WARM = 4000  # steps after which memory is asked to be flat
_MOST_ROWS = 10
_ASKED = """\
[rehearsals](../rehearse.md), whose codebook update breaks at step 300 and stays broken. In `act` mode a fallback holds
the codebook from then on; in `observe` mode the collapse lasts, so that a reading is taken every 10 steps to the end.
What is asked: memory flat after the warm-up, a cost per step that does not grow, a log that grows with the readings
alone. Of the memory only how it grows is the guard's; most of it is torch. One thing may grow: the guard keeps a record
of each reading for `guard.history`, at most 10,000, and then thins them.

Costs are processor microseconds of `guard.step()`, readings included, a mean over the steps since the row before. *Left
behind* is what `tracemalloc` still holds of all that 300 steps allocated, by step, after the warm-up and at the end.
Blocks are the live ones of Python's allocator.

| mode | readings | log per reading | log in all | memory after the warm-up | at the end | left behind, early | late |
|---|---|---|---|---|---|---|---|"""


def endurance_as_markdown(runs: Sequence[Endured]) -> str:
    """Return the page."""
    steps = runs[0].stretches[-1].steps
    modes = "in `act` and in `observe` mode on the model of the"
    return "\n".join(
        [
            "# Endurance",
            "",
            f"Written by `make bench-endurance`: {steps:,} guarded steps {modes}",
            _ASKED,
            *map(_summary_row, runs),
            *(line for each in runs for line in _course(each)),
            "",
            "See [the log's size](../resume.md#how-large-the-log-gets) for a bound.",
            "",
        ]
    )


def _summary_row(run: Endured) -> str:
    last = run.stretches[-1]
    warm = next((each for each in run.stretches if each.steps > _WARM), run.stretches[0])
    size = f"{run.reading_bytes / run.readings:.0f} bytes | {last.log / 1e3:.0f} kB"
    memory = f"{warm.resident / 1e6:.1f} MB | {last.resident / 1e6:.1f} MB"
    left = f"{run.left_early:.0f} bytes a step | {run.left_late:.0f} bytes a step"
    return f"| `{run.mode}` | {run.readings} | {size} | {memory} | {left} |"


def _course(run: Endured) -> list[str]:
    stride = max(len(run.stretches) // _MOST_ROWS, 1)
    rows = [run.stretches[0], *run.stretches[stride - 1 :: stride]] if stride > 1 else run.stretches
    return [
        "",
        f"## `{run.mode}`",
        "",
        "| steps | memory MB | blocks | guard, us a step | log kB |",
        "|---|---|---|---|---|",
        *(
            f"| {each.steps} | {each.resident / 1e6:.1f} | {each.blocks} | {each.cost:.0f} | {each.log / 1e3:.0f} |"
            for each in rows
        ),
    ]

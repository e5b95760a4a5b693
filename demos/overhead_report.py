"""The page of what guarding costs, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .overhead_costs import CADENCES, Costs

__all__ = ["overhead_as_markdown"]


def overhead_as_markdown(
    models: Mapping[str, Mapping[str, float]],
    costs: Sequence[Costs],
    callbacks: Mapping[str, float],
    syncs: Mapping[int, Mapping[str, int]],
) -> str:
    """Return the page.

    Args:
        models: CPU seconds of a step, by model and arm.
        costs: the guard's own.
        callbacks: CPU seconds of a step under Lightning, by monitor.
        syncs: what would make the host wait for a device, by step, at a reading each 50 steps.
    """
    return "\n".join(
        [
            "# What guarding costs",
            "",
            "Written by `make bench-overhead`. CPU seconds of one thread; everything that is compared took turns, step",
            "by step, in one process. The machine had other work, so that ratios tell more than times. No GPU was at",
            "hand.",
            "",
            "## Whole training steps",
            "",
            "The guard observes; *1*, *10* and *50* are steps between readings, 50 is the default. One guard that",
            "reads at each step was measured and one that never reads; the cadences follow from both. One-hot: the",
            "usual perplexity from a one-hot matrix, computed in each step and read with `.item()`.",
            "",
            "| model | plain step | guard, 1 | guard, 10 | guard, 50 | one-hot |",
            "|---|---|---|---|---|---|",
            *(_model_row(name, seconds) for name, seconds in models.items()),
            "",
            "## The guard's own cost",
            "",
            "Microseconds a step on quantizers that do nothing, D = 32, and what the guard holds on the device.",
            "",
            "| K | codebooks | tokens | guard, 1 | guard, 10 | guard, 50 | one-hot | one-hot / guard, 50 | held |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(_cost_row, costs),
            "",
            "## Beside Lightning's monitors",
            "",
            "A multilayer perceptron with 512 codes and 1024 tokens a step, in a Trainer with a CSV logger; every",
            "monitor as it comes. `SpikeDetection` looks at the loss in each step, `DeviceStatsMonitor` logs every 50",
            "steps, and needs psutil: without it it is not in the table.",
            "",
            "| callback | step | relative |",
            "|---|---|---|",
            *(
                f"| {name} | {1e3 * value:.2f} ms | {value / callbacks['nothing']:.3f} |"
                for name, value in callbacks.items()
            ),
            "",
            "## Waiting for a device",
            "",
            _syncs(syncs),
            "",
        ]
    )


def _model_row(name: str, seconds: Mapping[str, float]) -> str:
    plain = seconds["plain"]
    arms = (*(f"guard {every}" for every in CADENCES), "one-hot")
    return f"| {name} | {1e3 * plain:.2f} ms | {' | '.join(f'{seconds[arm] / plain - 1:+.2%}' for arm in arms)} |"


def _cost_row(cost: Costs) -> str:
    own = " | ".join(f"{1e6 * cost.seconds[every]:.0f}" for every in CADENCES)
    slowest = cost.seconds[CADENCES[-1]]
    rival = "- | -" if cost.one_hot is None else f"{1e6 * cost.one_hot:.0f} | {cost.one_hot / slowest:.0f}"
    held = f"{cost.bytes / 2**20:.1f} MiB"
    return f"| {cost.K} | {cost.codebooks} | {cost.tokens} | {own} | {rival} | {held} |"


def _syncs(syncs: Mapping[int, Mapping[str, int]]) -> str:
    steps = ", ".join(f"{step} ({sum(found.values())})" for step, found in syncs.items())
    return (
        "Counted by a test double on the CPU, over 101 steps with a reading each 50, two codebooks: operations that\n"
        f"would make the host wait are at steps {steps or 'none'}, and at no other. Their number is in brackets.\n"
        "The first step checks once that codes are in range."
    )

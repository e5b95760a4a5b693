"""The page of what guarding costs, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .overhead_costs import CADENCES, Costs
from .overhead_device import DeviceLine

__all__ = ["DEVICE_HEADING", "device_as_markdown", "overhead_as_markdown"]

DEVICE_HEADING = "## On a GPU"
_GUARDED = tuple(f"guard {every}" for every in CADENCES)


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
            "by step, in one process. The machine had other work, so that ratios tell more than times. What a GPU",
            "showed stands at the end.",
            "",
            "## Whole training steps",
            "",
            "The guard observes a calm codebook; *1*, *10* and *50* are steps between readings, 50 is the default. One",
            "guard that reads at each step was measured, one that records each and one that leaves each out; the",
            "cadences follow from these. One-hot: the usual perplexity from a one-hot matrix, computed in each step",
            "and read with `.item()`.",
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
            "A multilayer perceptron with 512 codes and 1024 tokens a step, in Trainers with a CSV logger that took",
            "turns step by step; every monitor as it comes. Each of the 50 steps of a cycle is the median over the",
            "cycles, and all of them count alike, as what is done in one of 50 counts too; what *nothing, again* takes",
            "more or less is noise. `SpikeDetection` looks at the loss in each step, `DeviceStatsMonitor` logs every",
            "50 steps, and needs psutil: without it it is not in the table.",
            "",
            "| callback | step | more than nothing |",
            "|---|---|---|",
            *(
                f"| {name} | {1e3 * value:.2f} ms | {value / callbacks['nothing'] - 1:+.2%} |"
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


def device_as_markdown(lines: Sequence[DeviceLine]) -> str:
    """Return the section of a GPU, from what was measured there."""
    found = {(each.part, each.setting, each.arm): each for each in lines}
    models, own, waits = (
        list(dict.fromkeys(each.setting for each in lines if each.part == part and each.arm in last))
        for part, last in (("models", _GUARDED[-1:]), ("own", ("one-hot",)), ("waits", ("1",)))
    )
    waited = [f"{each.arm} ({each.value:.0f})" for each in lines if each.part == "waits"]
    return "\n".join(
        [
            DEVICE_HEADING,
            "",
            f"Written by `make bench-overhead ARGS='--device cuda'` on one {lines[0].device}, torch {lines[0].torch};",
            "every figure is in `overhead-gpu.jsonl`. Wall time of blocks of 50 steps with the device awaited at their",
            "ends only, arms taking turns block by block in one process; medians. *Again* is a second unguarded run:",
            "what it differs by is noise. One-hot is the perplexity that training scripts compute in each step and",
            "read with `.item()`.",
            "",
            "| model | plain step | again | guard, 1 | guard, 10 | guard, 50 | one-hot |",
            "|---|---|---|---|---|---|---|",
            *(_device_row(setting, found) for setting in models),
            "",
            *_own_table(own, found),
            *(
                f"{setting}, 101 steps: the host waited for the device at steps {', '.join(waited)}, and at no\n"
                "other, as CUDA itself reports it. The first step checks once that codes are in range.\n"
                for setting in waits
            ),
        ]
    )


def _device_row(setting: str, found: Mapping[tuple[str, str, str], DeviceLine]) -> str:
    plain = found["models", setting, "plain"].value
    arms = ("plain again", *_GUARDED, "one-hot")
    cells = " | ".join(f"{found['models', setting, arm].value / plain - 1:+.1%}" for arm in arms)
    return f"| {setting} | {1e3 * plain:.2f} ms | {cells} |"


def _own_table(settings: Sequence[str], found: Mapping[tuple[str, str, str], DeviceLine]) -> list[str]:
    if not settings:
        return []
    return [
        "The guard's own cost: microseconds a step on quantizers that do nothing, D = 32, 4096 tokens for each",
        "codebook; and MiB on the device: what the guard holds, and what a reading takes for a moment beside it.",
        "",
        "| K | codebooks | guard, 1 | guard, 10 | guard, 50 | one-hot | held | at a reading |",
        "|---|---|---|---|---|---|---|---|",
        *(_own_row(setting, found) for setting in settings),
        "",
    ]


def _own_row(setting: str, found: Mapping[tuple[str, str, str], DeviceLine]) -> str:
    idle = found["own", setting, "plain"].value
    cells = " | ".join(f"{1e6 * (found['own', setting, arm].value - idle):.0f}" for arm in _GUARDED)
    first = found["own", setting, "guard 1"]
    rival = 1e6 * found["own", setting, "one-hot"].value
    return f"| {setting} | {cells} | {rival:.0f} | {first.held / 2**20:.1f} | {first.peak / 2**20:.1f} |"

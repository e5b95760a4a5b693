"""The zoo's figures as plain data, and as the Markdown page that the docs show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .arms import ARMS
from .cell import CellResult
from .intervals import Interval, mean_over_seeds, median_over_scenarios
from .measures import Pair, Pairs, has_as_little_error
from .runner import Study
from .scenario import Scenario

__all__ = ["summarise_zoo", "zoo_as_markdown"]

_PARTS = ("all", "tuned", "held out")


def summarise_zoo(cells: Sequence[CellResult], scenarios: Sequence[Scenario], study: Study) -> dict[str, Any]:
    """Return all figures as plain data.

    Args:
        cells: what was measured.
        scenarios: that the cells belong to.
        study: that was asked for in whole, to say how much of it is there.
    """
    by_name = {scenario.name: scenario for scenario in scenarios}
    wanted = {cell.key for cell in study.cells()}
    pairs = Pairs(cells, by_name, [arm.name for arm in ARMS.values() if arm.is_peer])
    asked = {(scenario, arm, seed, steps) for scenario, arm, seed, steps, _ in wanted}
    have = {(each.scenario, each.arm, each.seed, each.steps) for each in cells}
    return {
        "schema": 1,
        "cells": {"measured": len(asked & have), "asked": len(asked)},
        "seeds": pairs.seeds,
        "cpu_seconds": round(sum(each.cpu_seconds for each in cells), 1),
        "harmless": [f"{name}, seed {seed}" for name, seed in pairs.harmless()],
        "arms": {arm: _arm_figures(pairs, arm) for arm in pairs.arms},
        "scenarios": {name: _scenario_figures(pairs, by_name[name]) for name in by_name},
    }


def _in_part(part: str, pair: Pair) -> bool:
    return part in ("all", pair.scenario.part)


def _by_seed(pairs: Sequence[Pair], value: Callable[[Pair], float | None]) -> list[list[float]]:
    seeds = sorted({pair.seed for pair in pairs})
    return [[found for pair in pairs if pair.seed == seed and (found := value(pair)) is not None] for seed in seeds]


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {name: round(value, 4) for name, value in asdict(interval).items()}


def _arm_figures(pairs: Pairs, arm: str) -> dict[str, Any]:
    own = pairs.of(arm)
    readings, alerts, interventions = pairs.healthy(arm)
    shares = [pair.run.guard_share for pair in own if pair.run.readings]
    return {
        "pairs": len(own),
        "recovered": {part: _plain(_recovered([pair for pair in own if _in_part(part, pair)])) for part in _PARTS},
        "error_alone": _plain(
            mean_over_seeds(_by_seed(own, lambda pair: float(has_as_little_error(pair.run, pair.twin))))
        ),
        "fallen": sum(pair.has_fallen for pair in own),
        "detected": _share([pair.detected_at is not None for pair in own if pair.run.readings and pair.has_fallen]),
        "delay_steps": _median([pair.delay for pair in own]),
        "delay_readings": _median([pair.delay_readings for pair in own]),
        "recovery_steps": _median([pair.recovery_steps for pair in own if pair.is_recovered]),
        "error_ratio": _plain(median_over_scenarios(_by_seed(own, lambda pair: pair.error_ratio))),
        "error_ratio_from_1024": _plain(
            median_over_scenarios(_by_seed([pair for pair in own if pair.scenario.K >= 1024], lambda p: p.error_ratio))
        ),
        "interventions": _mean([len(pair.run.interventions) for pair in own]),
        "guard_share": _median(shares),
        "healthy": {"readings": readings, "alerts": alerts, "interventions": interventions},
    }


def _recovered(pairs: Sequence[Pair]) -> Interval | None:
    return mean_over_seeds(_by_seed(pairs, lambda pair: float(pair.is_recovered)))


def _scenario_figures(pairs: Pairs, scenario: Scenario) -> dict[str, Any]:
    arms = {}
    for arm in pairs.arms:
        runs = [run for seed in pairs.seeds if (run := pairs.cell(scenario.name, arm, seed)) is not None]
        if not runs:
            continue
        own = pairs.of(arm, scenario.name)
        errors = [run.error for run in runs if run.error is not None]
        arms[arm] = {
            "seeds": len(runs),
            "error": _median(errors),
            "perplexity": _median([min(run.perplexity) for run in runs if run.perplexity]),
            "usage": _median([min(run.usage) for run in runs if run.usage]),
            "pairs": len(own),
            "recovered": sum(pair.is_recovered for pair in own),
            "fallen": sum(pair.has_fallen for pair in own),
            "detected": sum(pair.detected_at is not None for pair in own if pair.has_fallen),
            "delay_steps": _median([pair.delay for pair in own]),
            "interventions": _mean([len(run.interventions) for run in runs]),
            "alerts": _mean([len(run.alerts) for run in runs]),
        }
    return {
        "says": scenario.says,
        "is_collapse": scenario.is_collapse,
        "part": scenario.part,
        "K": scenario.K,
        "arms": arms,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 5) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.mean(values), 3) if values else None


def _share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def zoo_as_markdown(figures: dict[str, Any]) -> str:
    """Return the page: how much was measured, the arms, and each scenario."""
    cells, seeds = figures["cells"], figures["seeds"]
    parts = [
        "# The collapse zoo: figures",
        "",
        "Written by `make zoo` from `zoo.jsonl`, which holds every run; [the page of the zoo](../zoo.md) says what is",
        "measured and how.",
        f"Measured: {cells['measured']} of {cells['asked']} cells, seeds {_listed(seeds)}.",
        "" if cells["measured"] >= cells["asked"] else "**The study is not complete:** intervals are wide, or missing.",
        "",
        "## Arms",
        "",
        *_arm_table(figures["arms"]),
        "",
        "## Healthy codebooks",
        "",
        *_healthy_table(figures["arms"]),
        "",
        "## Collapses",
        "",
        *_scenario_table(figures["scenarios"]),
        "",
        "## Controls",
        "",
        *_control_table(figures["scenarios"]),
        "",
    ]
    if figures["harmless"]:
        parts += [f"No collapse came in: {'; '.join(figures['harmless'])}. They count for nothing above.", ""]
    return "\n".join(parts)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def _arm_table(arms: dict[str, Any]) -> list[str]:
    head = "| arm | pairs | recovered, all | tuned | held out | error alone | detected | delay, readings "
    lines = [
        head + "| steps to recover | error / best prevention | interventions | guard's time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in arms.items():
        if not found["pairs"]:
            continue
        shares = " | ".join(_interval(found["recovered"][part], ".0%") for part in _PARTS)
        lines.append(
            f"| `{arm}` | {found['pairs']} | {shares} | {_interval(found['error_alone'], '.0%')} "
            f"| {_cell(found['detected'], '.0%')} "
            f"| {_cell(found['delay_readings'], '.0f')} | {_cell(found['recovery_steps'], '.0f')} "
            f"| {_interval(found['error_ratio'], '.2f')} | {_cell(found['interventions'], '.1f')} "
            f"| {_cell(found['guard_share'], '.1%')} |"
        )
    return lines


def _healthy_table(arms: dict[str, Any]) -> list[str]:
    lines = [
        "| arm | healthy readings | false alarms | per 10,000 | interventions | per 10,000 |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in arms.items():
        healthy = found["healthy"]
        if healthy["readings"]:
            counts = (healthy[name] for name in ("alerts", "interventions"))
            rates = [f"{count} | {1e4 * count / healthy['readings']:.1f}" for count in counts]
            lines.append(f"| `{arm}` | {healthy['readings']} | {' | '.join(rates)} |")
    return lines


_SHOWN = ("sound", "nothing", "random", "own", "rotation", "simvq", "fsq", "default", "upkeep")


def _scenario_table(scenarios: dict[str, Any]) -> list[str]:
    shown = (*_SHOWN, *_policies(scenarios))
    lines = [
        "Median error over the seeds, relative to the healthy twin's (1.00); in brackets how many pairs recovered.",
        "",
        f"| scenario | K | twin | {' | '.join(shown)} |",
        f"|---|---|---|{'---|' * len(shown)}",
    ]
    for name, found in scenarios.items():
        twin = found["arms"].get("twin")
        if not found["is_collapse"] or twin is None:
            continue
        mark = " *" if found["is_held_out"] else ""
        cells = [_against(found["arms"].get(arm), twin) for arm in shown]
        lines.append(f"| {name}{mark} | {found['K']} | {twin['perplexity']:.0f} | {' | '.join(cells)} |")
    return [*lines, "", "The twin's column is its perplexity, of the worst level. * held out from tuning."]


def _policies(scenarios: dict[str, Any]) -> list[str]:
    """Return the arms that are somebody's own policy."""
    arms = dict.fromkeys(arm for found in scenarios.values() for arm in found["arms"])
    return [arm for arm in arms if arm.startswith("policy:")]


def _against(own: dict[str, Any] | None, twin: dict[str, Any]) -> str:
    if own is None:
        return "-"
    if own["error"] is None:
        return "no number"
    ratio = f"{own['error'] / twin['error']:.2f}"
    return f"{ratio} ({own['recovered']}/{own['pairs']})" if own["pairs"] else ratio


def _control_table(scenarios: dict[str, Any]) -> list[str]:
    shown = ("default", "upkeep", "dense", *_policies(scenarios))
    lines = [
        "Alerts and interventions a run, in the mean; error relative to the run without a guard.",
        "",
        f"| control | perplexity | {' | '.join(f'`{arm}`' for arm in shown)} |",
        f"|---|---|{'---|' * len(shown)}",
    ]
    for name, found in scenarios.items():
        nothing = found["arms"].get("nothing")
        if found["is_collapse"] or nothing is None:
            continue
        cells = []
        for arm in shown:
            own = found["arms"].get(arm)
            cells.append(
                "-"
                if own is None or own["error"] is None
                else f"{own['alerts']:.1f}, {own['interventions']:.1f}; {own['error'] / nothing['error']:.2f}"
            )
        lines.append(f"| {name}{' *' * found['is_held_out']} | {nothing['perplexity']:.0f} | {' | '.join(cells)} |")
    return lines


def _interval(found: dict[str, Any] | None, form: str) -> str:
    """Return a value with its interval, without one where a single seed was run."""
    if found is None:
        return "-"
    value, low, high = (f"{found[key]:{form}}" for key in ("value", "low", "high"))
    return value if found["seeds"] < 2 else f"{value} ({low} - {high})"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"

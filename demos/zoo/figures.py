"""The zoo's figures as plain data, from its cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .arms import ARMS
from .cell import CellResult
from .intervals import Interval, mean_of_pairs, median_of_pairs
from .measures import Pair, Pairs, error_over, has_as_little_error
from .runner import Study
from .scenario import Scenario

__all__ = ["PARTS", "summarise_zoo"]

PARTS = ("all", "tuned", "held out", "fresh")
"""All scenarios, and the parts that they fall into."""


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
        "policies": {each.arm: each.policy for each in cells if each.policy},
        "packages": sorted({each.packages for each in cells if each.packages}),
        "cpu_seconds": round(sum(each.cpu_seconds for each in cells), 1),
        "harmless": [f"{name}, seed {seed}" for name, seed in pairs.harmless()],
        "arms": {arm: _arm_figures(pairs, arm) for arm in pairs.arms},
        "scenarios": {name: _scenario_figures(pairs, by_name[name]) for name in by_name},
    }


def _in_part(part: str, pair: Pair) -> bool:
    return part in ("all", pair.scenario.part)


def _values(pairs: Sequence[Pair], value: Callable[[Pair], float | None]) -> dict[tuple[str, int], float]:
    known = ((pair, value(pair)) for pair in pairs)
    return {(pair.scenario.name, pair.seed): found for pair, found in known if found is not None}


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {name: _rounded(value) for name, value in asdict(interval).items()}


def _arm_figures(pairs: Pairs, arm: str) -> dict[str, Any]:
    own = pairs.of(arm)
    readings, alerts, interventions = pairs.healthy(arm)
    shares = [pair.run.guard_share for pair in own if pair.run.readings]
    delays, in_readings = ([delay for pair in own if (delay := of(pair)) is not None] for of in _DELAYS)
    return {
        "pairs": len(own),
        "recovered": {part: _recovered([pair for pair in own if _in_part(part, pair)]) for part in PARTS},
        "error_alone": {part: _error_alone([pair for pair in own if _in_part(part, pair)]) for part in PARTS},
        "fallen": sum(pair.has_fallen for pair in own),
        "detected": _share([pair.detected_at is not None for pair in own if pair.run.readings and pair.has_fallen]),
        "delay_steps": {"median": _median(delays), "most": max(delays, default=None)},
        "delay_readings": {"median": _median(in_readings), "most": max(in_readings, default=None)},
        "recovery_steps": _median([pair.recovery_steps for pair in own if pair.is_recovered]),
        "error_ratio": _plain(median_of_pairs(_values(own, lambda pair: pair.error_ratio))),
        "error_ratio_by_scenario_from_1024": _from_1024(own),
        "interventions": _mean([len(pair.run.interventions) for pair in own]),
        "guard_share": _median(shares),
        "healthy": {"readings": readings, "alerts": alerts, "interventions": interventions},
        "beside_own": _beside_own(pairs, own),
    }


_DELAYS: tuple[Callable[[Pair], int | None], ...] = (lambda pair: pair.delay, lambda pair: pair.delay_readings)


def _recovered(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    return _plain(mean_of_pairs(_values(pairs, lambda pair: float(pair.is_recovered))))


def _error_alone(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    return _plain(mean_of_pairs(_values(pairs, lambda pair: float(has_as_little_error(pair.run, pair.twin)))))


def _from_1024(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Return the median of error over best prevention of each scenario with 1024 codes or more."""
    names = dict.fromkeys(pair.scenario.name for pair in pairs if pair.scenario.K >= 1024)
    return {name: _median([pair.error_ratio for pair in pairs if pair.scenario.name == name]) for name in names}


def _beside_own(pairs: Pairs, own: Sequence[Pair]) -> dict[str, Any]:
    """Return how an arm does where the package has a prevention of its own, and by how much better than that."""
    prevented = {(pair.scenario.name, pair.seed): pair for pair in pairs.of("own")}
    mine = [pair for pair in own if (pair.scenario.name, pair.seed) in prevented]

    def gain(pair: Pair) -> float:
        return float(pair.is_recovered) - float(prevented[pair.scenario.name, pair.seed].is_recovered)

    def over_own(pair: Pair) -> float | None:
        return error_over(pair.run, prevented[pair.scenario.name, pair.seed].run.error)

    return {
        "pairs": len(mine),
        "recovered": {part: _recovered([pair for pair in mine if _in_part(part, pair)]) for part in PARTS},
        "gain": _plain(mean_of_pairs(_values(mine, gain))),
        "error_over_own": _plain(median_of_pairs(_values(mine, over_own))),
    }


def _scenario_figures(pairs: Pairs, scenario: Scenario) -> dict[str, Any]:
    arms = {}
    for arm in pairs.arms:
        runs = [run for seed in pairs.seeds if (run := pairs.cell(scenario.name, arm, seed)) is not None]
        if not runs:
            continue
        own = pairs.of(arm, scenario.name)
        twins = {seed: pairs.cell(scenario.name, "twin", seed) for seed in pairs.seeds}
        ratios = [error_over(run, twin.error) for run in runs if (twin := twins[run.seed]) is not None]
        arms[arm] = {
            "seeds": len(runs),
            "error": _median([math.inf if run.error is None else run.error for run in runs]),
            "error_over_twin": _median(ratios),
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
    return _rounded(statistics.median(known)) if known else None


def _rounded(value: float) -> float | None:
    """Return a number as JSON has it: one that is not finite is none there."""
    return round(value, 5) if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.mean(values), 3) if values else None


def _share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None

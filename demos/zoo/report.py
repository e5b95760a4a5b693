"""The zoo's figures as the Markdown page that the docs show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import PARTS

__all__ = ["zoo_as_markdown"]


def zoo_as_markdown(figures: dict[str, Any]) -> str:
    """Return the page: how much was measured, the arms, and each scenario."""
    cells, seeds = figures["cells"], figures["seeds"]
    parts = [
        "# The collapse zoo: figures",
        "",
        "Written by `make zoo` from `zoo.jsonl`, which holds every run; [the page of the zoo](../zoo.md) says what is",
        "measured and how.",
        f"Measured: {cells['measured']} of {cells['asked']} cells, seeds {_listed(seeds)}, in "
        f"{figures['cpu_seconds'] / 60:.0f} CPU minutes. Intervals draw scenarios and seeds anew.",
        f"Fingerprints of the policies: {_fingerprints(figures['policies'])}.",
        f"Made with {'; '.join(figures['packages']) or 'versions that were not written down'}.",
        "" if cells["measured"] >= cells["asked"] else "**The study is not complete:** intervals are wide, or missing.",
        "",
        "## Arms",
        "",
        *_arm_table(figures["arms"]),
        "",
        "## Detection",
        "",
        *_detection_table(figures["arms"]),
        "",
        "## Beside the packages' own prevention",
        "",
        *_own_table(figures["arms"]),
        "",
        "## Healthy codebooks",
        "",
        *_healthy_table(figures["arms"]),
        "",
        *(_BEFORE_ONLY if {"random", "blunt"} & set(figures["arms"]) else ()),
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


def _fingerprints(policies: Mapping[str, str]) -> str:
    """Name each policy once, with the arms that are of it."""
    arms = {mark: [arm for arm, its in policies.items() if its == mark] for mark in policies.values()}
    return "; ".join(f"{mark} ({', '.join(f'`{arm}`' for arm in named)})" for mark, named in arms.items()) or "none"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def _arm_table(arms: dict[str, Any]) -> list[str]:
    lines = [
        f"| arm | pairs | recovered, {' | '.join(PARTS)} | error alone, all | error / best prevention "
        "| interventions | guard's time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in _with_pairs(arms):
        lines.append(
            f"| `{arm}` | {found['pairs']} | {_shares(found['recovered'])} "
            f"| {_interval(found['error_alone']['all'], '.0%')} "
            f"| {_interval(found['error_ratio'], '.2f')} | {_cell(found['interventions'], '.1f')} "
            f"| {_cell(found['guard_share'], '.1%')} |"
        )
    return lines


def _detection_table(arms: dict[str, Any]) -> list[str]:
    lines = [
        "From the cause on, where a codebook fell: median, and in brackets the most.",
        "",
        "| arm | fallen | detected | steps to the alert | readings to the alert | steps to recover |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in _with_pairs(arms):
        if found["detected"] is None:
            continue
        delays = (found[name] for name in ("delay_steps", "delay_readings"))
        cells = (f"{_cell(each['median'], '.0f')} ({_cell(each['most'], '.0f')})" for each in delays)
        lines.append(
            f"| `{arm}` | {found['fallen']} | {found['detected']:.1%} | {' | '.join(cells)} "
            f"| {_cell(found['recovery_steps'], '.0f')} |"
        )
    return lines


def _own_table(arms: dict[str, Any]) -> list[str]:
    lines = [
        "Pairs in which the package has a prevention of its own. *Better by*: the share recovered less that of `own`.",
        "",
        f"| arm | pairs | recovered, {' | '.join(PARTS)} | better by | error / own |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in _with_pairs(arms):
        beside = found["beside_own"]
        if beside["pairs"]:
            lines.append(
                f"| `{arm}` | {beside['pairs']} | {_shares(beside['recovered'])} | {_interval(beside['gain'], '+.0%')} "
                f"| {_interval(beside['error_over_own'], '.2f')} |"
            )
    return lines


def _with_pairs(arms: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(arm, found) for arm, found in arms.items() if found["pairs"]]


def _shares(of_parts: dict[str, Any]) -> str:
    return " | ".join(_interval(of_parts[part], ".0%") for part in PARTS)


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


_BEFORE_ONLY = ("`random` and `blunt` are not run on controls: their readings are of collapses before the cause.", "")
_SHOWN = ("sound", "nothing", "random", "blunt", "own", "rotation", "simvq", "fsq", "default", "upkeep")
_MARKS = {"tuned": "", "held out": " *", "fresh": " +"}


def _scenario_table(scenarios: dict[str, Any]) -> list[str]:
    shown = (*_SHOWN, *_policies(scenarios))
    lines = [
        "Median over seeds of the error over the healthy twin's (1.00); in brackets how many pairs recovered.",
        "",
        f"| scenario | K | twin's perplexity | {' | '.join(shown)} |",
        f"|---|---|---|{'---|' * len(shown)}",
    ]
    for name, found in scenarios.items():
        twin = found["arms"].get("twin")
        if not found["is_collapse"] or twin is None:
            continue
        cells = [_against(found["arms"].get(arm)) for arm in shown]
        lines.append(
            f"| {name}{_MARKS[found['part']]} | {found['K']} | {twin['perplexity']:.0f} | {' | '.join(cells)} |"
        )
    return [
        *lines,
        "",
        "Of the twin: of the worst level. `blunt` and `upkeep`: one seed. * held out from tuning, + added after it.",
    ]


def _policies(scenarios: dict[str, Any]) -> list[str]:
    """Return the arms that are somebody's own policy."""
    arms = dict.fromkeys(arm for found in scenarios.values() for arm in found["arms"])
    return [arm for arm in arms if arm.startswith("policy:")]


def _against(own: dict[str, Any] | None) -> str:
    if own is None:
        return "-"
    ratio = "no number" if own["error_over_twin"] is None else f"{own['error_over_twin']:.2f}"
    return f"{ratio} ({own['recovered']}/{own['pairs']})" if own["pairs"] else ratio


def _control_table(scenarios: dict[str, Any]) -> list[str]:
    shown = ("default", "upkeep", "dense", *_policies(scenarios))
    lines = [
        "Alerts, those of severity `info` too, and interventions a run, in the mean; "
        "error relative to the run without a guard.",
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
        lines.append(f"| {name}{_MARKS[found['part']]} | {nothing['perplexity']:.0f} | {' | '.join(cells)} |")
    return lines


def _interval(found: dict[str, Any] | None, form: str) -> str:
    """Return a value with its interval, without one where a single seed was run."""
    if found is None:
        return "-"
    value, low, high = (
        "no number" if found[key] is None else f"{found[key]:{form}}" for key in ("value", "low", "high")
    )
    return value if found["seeds"] < 2 else f"{value} ({low} - {high})"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _number(value: float | None, form: str) -> str:
    return "no number" if value is None else f"{value:{form}}"

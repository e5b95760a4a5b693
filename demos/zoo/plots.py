"""The zoo's two figures as SVG."""

from __future__ import annotations

import math
from typing import Any

from .svg import draw_frame, draw_line, draw_text

__all__ = ["draw_error", "draw_recovery"]

_WIDTH, _LEFT, _ROW, _TOP = 760, 190, 26, 46
_COLOURS = {"default": "#2f6fb3", "upkeep": "#1b9e77", "nothing": "#999999"}
_OTHER = "#c28a2b"


def draw_recovery(figures: dict[str, Any]) -> str:
    """Draw the share of collapses that each arm ended as well as the healthy twin, with its interval."""
    arms = [(name, found) for name, found in figures["arms"].items() if found["recovered"]["all"] is not None]
    arms = [(name, found) for name, found in arms if name not in ("twin", "dense")]
    body = []
    room = _WIDTH - _LEFT - 60
    for place, (name, found) in enumerate(arms):
        share, y = found["recovered"]["all"], _TOP + place * _ROW
        colour = _COLOURS.get(name, _OTHER)
        body.append(draw_text(_LEFT - 10, y + 13, name, anchor="end"))
        body.append(
            f'<rect x="{_LEFT}" y="{y + 2}" width="{room * share["value"]:.1f}" height="{_ROW - 10}" fill="{colour}"/>'
        )
        if share["high"] > share["low"]:
            body.append(draw_line(_LEFT + room * share["low"], y + 10, _LEFT + room * share["high"], y + 10, width=1.5))
        body.append(draw_text(_LEFT + room * max(share["value"], share["high"]) + 6, y + 14, f"{share['value']:.0%}"))
    base = _TOP + len(arms) * _ROW
    body.append(draw_line(_LEFT, _TOP - 4, _LEFT, base))
    cells = figures["cells"]
    note = f"{cells['measured']} of {cells['asked']} cells; lines are 95 % intervals, scenarios and seeds drawn anew"
    body.append(draw_text(_LEFT, base + 18, note, is_small=True))
    return draw_frame("Collapses that ended as well as the healthy twin", _WIDTH, base + 28, body)


def draw_error(figures: dict[str, Any]) -> str:
    """Draw the error of each collapse relative to its twin: nothing done, best prevention, `default`, `upkeep`."""
    rows = [(name, found["arms"]) for name, found in figures["scenarios"].items() if _can_be_drawn(found)]
    room, most = _WIDTH - _LEFT - 40, 4.0

    def place_of(ratio: float) -> float:
        return _LEFT + room * (min(max(math.log2(ratio), -1.0), most) + 1.0) / (most + 1.0)

    body = []
    base = _TOP + 22 + len(rows) * _ROW
    for power in range(-1, int(most) + 1):
        x = place_of(2.0**power)
        body.append(f'<g opacity="{0.6 if power == 0 else 0.2}">{draw_line(x, _TOP + 14, x, base)}</g>')
        body.append(draw_text(x, base + 14, f"{2.0**power:g}", anchor="middle", is_small=True))
    shown = (("nothing", "nothing"), ("best prevention", ""), ("default", "default"), ("upkeep", "upkeep"))
    for place, (words, arm) in enumerate(shown):
        x = _LEFT + place * 130
        body.append(f'<circle cx="{x}" cy="{_TOP}" r="5" fill="{_COLOURS.get(arm, _OTHER)}"/>')
        body.append(draw_text(x + 10, _TOP + 4, words, is_small=True))
    for place, (name, arms) in enumerate(rows):
        y = _TOP + 32 + place * _ROW
        body.append(draw_text(_LEFT - 10, y + 4, name, anchor="end"))
        for _, arm in shown:
            ratio = _ratio_of(arms, arm)
            if ratio is not None:
                x = place_of(ratio)
                body.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{_COLOURS.get(arm, _OTHER)}" opacity="0.85"/>')
    note = "error / the healthy twin's, median over seeds; beyond 16 at 16"
    body.append(draw_text(_LEFT, base + 32, note, is_small=True))
    return draw_frame("How collapses end", _WIDTH, base + 42, body)


def _can_be_drawn(found: dict[str, Any]) -> bool:
    return found["is_collapse"] and bool(found["arms"].get("twin", {}).get("error"))


def _ratio_of(arms: dict[str, Any], arm: str) -> float | None:
    """Return the error of an arm over the twin's; the least of the preventions' where none is named."""
    named = (arm,) if arm else ("own", "rotation", "simvq", "fsq")
    ratios = [arms[each]["error_over_twin"] for each in named if each in arms]
    return min((ratio for ratio in ratios if ratio is not None), default=None)

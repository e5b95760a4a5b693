"""The zoo's two figures as SVG: text that a page shows as it is, light or dark, without a library or a browser.

plotly draws the page of `collapse-guard report`, but writes an SVG only where a browser is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["draw_error", "draw_recovery"]

_WIDTH, _LEFT, _ROW, _TOP = 760, 190, 26, 46
_COLOURS = {"default": "#2f6fb3", "upkeep": "#1b9e77", "nothing": "#999999"}
_OTHER = "#c28a2b"
_STYLE = "text{font:13px system-ui,sans-serif;fill:currentColor}.small{font-size:11px;opacity:.75}svg{color:#333}" + (
    "@media(prefers-color-scheme:dark){svg{color:#ddd}}"
)


def _frame(title: str, height: int, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<text x="0" y="18" font-weight="600">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def _line(x: float, y: float, x2: float, y2: float, *, colour: str = "currentColor", width: float = 1.0) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", small: bool = False) -> str:
    kind = ' class="small"' if small else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def draw_recovery(figures: dict[str, Any]) -> str:
    """Draw the share of collapses that each arm ended as well as the healthy twin, with its interval."""
    arms = [(name, found) for name, found in figures["arms"].items() if found["recovered"]["all"] is not None]
    arms = [(name, found) for name, found in arms if name not in ("twin", "dense")]
    body = []
    room = _WIDTH - _LEFT - 60
    for place, (name, found) in enumerate(arms):
        share, y = found["recovered"]["all"], _TOP + place * _ROW
        colour = _COLOURS.get(name, _OTHER)
        body.append(_text(_LEFT - 10, y + 13, name, anchor="end"))
        body.append(
            f'<rect x="{_LEFT}" y="{y + 2}" width="{room * share["value"]:.1f}" height="{_ROW - 10}" fill="{colour}"/>'
        )
        if share["high"] > share["low"]:
            body.append(_line(_LEFT + room * share["low"], y + 10, _LEFT + room * share["high"], y + 10, width=1.5))
        body.append(_text(_LEFT + room * max(share["value"], share["high"]) + 6, y + 14, f"{share['value']:.0%}"))
    base = _TOP + len(arms) * _ROW
    body.append(_line(_LEFT, _TOP - 4, _LEFT, base))
    cells = figures["cells"]
    note = f"{cells['measured']} of {cells['asked']} cells; lines are 95 % intervals over {len(figures['seeds'])} seeds"
    body.append(_text(_LEFT, base + 18, note, small=True))
    return _frame("Collapses that ended as well as the healthy twin", base + 28, body)


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
        body.append(f'<g opacity="{0.6 if power == 0 else 0.2}">{_line(x, _TOP + 14, x, base)}</g>')
        body.append(_text(x, base + 14, f"{2.0**power:g}", anchor="middle", small=True))
    shown = (("nothing", "nothing"), ("best prevention", ""), ("default", "default"), ("upkeep", "upkeep"))
    for place, (words, arm) in enumerate(shown):
        x = _LEFT + place * 130
        body.append(f'<circle cx="{x}" cy="{_TOP}" r="5" fill="{_COLOURS.get(arm, _OTHER)}"/>')
        body.append(_text(x + 10, _TOP + 4, words, small=True))
    for place, (name, arms) in enumerate(rows):
        y = _TOP + 32 + place * _ROW
        body.append(_text(_LEFT - 10, y + 4, name, anchor="end"))
        for _, arm in shown:
            error = _error_of(arms, arm)
            if error is not None:
                x = place_of(error / arms["twin"]["error"])
                body.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{_COLOURS.get(arm, _OTHER)}" opacity="0.85"/>')
    note = "error / the healthy twin's, median over seeds; beyond 16 at 16"
    body.append(_text(_LEFT, base + 32, note, small=True))
    return _frame("How collapses end", base + 42, body)


def _can_be_drawn(found: dict[str, Any]) -> bool:
    return found["is_collapse"] and bool(found["arms"].get("twin", {}).get("error"))


def _error_of(arms: dict[str, Any], arm: str) -> float | None:
    """Return the error of an arm; the least of the preventions' where none is named."""
    if arm:
        found: float | None = arms[arm]["error"] if arm in arms else None
        return found
    errors = [arms[peer]["error"] for peer in ("own", "rotation", "simvq", "fsq") if peer in arms]
    return min((error for error in errors if error is not None), default=None)

"""The picture of the ablation: test accuracy of every proposal, with the factor missing and with it put back."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .ablation_arms import ABLATION_ARMS
from .ablation_runs import AblationRun
from .zoo.svg import draw_frame, draw_line, draw_text

__all__ = ["draw_ablation"]

_WIDTH, _LEFT, _ROW, _TOP = 760, 210, 30, 62
_COLOURS = {"missing": "#c2571a", "put back": "#2f6fb3", "-": "#777777"}
_WORDS = {"missing": "factor missing", "put back": "factor put back", "-": "no such factor"}


def draw_ablation(runs: Sequence[AblationRun]) -> str:
    """Return an SVG image: the mean accuracy of each arm as a dot, on a line from the least to the largest."""
    room = _WIDTH - _LEFT - 30
    keys = list(dict.fromkeys(key for key, _ in ABLATION_ARMS if any(run.arm == key for run in runs)))
    base = _TOP + len(keys) * _ROW

    def place_of(accuracy: float) -> float:
        return _LEFT + room * accuracy

    body = []
    for place, (factor, words) in enumerate(_WORDS.items()):
        x = _LEFT + place * 150.0
        body.append(f'<circle cx="{x:.0f}" cy="{_TOP - 26}" r="5" fill="{_COLOURS[factor]}"/>')
        body.append(draw_text(x + 10, _TOP - 22, words, is_small=True))
    for tick in range(0, 11, 2):
        x = place_of(tick / 10)
        body.append(f'<g opacity="0.2">{draw_line(x, _TOP - 8, x, base)}</g>')
        body.append(draw_text(x, base + 14, f"{tick / 10:g}", anchor="middle", is_small=True))
    for row, key in enumerate(keys):
        y, name = _TOP + row * _ROW + 10, key
        for factor, shift in (("missing", -4), ("put back", 5), ("-", 0)):
            values = [run.accuracy for run in runs if (run.arm, run.factor) == (key, factor)]
            if values:
                name, colour = ABLATION_ARMS[key, factor].name, _COLOURS[factor]
                low, mean, high = map(place_of, (min(values), statistics.mean(values), max(values)))
                body.append(draw_line(low, y + shift, high, y + shift, colour=colour, width=2.0))
                body.append(f'<circle cx="{mean:.1f}" cy="{y + shift}" r="4.5" fill="{colour}"/>')
        body.append(draw_text(_LEFT - 12, y + 5, name, anchor="end"))
    seeds = len({run.seed for run in runs})
    note = f"test accuracy: mean of {seeds} seeds, lines from the least to the largest; 0.1 is guessing"
    body.append(draw_text(_LEFT, base + 32, note, is_small=True))
    return draw_frame("Against the collapse: what was proposed, and what it brings", _WIDTH, base + 42, body)

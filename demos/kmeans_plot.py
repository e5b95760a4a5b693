"""The picture of the k-means bench: quality over time of every method, one panel for each data set and K.

Plain SVG, so that it needs no library and stays small. Both axes are relative to the reference method: time on a
logarithmic scale to the right, error upwards; what lies further left and lower is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

from .kmeans_cells import BenchFit

__all__ = ["quality_over_time"]

_WIDTH, _HEIGHT = 300, 220  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 40
_KEY = 26
_COLOURS = {"fit_codebook": "#0b6e99", "FAISS": "#c2571a", "MiniBatch": "#7a5195", "sklearn": "#3d3d3d"}
_SHAPES = {"fit_codebook": 6, "FAISS": 4, "MiniBatch": 4, "sklearn": 5}  # radius
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600}.m{fill:#666;font-size:11px}"
    "line{stroke:#ddd}.one{stroke:#999;stroke-dasharray:4 3}.bar{stroke:#0b6e99;stroke-dasharray:2 3}"
)


def quality_over_time(fits: Sequence[BenchFit], *, reference: str) -> str:
    """Return an SVG image: error and CPU time of each method relative to the reference, the mean over shared seeds.

    Args:
        fits: what was measured.
        reference: the method that stands at (1, 1); cells without it are left out.
    """
    panels = {cell: points for cell in _cells(fits) if (points := _points(fits, cell, reference))}
    codes = sorted({K for _, K in panels})
    datasets = sorted({data for data, _ in panels})
    width, height = _WIDTH * max(len(codes), 1), _HEIGHT * max(len(datasets), 1) + _KEY
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>Error and CPU time of k-means methods, relative to {escape(reference)}</title>",
        f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(),
    ]
    for (data, K), points in panels.items():
        x, y = codes.index(K) * _WIDTH, datasets.index(data) * _HEIGHT + _KEY
        parts += [f'<g transform="translate({x},{y})">', *_panel(f"{data}, K = {K}", points), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _cells(fits: Sequence[BenchFit]) -> list[tuple[str, int]]:
    return sorted({(fit.data, fit.K) for fit in fits})


def _points(fits: Sequence[BenchFit], cell: tuple[str, int], reference: str) -> dict[str, tuple[float, float]]:
    """Return (time, error) of each method relative to the reference."""
    here = [fit for fit in fits if (fit.data, fit.K) == cell]
    base = {fit.seed: fit for fit in here if fit.method == reference}
    found: dict[str, tuple[float, float]] = {}
    for method in sorted({fit.method for fit in here}):
        pairs = [(fit, base[fit.seed]) for fit in here if fit.method == method and fit.seed in base]
        if pairs:
            found[method] = (
                statistics.mean(mine.cpu_seconds / other.cpu_seconds for mine, other in pairs),
                statistics.mean(mine.inertia / other.inertia for mine, other in pairs),
            )
    return found


def _family(method: str) -> str:
    return next((name for name in _COLOURS if method.startswith(name)), "sklearn")


def _legend() -> list[str]:
    parts, x = [], _LEFT
    for name, words in zip(_COLOURS, ("fit_codebook", "FAISS", "MiniBatchKMeans", "sklearn KMeans"), strict=True):
        parts.append(
            f'<circle cx="{x}" cy="14" r="5" fill="{_COLOURS[name]}"/><text x="{x + 10}" y="18">{words}</text>'
        )
        x += 40 + 8 * len(words)
    return parts


def _panel(title: str, points: dict[str, tuple[float, float]]) -> list[str]:
    """Draw one cell; the dashed lines are the reference's error and a fifth of its time."""
    times, errors = [time for time, _ in points.values()], [error for _, error in points.values()]
    low, high = math.log10(min(*times, 0.1)) - 0.05, math.log10(max(*times, 1.0)) + 0.05
    bottom, top = min(*errors, 1.0), max(*errors, 1.0)
    bottom, top = bottom - 0.06 * (top - bottom) - 1e-3, top + 0.06 * (top - bottom) + 1e-3

    def right(time: float) -> float:
        return _LEFT + (math.log10(time) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def down(error: float) -> float:
        return _TOP + (top - error) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    end, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text class="t" x="{_LEFT}" y="20">{escape(title)}</text>']
    for tick in (0.1, 0.2, 0.5, 1.0):
        x = right(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{floor}"{" class=bar" * (tick == 0.2)}/>')
        parts.append(f'<text class="m" x="{x:.1f}" y="{floor + 14}" text-anchor="middle">{tick:g}</text>')
    for tick in sorted({bottom, 1.0, top}):
        y = down(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"{" class=one" * (tick == 1.0)}/>')
        if tick == 1.0 or abs(y - down(1.0)) > 12:  # labels that would lie on one another
            parts.append(f'<text class="m" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    parts.append(f'<text class="m" x="{end}" y="{_HEIGHT - 8}" text-anchor="end">time, relative</text>')
    parts.append(f'<text class="m" x="4" y="{_TOP - 8}">error</text>')
    for method, (time, error) in points.items():
        family = _family(method)
        parts.append(
            f'<circle cx="{right(time):.1f}" cy="{down(error):.1f}" r="{_SHAPES[family]}" fill="{_COLOURS[family]}" '
            f'fill-opacity="0.85"><title>{escape(method)}: time {time:.3f}, error {error:.4f}</title></circle>'
        )
    return [part.replace(" class=bar", ' class="bar"').replace(" class=one", ' class="one"') for part in parts]

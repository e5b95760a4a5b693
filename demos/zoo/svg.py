"""Pieces of plain SVG: text that a page shows as it is, light or dark, without a library or a browser.

plotly draws the page of `collapse-guard report`, but writes an SVG only where a browser is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["draw_frame", "draw_line", "draw_text"]

_STYLE = "text{font:13px system-ui,sans-serif;fill:currentColor}.small{font-size:11px;opacity:.75}svg{color:#333}" + (
    "@media(prefers-color-scheme:dark){svg{color:#ddd}}"
)


def draw_frame(title: str, width: int, height: int, body: Sequence[str]) -> str:
    """Return a whole image with its title on top of its body."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<text x="0" y="18" font-weight="600">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def draw_line(x: float, y: float, x2: float, y2: float, *, colour: str = "currentColor", width: float = 1.0) -> str:
    """Return a line between two points."""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def draw_text(x: float, y: float, words: str, *, anchor: str = "start", is_small: bool = False) -> str:
    """Return words that begin, or with `anchor` end or lie centred, at a point."""
    kind = ' class="small"' if is_small else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'

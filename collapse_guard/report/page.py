"""One story or several as a page. Whatever the log says is escaped; plots hold numbers and words of ours only."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from collapse_guard.history.story import FIELDS, Story, thinned
from collapse_guard.history.telling import as_data, five_lines

__all__ = ["MissingExtraError", "html_of", "markdown_of"]

_MOST_POINTS = 150_000
"""Of all plots of a page together; some 3 MB."""

_LABELS = {"perplexity": "perplexity", "usage": "usage", "norm_ratio": "code / latent norm"}
_ROWS = 12


class MissingExtraError(ImportError):
    """The libraries that an HTML page is built with are not installed."""


def html_of(stories: Mapping[str, Story]) -> str:
    """Return one self-contained page.

    Args:
        stories: by the label under which each is shown.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed; says what to do.
    """
    try:
        from jinja2 import Environment
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        hint = 'pip install "collapse_guard[report]", or --format md'
        raise MissingExtraError(
            f"an HTML report needs plotly and jinja2, and {error.name} is missing: {hint}"
        ) from error
    source = (files("collapse_guard.report") / "report.html.j2").read_text(encoding="utf-8")
    most = max(50, _MOST_POINTS // max(1, len(FIELDS) * sum(len(each.series) for each in stories.values())))
    most = min(most, 2000)
    runs = [_run(label, story, most) for label, story in stories.items()]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = lambda value: f"{value:.4g}" if isinstance(value, float) else value
    return environment.from_string(source).render(runs=runs, plotly=get_plotlyjs(), most=most)


def _run(label: str, story: Story, most: int) -> dict[str, Any]:
    data = as_data(story)
    books = []
    for facts, (name, series) in zip(data["codebooks"], story.series.items(), strict=True):
        thin = len(series.steps) > most
        size = len(series.steps)
        picks = sorted({round(at * (size - 1) / (_ROWS - 1)) for at in range(_ROWS)}) if size else []
        rows = [[f"{series.steps[at]:.0f}", *(f"{series.values[key][at]:.4g}" for key in FIELDS)] for at in picks]
        books.append(facts | {"figure": _figure(story, name, most, data), "thin": thin, "rows": rows})
    policy = json.dumps(data["policy"], indent=2, ensure_ascii=False) if data["policy"] else ""
    return {"label": label, "lines": five_lines(story), "data": data, "books": books, "policy": policy}


def _figure(story: Story, name: str, most: int, data: Mapping[str, Any]) -> str:
    """Return data and layout of one codebook's plot as JSON that is safe inside a script element."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    series = story.series[name]
    figure: Any = make_subplots(rows=len(FIELDS), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, key in enumerate(FIELDS, start=1):
        x, y = thinned(series.steps, series.values[key], most)
        mode = "lines+markers" if len(x) < 60 else "lines"
        line = go.Scatter(
            x=x, y=y, mode=mode, name=_LABELS[key], line={"color": "#3b82c4", "width": 2}, connectgaps=False
        )
        figure.add_trace(line, row=row, col=1)
        if name in story.evaluated:
            shown = story.evaluated[name]
            x, y = thinned(shown.steps, shown.values[key], most)
            dots = {"color": "#7a4fbf", "size": 7, "symbol": "diamond"}
            figure.add_trace(
                go.Scatter(x=x, y=y, mode="markers", name=f"{_LABELS[key]} in evaluation", marker=dots), row=row, col=1
            )
        figure.update_yaxes(title_text=_LABELS[key], row=row, col=1)
        for value in _thresholds(data["policy"], key):
            figure.add_hline(y=value, line={"dash": "dot", "color": "#d9534f", "width": 1}, row=row, col=1)
    marks = [
        each
        for each in data["ledger"]
        if each["codebook"] == name and each["step"].isdecimal() and len(each["step"]) < 16
    ][:100]
    for each in marks:
        figure.add_vline(x=int(each["step"]), line={"dash": "dash", "color": "#d98c1f", "width": 1.5})
    for each in marks[:12]:
        label = html.escape(f"#{each['attempt']}"[:8])
        figure.add_annotation(x=int(each["step"]), y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
    figure.update_xaxes(title_text="step", row=len(FIELDS), col=1)
    grey = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    figure.update_xaxes(**grey)
    figure.update_yaxes(**grey)
    clear = "rgba(0,0,0,0)"
    margin = {"l": 60, "r": 12, "t": 28, "b": 44}
    figure.update_layout(
        template="none", height=480, showlegend=False, paper_bgcolor=clear, plot_bgcolor=clear, margin=margin
    )
    return str(figure.to_json()).replace("<", "\\u003c")


def _thresholds(policy: Any, key: str) -> list[float]:
    """Return the plain numbers that the policy's rules compare a field with."""
    text = json.dumps(policy.get("rules", [])) if isinstance(policy, Mapping) else ""
    found = re.findall(rf"(?<![\w(]){key} *(?:<=|>=|<|>) *(\d+(?:\.\d+)?)(?![\d.e])", text)
    return sorted({float(each) for each in found})[:6]


def markdown_of(stories: Mapping[str, Story]) -> str:
    """Return the stories as Markdown; what comes from the log is escaped."""
    parts = ["# Report of collapse_guard", ""]
    for label, story in stories.items():
        data = as_data(story)
        parts += [f"## {_md(label)}", "", *(f"- **{head}** {_md(text)}" for head, text in five_lines(story)), ""]
        books = [
            [each["name"], each["readings"], each["health"], each["lowest"]["perplexity"], each["last"]["perplexity"]]
            for each in data["codebooks"]
        ]
        parts += _table(["codebook", "readings", "health", "lowest perplexity", "last perplexity"], books)
        names = ["step", "codebook", "action", "outcome", "summary"]
        parts += _table(names, [[each[name] for name in names] for each in data["ledger"]])
        names = ["step", "where", "reason"]
        parts += _table(["step", "fault in", "reason"], [[each[name] for name in names] for each in data["faults"]])
        if data["lines_skipped"] or data["left_out"]:
            parts += [f"{data['lines_skipped']} lines were no events; {data['left_out']} records are left out.", ""]
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return []
    body = [f"| {' | '.join(_md(str(cell)) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *body, ""]


def _md(text: str) -> str:
    return html.escape(re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", text), quote=False)

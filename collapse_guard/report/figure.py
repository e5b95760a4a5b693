"""The plots, as plotly figures: timelines with thresholds and interventions, use of the codes, and their places.

They hold numbers and words of ours only; what a log says is escaped by whoever shows it.
"""

from __future__ import annotations

import html
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from collapse_guard.history.rules import number
from collapse_guard.history.story import FIELDS, Series, thinned
from collapse_guard.policies import Policy, Rule

__all__ = ["MissingExtraError", "figure_of_history", "heat_map", "places", "thresholds", "timelines"]

LABELS = {"perplexity": "perplexity", "usage": "usage", "norm_ratio": "code / latent norm"}
_COLOURS = ("#3b82c4", "#c2571a", "#2f9e63", "#8a5cc2", "#b8860b", "#c23b6f", "#3aa6a6", "#7a7f87")
_CLEAR = "rgba(0,0,0,0)"
_GREY = "rgba(128,128,128,.25)"
_MOST_MARKS = 100
_MOST_THRESHOLDS = 6

Course = Mapping[str, Any]
"""`steps` and, by field, the values of one codebook."""


class MissingExtraError(ImportError):
    """The libraries that a plot or an HTML page is built with are not installed."""


def thresholds(rules: Iterable[Rule], codebook: str, field: str) -> list[float]:
    """Return the numbers with which the rules of a codebook compare a field when they decide whether to fire.

    A perplexity that has to be large is not among them: it says where a rule may look at something else.
    """
    found = {
        each.threshold
        for rule in rules
        if rule.applies_to(codebook)
        for each in rule.when.comparisons()
        if each.field == field and each.function == "value" and not (field == "perplexity" and each.sign[0] == ">")
    }
    return sorted(found)[:_MOST_THRESHOLDS]


def timelines(
    courses: Mapping[str, tuple[array[float], Mapping[str, array[float]]]],
    rules: Sequence[Rule],
    marks: Sequence[tuple[int, str]],
    most: int,
    evaluated: Series | None = None,
) -> Any:
    """Return one plot below another for the fields of the readings, with thresholds and interventions.

    Args:
        courses: codebook -> its steps and, by field, its values. rules: of the policy.
        marks: (step, what) of interventions. most: points of a line.
        evaluated: readings of evaluation, which are drawn as points.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    graph, subplots = _plotly()
    figure = subplots.make_subplots(rows=len(FIELDS), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, key in enumerate(FIELDS, start=1):
        for index, (name, (steps, values)) in enumerate(courses.items()):
            x, y = thinned(steps, values[key], most)
            line = graph.Scatter(
                x=x,
                y=y,
                mode="lines+markers" if len(x) < 60 else "lines",
                name=html.escape(name) if len(courses) > 1 else LABELS[key],
                legendgroup=str(index),
                showlegend=len(courses) > 1 and row == 1,
                line={"color": _COLOURS[index % len(_COLOURS)], "width": 2},
                connectgaps=False,
            )
            figure.add_trace(line, row=row, col=1)
        if evaluated is not None:
            x, y = thinned(evaluated.steps, evaluated.values[key], most)
            dots = {"color": "#7a4fbf", "size": 7, "symbol": "diamond"}
            shown = graph.Scatter(x=x, y=y, mode="markers", name=f"{LABELS[key]} in evaluation", marker=dots)
            figure.add_trace(shown, row=row, col=1)
        figure.update_yaxes(title_text=LABELS[key], row=row, col=1)
        bounds = {value for name in courses for value in thresholds(rules, name, key)}
        for value in sorted(bounds)[:_MOST_THRESHOLDS]:
            figure.add_hline(y=value, line={"dash": "dot", "color": "#d9534f", "width": 1}, row=row, col=1)
    for step, _ in marks[:_MOST_MARKS]:
        figure.add_vline(x=step, line={"dash": "dash", "color": "#d98c1f", "width": 1.5})
    for step, what in marks[:12]:
        label = html.escape(what[:8])
        figure.add_annotation(x=step, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
    figure.update_xaxes(title_text="step", row=len(FIELDS), col=1)
    return _plain(figure, height=480)


def heat_map(steps: Sequence[float], uses: Sequence[Sequence[int]], codes: int) -> Any:
    """Return how often codes were used over time: each column the share of its tokens, on a root scale.

    Args:
        steps: of the readings. uses: for each, tokens by neighbouring codes. codes: K.
    """
    graph, _ = _plotly()
    shares = [[count / max(1, sum(column)) for count in column] for column in uses]
    rows = [[round(math.sqrt(column[at]), 3) for column in shares] for at in range(len(uses[0]))]
    edges = [round(at * codes / len(uses[0])) for at in range(len(uses[0]))]
    scale = [[0, "#20242c"], [0.25, "#2b5d8a"], [0.6, "#3b9ac4"], [1, "#ffe9a8"]]
    bar = {"title": "root of share", "thickness": 10}
    figure = graph.Figure(graph.Heatmap(x=list(steps), y=edges, z=rows, colorscale=scale, zmin=0, colorbar=bar))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="code")
    return _plain(figure, height=260)


def places(sketch: Mapping[str, Any]) -> Any:
    """Return latents and codes before and after an intervention, on the two main axes of the latents."""
    graph, _ = _plotly()
    figure = graph.Figure()
    kinds = [("latents", "#9aa3ad", "circle", 5), ("before", "#d9534f", "x", 7), ("after", "#2f9e63", "diamond", 7)]
    for name, colour, symbol, size in kinds:
        points = [(number(x), number(y)) for x, y in pairs_of(sketch.get(name))]
        label = name if name == "latents" else f"codes {name}"
        marker = {"color": colour, "symbol": symbol, "size": size, "opacity": 0.8}
        x, y = [each[0] for each in points], [each[1] for each in points]
        figure.add_trace(graph.Scatter(x=x, y=y, mode="markers", name=label, marker=marker))
    cloud = [(number(x) or 0.0, number(y) or 0.0) for x, y in pairs_of(sketch.get("latents"))]
    reach = 1.6 * max((max(abs(x), abs(y)) for x, y in cloud), default=1.0) or 1.0
    figure.update_xaxes(range=[-reach, reach], title_text="first main axis of the latents")
    figure.update_yaxes(range=[-reach, reach], title_text="second")
    return _plain(figure, height=320, legend=True)


def outside(sketch: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of the codes shown, before and after, lie beyond the frame that `places` draws."""
    cloud = [(number(x) or 0.0, number(y) or 0.0) for x, y in pairs_of(sketch.get("latents"))]
    reach = 1.6 * max((max(abs(x), abs(y)) for x, y in cloud), default=1.0) or 1.0
    counts = [
        sum(max(abs(number(x) or 0.0), abs(number(y) or 0.0)) > reach for x, y in pairs_of(sketch.get(name)))
        for name in ("before", "after")
    ]
    return counts[0], counts[1]


def pairs_of(points: Any) -> list[tuple[Any, Any]]:
    """Return the points of a log's sketch that are pairs."""
    those = points if isinstance(points, list) else []
    return [(each[0], each[1]) for each in those if isinstance(each, list) and len(each) == 2]


def figure_of_history(records: Sequence[Mapping[str, Any]], policy: Policy) -> Any:
    """Return the timelines of flat records, as `Guard.history` returns them; all codebooks in one figure.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    courses: dict[str, tuple[array[float], dict[str, array[float]]]] = {}
    for record in records:
        if record["event"] == "reading" and record["stage"] != "eval":
            empty = (array("d"), {key: array("d") for key in FIELDS})
            steps, values = courses.setdefault(str(record["codebook"]), empty)
            steps.append(record["step"])
            for key in FIELDS:
                known = number(record[key])
                values[key].append(math.nan if known is None else known)
    acts = [each for each in records if each["event"] == "intervention"]
    marks = list(dict.fromkeys((int(each["step"]), f"#{each['attempt']}") for each in acts))
    return timelines(courses, policy.rules, marks, 2000)


def _plotly() -> tuple[Any, Any]:
    try:
        from plotly import graph_objects, subplots
    except ImportError as error:
        hint = 'pip install "collapse_guard[report]"'
        raise MissingExtraError(f"a plot needs plotly, and {error.name} is missing: {hint}") from error
    return graph_objects, subplots


def _plain(figure: Any, *, height: int, legend: bool = False) -> Any:
    grey = {"gridcolor": _GREY, "zeroline": False}
    figure.update_xaxes(**grey)
    figure.update_yaxes(**grey)
    margin = {"l": 60, "r": 12, "t": 28, "b": 44}
    options: dict[str, Any] = {"showlegend": True} if legend else {}
    figure.update_layout(
        template="none", height=height, paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR, margin=margin, **options
    )
    return figure

"""One story or several as a page. Whatever the log says is escaped; plots hold numbers and words of ours only."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from collapse_guard.history.rules import facts_of
from collapse_guard.history.story import FIELDS, Story
from collapse_guard.history.telling import as_data, compared, five_lines

from .figure import MissingExtraError, heat_map, outside, places, timelines

__all__ = ["MissingExtraError", "html_of", "markdown_of"]

_MOST_POINTS = 150_000
"""Of all plots of a page together; some 3 MB."""

_ROWS = 12
_MOST_SKETCHES = 24
"""Interventions of a run whose places are drawn."""


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
    rows = compared(stories) if len(stories) > 1 else []
    return environment.from_string(source).render(runs=runs, compared=rows, plotly=get_plotlyjs(), most=most)


def _run(label: str, story: Story, most: int) -> dict[str, Any]:
    data = as_data(story)
    books = []
    for facts, (name, series) in zip(data["codebooks"], story.series.items(), strict=True):
        thin = len(series.steps) > most
        size = len(series.steps)
        picks = sorted({round(at * (size - 1) / (_ROWS - 1)) for at in range(_ROWS)}) if size else []
        rows = [[f"{series.steps[at]:.0f}", *(f"{series.values[key][at]:.4g}" for key in FIELDS)] for at in picks]
        plots = {"figure": _timelines(story, name, most, data), "uses": _uses(story, name)}
        books.append(facts | plots | {"thin": thin, "rows": rows})
    policy = json.dumps(data["policy"], indent=2, ensure_ascii=False) if data["policy"] else ""
    run = {"label": label, "lines": five_lines(story), "data": data, "books": books, "policy": policy}
    return run | {"sketches": _sketches(data)}


def _timelines(story: Story, name: str, most: int, data: Mapping[str, Any]) -> str:
    series = story.series[name]
    acts = [each for each in data["ledger"] if each["codebook"] == name]
    marks = [
        (int(each["step"]), f"#{each['attempt']}")
        for each in acts
        if each["step"].isdecimal() and len(each["step"]) < 16
    ]
    rules = list(facts_of(story.attached).rules.values())
    return _json(timelines({name: (series.steps, series.values)}, rules, marks, most, story.evaluated.get(name)))


def _uses(story: Story, name: str) -> str:
    """Return the heat map of a codebook; nothing where the log holds fewer than two histograms of it."""
    uses = story.series[name].uses
    return _json(heat_map(*uses.columns(), uses.codes)) if len(uses.kept) > 1 else ""


def _sketches(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for act in data["ledger"]:
        if isinstance(sketch := act.get("sketch"), Mapping) and len(found) < _MOST_SKETCHES:
            before, after = outside(sketch)
            facts = {name: act[name] for name in ("attempt", "step", "codebook", "action", "outcome")}
            beyond = {"before": before, "after": after, "share": sketch.get("share")}
            found.append(facts | beyond | {"figure": _json(places(sketch))})
    return found


def _json(figure: Any) -> str:
    """Return data and layout of a plot as JSON that is safe inside a script element."""
    return str(figure.to_json()).replace("<", "\\u003c")


def markdown_of(stories: Mapping[str, Story]) -> str:
    """Return the stories as Markdown; what comes from the log is escaped."""
    parts = ["# Report of collapse_guard", ""]
    if len(stories) > 1:
        heads, *rows = compared(stories)
        parts += ["## Side by side", "", *_table([_md(head) for head in heads], rows)]
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

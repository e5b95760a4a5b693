"""`collapse-guard report`: what a run's log says, as one page for people or as data for programs."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .console import complain, say

__all__ = ["compare", "report"]


class _Kind(str, Enum):
    html = "html"
    md = "md"
    json = "json"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One run, or several side by side.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; html: report.html.")] = None,
    kind: Annotated[_Kind, typer.Option("--format", help="html, md or json.")] = _Kind.html,
) -> None:
    """Tell what happened to the codebooks of a run: one self-contained page, Markdown, or JSON."""
    from collapse_guard.history.story import Story, read_story, visible
    from collapse_guard.history.telling import as_data
    from collapse_guard.report import MissingExtraError, html_of, markdown_of

    stories: dict[str, Story] = {}
    for path in runs:
        try:
            label = visible(path.name or path.resolve().name)
            stories[label if label not in stories else f"{label} ({len(stories) + 1})"] = read_story(path)
        except (OSError, ValueError) as error:
            complain(
                f"{path}: {error.strerror if isinstance(error, OSError) else error}. Give the log directory of a run."
            )
    if kind is _Kind.json:
        text = json.dumps({name: as_data(story) for name, story in stories.items()}, indent=2, ensure_ascii=False)
    elif kind is _Kind.md:
        text = markdown_of(stories)
    else:
        try:
            text = html_of(stories)
        except MissingExtraError as error:
            complain(str(error))
        output = output or Path("report.html")
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        complain(f"{output}: {error.strerror}. Give another path: -o report.html.")
    say(f"{output}: {len(text.encode(errors='replace')) / 1e6:.1f} MB")


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="The log directory of a run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="That of the run to hold against it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; html: report.html.")] = None,
    kind: Annotated[_Kind, typer.Option("--format", help="html, md or json.")] = _Kind.md,
) -> None:
    """Put two runs side by side: what differs in policy, outcome, perplexity and cost, then both reports."""
    report([first, second], output, kind)

"""What the commands share: how text is printed, and how a policy that cannot be used ends a command.

Whatever comes from a file (names, reasons, paths) is printed as text and never read as markup.
"""

from __future__ import annotations

import json
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from collapse_guard.policies import Policy, PolicyError, load_policy, preset_names

__all__ = ["Format", "complain", "folded", "is_source", "missing", "policy_from", "say", "say_json", "width"]

_NARROWEST, _WIDEST = 60, 100


class Format(str, Enum):
    """How a result is printed."""

    text = "text"
    json = "json"


def width() -> int:
    """Return how many columns prose may take: as many as the terminal has, 80 where there is none, 100 at most."""
    return max(_NARROWEST, min(_WIDEST, Console().width))


def folded(text: str, *, hanging: int = 0) -> str:
    """Fold prose into lines of that width; all but the first are indented by `hanging` columns. Names stay whole."""
    return textwrap.fill(
        text,
        width(),
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def say(text: str) -> None:
    """Print a text as it is, lines as long as they are."""
    Console().print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_json(value: Any) -> None:
    """Print a value as JSON, for other programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def complain(text: str) -> NoReturn:
    """Say on stderr why the input cannot be used, and exit with 2."""
    Console(stderr=True).print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def is_source(source: str) -> bool:
    """Whether a policy can be looked for there: the name of a preset, or a file."""
    return source in preset_names() or Path(source).is_file()


def missing(source: str) -> str:
    """Say that there is no such policy, and what there is."""
    presets = ", ".join(preset_names())
    why = "that is a directory" if Path(source).is_dir() else "there is no such file"
    return f"{source}: {why}. Give the path of a policy file, or a preset: {presets}."


def policy_from(source: str) -> Policy:
    """Load a policy, or say everything that is wrong with it and exit with 2."""
    if not is_source(source):
        complain(missing(source))
    try:
        return load_policy(source)
    except PolicyError as error:
        complain(str(error))

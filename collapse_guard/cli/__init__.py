"""The command line: the one place that may import anything, and that nothing imports.

One module a command; this one only lists them. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .check import check
from .demo import demo
from .doctor import doctor
from .explain import explain
from .rehearse import rehearse
from .replay import replay
from .report import compare, report
from .schema import schema
from .test import test
from .tokenize import tokenize
from .watch import watch
from .zoo import zoo

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=("Watch the codebooks of vector-quantised models while they train, and repair them."),
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Keep subcommands as subcommands, also while there are few."""
    if version:
        from collapse_guard import __version__

        typer.echo(__version__)
        raise typer.Exit


for _command in (demo, check, test, rehearse, replay, watch, report, compare, explain, schema, doctor, tokenize):
    app.command()(_command)


app.add_typer(zoo, name="zoo")


def main() -> None:
    """Run the command line."""
    app()

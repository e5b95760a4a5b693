"""The command line: the one place that may import anything, and that nothing imports.

Exit codes: 0 fine, 1 a check failed, 2 bad usage or input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Training runs per arm.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each run; 30 for the figures of the README.")] = 30,
    log_dir: Annotated[Path, typer.Option(help="Where the guarded runs write their event logs.")] = Path(
        "runs/reference"
    ),
) -> None:
    """Show the reference story on handwritten digits: collapse, diagnosis, a reset in vain, a fallback that holds."""
    import torch

    from collapse_guard.demos import run_reference

    torch.set_num_threads(1)  # the matrices are small: more threads would only wait for each other
    run_reference(seeds=seeds, epochs=epochs, log_dir=log_dir)


@app.command()
def check(
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="YAML files or preset names.")],
) -> None:
    """Check policy files and report every error with file, line and column. Exits with 1 if any has errors."""
    from collapse_guard.policies import PolicyError, load_policy, preset_names

    out, code = Console(), 0
    for source in policies:
        if source not in preset_names() and not Path(source).is_file():
            presets = ", ".join(preset_names())
            _say(out, f"{source}: there is no such file. Give the path of a policy file, or a preset: {presets}.")
            code = 2
            continue
        try:
            policy = load_policy(source)
        except PolicyError as error:
            _say(out, str(error))
            code = max(code, 1)
        else:
            rules = ", ".join(rule.name for rule in policy.rules)
            _say(out, f"{source}: fine: {policy.name}, mode {policy.mode}, rules {rules}")
    raise typer.Exit(code)


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    app()

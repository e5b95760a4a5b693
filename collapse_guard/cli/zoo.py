"""`collapse-guard zoo`: the collapse zoo; run it whole, in part, or with a policy of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import complain, say

__all__ = ["zoo"]

zoo = typer.Typer(no_args_is_help=True, help="The collapse zoo: a benchmark of detection and recovery.")

_FOLDER = typer.Option(file_okay=False, help="Where zoo.jsonl is or will be, and the report beside it.")


@zoo.command()
def run(
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm, or a policy file (.yaml); may be repeated. Without it: all arms.")
    ] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="A scenario; may be repeated. Without it: all.")] = None,
    part: Annotated[
        str,
        typer.Option(help="Of the scenarios those of one part: `tuned`, to tune a policy on, `held-out` or `fresh`."),
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each arm of each scenario. Without it: 5, with --quick 1.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Cells that are trained at the same time.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="After so long no cell is begun; run it again to go on.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few scenarios and arms, one seed, for a look.")] = False,
    folder: Annotated[Path, _FOLDER] = Path("runs/zoo"),
) -> None:
    """Run what is not in the file yet, and write the report. It goes on where it was stopped."""
    from collapse_guard.demos import zoo as cages

    try:
        study = cages.study_of(scenarios=scenario or (), arms=arm or (), seeds=seeds, part=part, is_quick=quick)
    except (LookupError, ValueError) as error:  # a policy that is not valid among them
        complain(str(error))
    try:
        failures = cages.run_zoo(study, folder, processes=processes, minutes=minutes)
    except KeyboardInterrupt:
        say("Stopped. The same command goes on; `collapse-guard zoo report` shows what is there.")
        raise
    for line in failures:
        say(f"failed: {line}")
    say(f"Report: {folder / 'zoo.md'}, zoo.json and figures beside it.")
    raise typer.Exit(1 if failures else 0)


@zoo.command()
def report(folder: Annotated[Path, _FOLDER] = Path("runs/zoo")) -> None:
    """Write the report anew from the cells that are there, and print it."""
    from collapse_guard.demos import zoo as cages

    if not (folder / "zoo.jsonl").is_file():
        complain(f"expected {folder / 'zoo.jsonl'}, and it is not there; run `collapse-guard zoo run` first")
    typer.echo(cages.write_report(folder))


@zoo.command(name="list")
def list_all() -> None:
    """List scenarios and arms."""
    from collapse_guard.demos import zoo as cages

    for scenario in cages.SCENARIOS.values():
        kind = "collapse" if scenario.is_collapse else "control"
        typer.echo(f"{scenario.name:20} {kind:9} {scenario.part:9} {scenario.says}")
    for name, each in cages.ARMS.items():
        typer.echo(f"--arm {name:14} {each.says}")

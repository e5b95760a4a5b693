"""`collapse-guard demo`: the reference story on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Training runs per arm.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each run; 30 for the figures of the README.")] = 30,
    log_dir: Annotated[Path, typer.Option(help="Where the guarded runs write their event logs.")] = Path(
        "runs/reference"
    ),
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="Compare what else was proposed; minutes, resumable, results in the folder."),
    ] = False,
) -> None:
    """Show the reference story on handwritten digits: collapse, diagnosis, a reset in vain, a fallback that holds."""
    import torch

    from collapse_guard.demos import run_ablation, run_reference

    torch.set_num_threads(1)  # the matrices are small: more threads would only wait for each other
    if ablation:
        typer.echo(run_ablation(log_dir, seeds=seeds, epochs=epochs, log_dir=log_dir))
        return
    run_reference(seeds=seeds, epochs=epochs, log_dir=log_dir)

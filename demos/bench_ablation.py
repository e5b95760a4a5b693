"""The reference ablation: what would have helped against the collapse, and what only seemed to; `make ablation`.

The reference quantizer with every proposal of `ablation_arms`, each with the factor missing and put back, over five
seeds. One line for each run goes to `ablation.jsonl`, one for each of the looks of `evaluation_modes` to
`ablation_looks.jsonl`, the page to `ablation.md` and the picture to `ablation.svg`; what the files hold is not run
again. In `docs/benchmarks` the table also goes into the story, between its markers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich import get_console

from .ablation_looks import measure_looks
from .ablation_plot import draw_ablation
from .ablation_report import ablation_as_markdown, ablation_table, conclude_ablation
from .ablation_runs import measure_ablation

__all__ = ["main", "run_ablation", "tell_story"]

_NOTES = Path("docs/benchmarks")


def run_ablation(folder: Path, *, seeds: int = 5, epochs: int = 30, log_dir: Path = Path("runs/ablation")) -> str:
    """Run what is missing, write page and picture, and return the page.

    Args:
        folder: where the files are, or will be.
        seeds: runs of each arm. epochs: of each run.
        log_dir: where guarded runs write their event logs.
    """
    tell = get_console().print
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        tell(line, style="dim", soft_wrap=True, highlight=False, markup=False)

    runs = measure_ablation(folder / "ablation.jsonl", seeds=seeds, epochs=epochs, log_dir=log_dir, tell=say)
    looks = measure_looks(folder / "ablation_looks.jsonl", seeds=seeds, tell=say)
    text = ablation_as_markdown(runs, looks)
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    (folder / "ablation.svg").write_text(draw_ablation(runs), encoding="utf-8")
    story = folder.parent / "story.md"
    if story.is_file():
        blocks = {"table": ablation_table(runs), "conclusion": conclude_ablation(runs)}
        story.write_text(tell_story(story.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    return text


def tell_story(text: str, blocks: dict[str, str]) -> str:
    r"""Return a page with what stands between its markers `<!-- ablation:NAME -->` and `<!-- /ablation:NAME -->` new.

    >>> tell_story("a <!-- ablation:x -->old<!-- /ablation:x --> b", {"x": "new"})
    'a <!-- ablation:x -->\n\nnew\n\n<!-- /ablation:x --> b'
    """
    for name, block in blocks.items():
        opening, closing = f"<!-- ablation:{name} -->", f"<!-- /ablation:{name} -->"
        before, found, rest = text.partition(opening)
        if found:
            text = f"{before}{opening}\n\n{block}\n\n{closing}{rest.partition(closing)[2]}"
    return text


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="ablation", description="what would have helped against the collapse?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=_NOTES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(run_ablation(asked.folder, seeds=asked.seeds, epochs=asked.epochs))

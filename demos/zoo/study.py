"""A study of the zoo as one asks for it: what to run, a bar while it runs, and the files that it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .arms import ARMS, Arm, arm_named
from .cell import CellResult
from .entries import SCENARIOS
from .figures import summarise_zoo
from .plots import draw_error, draw_recovery
from .report import zoo_as_markdown
from .runner import Study, read_cells, run_study

__all__ = ["QUICK", "current_cells", "run_zoo", "study_of", "write_report"]

QUICK = {
    "scenarios": ("reference-ema", "start-far-away", "slow-drift", "taming-start", "plain-ema", "few-modes"),
    "arms": ("twin", "nothing", "own", "observe", "default"),
}
"""What `--quick` leaves of the zoo, with one seed."""


def study_of(
    *,
    scenarios: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: int | None = None,
    part: str = "",
    is_quick: bool = False,
) -> Study:
    """Return the study that is asked for; nothing named means everything.

    A policy file brings along what it is judged by: the twin, and the arm in which nothing is done. Seeds that are not
    told are five, and one of the quick study. Of a part only its scenarios are left: of `tuned`, say, to tune on.

    Raises:
        LookupError: an unknown scenario, arm or part; says which there are.
        PolicyError: a policy file that is not valid.
        ValueError: two policy files of the same name.
    """
    names = list(scenarios or (QUICK["scenarios"] if is_quick else SCENARIOS))
    for name in names:
        if name not in SCENARIOS:
            raise LookupError(f"expected a scenario, got {name!r}.{_near(name, SCENARIOS)}")
    part, parts = part.replace("-", " "), list(dict.fromkeys(scenario.part for scenario in SCENARIOS.values()))
    if part and part not in parts:
        raise LookupError(f"expected a part, got {part!r}.{_near(part, parts)}")
    names = [name for name in names if part in ("", SCENARIOS[name].part)]
    if not names:
        raise LookupError(f"expected a scenario of the part {part!r}, got {', '.join(scenarios or QUICK['scenarios'])}")
    chosen = [arm_named(name) for name in arms or (QUICK["arms"] if is_quick else ARMS)]
    ordered = {arm.name: arm for arm in (ARMS["twin"], ARMS["nothing"], *chosen)}
    if hidden := [arm for arm in chosen if arm.policy != ordered[arm.name].policy]:
        files = ", ".join(str(arm.policy) for arm in (*hidden, ordered[hidden[0].name]))
        raise ValueError(f"expected policies of different names, got {hidden[0].name} from {files}; change a `name:`")
    return Study([SCENARIOS[name] for name in names], list(ordered.values()), seeds or (1 if is_quick else 5))


def _near(word: str, known: Iterable[str]) -> str:
    """Name the known word nearest to a misspelt one, then where all of them are listed."""
    near = get_close_matches(word, list(known), n=1)
    return (f" Did you mean {near[0]!r}?" if near else "") + " `collapse-guard zoo list` names all."


def run_zoo(study: Study, folder: Path, *, processes: int = 1, minutes: float | None = None) -> list[str]:
    """Run what is missing, with a bar, and write the report.

    Args:
        study: what is asked for.
        folder: where `zoo.jsonl` is, or will be.
        processes: that train at the same time.
        minutes: after which no cell is begun.

    Returns:
        What failed, a line each.
    """
    path = folder / "zoo.jsonl"
    cells = list(study.cells())
    done = {(each.scenario, each.arm, each.seed, each.steps, each.policy) for each in read_cells(path)}
    until = None if minutes is None else time.monotonic() + 60 * minutes
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=get_console()) as progress:
        task = progress.add_task("zoo", total=len(cells), completed=sum(cell.key in done for cell in cells))

        def tell(line: str) -> None:
            progress.advance(task)
            progress.console.print(line, style="dim", soft_wrap=True, highlight=False, markup=False)

        failures = run_study(study, path, processes=processes, until=until, tell=tell)
    write_report(folder, study.arms)
    return failures


def current_cells(path: Path, arms: Sequence[Arm] = ()) -> list[CellResult]:
    """Return the cells of whole runs of scenarios that there are, under the policies that there are.

    Args:
        path: of the file.
        arms: further ones; policy files that are not given here are taken as they were last run.
    """
    cells = read_cells(path)
    fingerprints = {each.arm: each.policy for each in cells}  # of the last that was run
    fingerprints |= {arm.name: arm.fingerprint for arm in (*ARMS.values(), *arms)}
    found: dict[tuple[str, str, int], CellResult] = {}
    for each in cells:
        scenario = SCENARIOS.get(each.scenario)
        if scenario is not None and each.steps == scenario.steps and each.policy == fingerprints[each.arm]:
            found[(each.scenario, each.arm, each.seed)] = each
    order = {name: place for place, name in enumerate(dict.fromkeys([*ARMS, *(arm.name for arm in arms)]))}
    return sorted(found.values(), key=lambda each: order.get(each.arm, len(order)))


def write_report(folder: Path, arms: Sequence[Arm] = ()) -> str:
    """Write `zoo.json`, `zoo.md` and the two figures beside `zoo.jsonl`; return the page.

    Args:
        folder: where `zoo.jsonl` is.
        arms: as for `current_cells`.
    """
    cells = current_cells(folder / "zoo.jsonl", arms)
    study = Study(list(SCENARIOS.values()), list(ARMS.values()))
    figures = summarise_zoo(cells, study.scenarios, study)
    text = zoo_as_markdown(figures)
    (folder / "zoo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "zoo.md").write_text(text, encoding="utf-8")
    (folder / "zoo-recovery.svg").write_text(draw_recovery(figures), encoding="utf-8")
    (folder / "zoo-error.svg").write_text(draw_error(figures), encoding="utf-8")
    return text

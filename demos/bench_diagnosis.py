"""The diagnosis bench: whether the cause that the guard names is the one that was built in; `make bench-diagnosis`.

Each faulty scenario is run on five seeds under the preset `default` in observe mode, read every ten steps because the
runs are short. What counts is the first alert on its codebook; where no rule of the preset fires, an inquest is held
at the last reading, by a rule that fires on the step alone. Sound runs face four inquests each, and the most confident
claim of all of them counts. Thresholds of the examiners were set after a look at seeds below 40 and from 60 on; those
from 40 to 44 are run once what is in the examiners stands, again where an examiner has changed, and nothing is changed
for what they show.

One line for each run goes to `docs/benchmarks/diagnosis.jsonl`, the tables to `diagnosis.md`; what the file holds is
not run again. What a diagnosis costs is measured each time.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from collapse_guard.policies import Cause, load_policy

from .diagnosis_cost import cost_as_markdown, measure_cost
from .scenarios import FAULTS, SOUND, Course, Scenario

__all__ = ["DiagnosisRun", "diagnosis_as_markdown", "main", "read_diagnosis_runs", "run_diagnosis"]

_NOTES = Path("docs/benchmarks")
_FIRST_SEED = 40
_BOUND = 0.5


@dataclass(frozen=True, slots=True)
class DiagnosisRun:
    """What was said of one run.

    Attributes:
        scenario, family, seed: which run. cause: what was built in; empty where nothing was.
        rule: that spoke; `inquest` where none of the preset did. step: when; 0 where nothing was said.
        found: causes with their confidence, likeliest first. cpu_seconds: of the process, for the whole run.
    """

    scenario: str
    family: str
    seed: int
    cause: str
    rule: str
    step: int
    found: list[tuple[str, float]]
    cpu_seconds: float


def run_diagnosis(scenario: Scenario, seed: int) -> DiagnosisRun:
    """Train one scenario and return what the guard said of its codebook."""
    course, began = Course(scenario, seed), time.process_time()
    course.run(_policy(scenario))
    said = list(_said(course))
    spoken: dict[str, Any] = said[0] if said else {"rule": "", "step": 0, "found": []}
    if scenario.cause is None:
        best: dict[str, float] = {}
        for each in said:
            for name, confidence in each["found"]:
                best[name] = max(confidence, best.get(name, 0.0))
        spoken = {**spoken, "found": sorted(best.items(), key=lambda item: -item[1])}
    return DiagnosisRun(
        scenario=scenario.name,
        family=scenario.family,
        seed=seed,
        cause=scenario.cause.value if scenario.cause else "",
        rule="inquest" if spoken["rule"].startswith("inquest") else spoken["rule"],
        step=spoken["step"],
        found=[(name, round(confidence, 4)) for name, confidence in spoken["found"]],
        cpu_seconds=round(time.process_time() - began, 2),
    )


def _policy(scenario: Scenario) -> dict[str, Any]:
    """Return `default` in observe mode, with rules that fire on the step alone."""
    plain = load_policy("default").model_dump(mode="json", by_alias=True)
    steps = [scenario.steps] if scenario.cause else [20, 40, 70, scenario.steps]
    inquests = [{"name": f"inquest_{step}", "when": f"step >= {step}", "severity": "info"} for step in steps]
    sample = {**plain["sample"], "every": "10 steps"}
    return {**plain, "name": "inquest", "mode": "observe", "sample": sample, "rules": [*plain["rules"], *inquests]}


def _said(course: Course) -> Iterator[dict[str, Any]]:
    """Yield what was told of the codebook that is judged, in order."""
    for event in course.events:
        if event.event not in ("alert", "withdrawn"):
            continue
        fields = event.fields
        parts: Sequence[Mapping[str, Any]] = fields.get("members") or [fields]
        for part in parts:
            if course.scenario.codebook in ("*", part["codebook"]):
                causes = (part.get("reading") or {}).get("causes", [])
                found = [(each["cause"], each["confidence"]) for each in causes]
                yield {"rule": fields["rule"], "step": event.step, "found": found}


def read_diagnosis_runs(path: Path) -> list[DiagnosisRun]:
    """Return the runs that a file holds; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    plain = [json.loads(line) for line in lines]
    return [DiagnosisRun(**{**each, "found": [(name, value) for name, value in each["found"]]}) for each in plain]


def _rank(run: DiagnosisRun) -> int:
    """Return the place of the true cause among what was found, from 1; 0 where it is not there."""
    names = [name for name, _ in run.found]
    return names.index(run.cause) + 1 if run.cause in names else 0


def diagnosis_as_markdown(runs: Sequence[DiagnosisRun]) -> str:
    """Return the scores with their baselines, the confusions, and the sound runs."""
    ill, sound = [run for run in runs if run.cause], [run for run in runs if not run.cause]
    families, causes = sorted({run.family for run in ill}), list(dict.fromkeys(run.cause for run in ill))
    lines = [
        "# Diagnosis: is the cause that is named the one that was built in?",
        "",
        "Written by `make bench-diagnosis`. How it is measured is said in `demos/bench_diagnosis.py`, the scenarios",
        "are in `demos/scenarios/`, and every run is in `diagnosis.jsonl`.",
        "",
        f"{len(ill)} runs of {len(causes)} causes, {len({run.seed for run in ill})} seeds.",
        "",
        "| | runs | first named right | among the first two | confident (0.5) and right |",
        "|---|---|---|---|---|",
    ]
    for family in (*families, ""):
        those = [run for run in ill if run.family == family or not family]
        if those:
            lines.append(f"| {family or 'all'} | {len(those)} | {_shares(those)} |")
    usual = Counter(run.cause for run in ill).most_common(2)
    count, every = max(len(causes), 1), max(len(ill), 1)
    reset = sum(run.cause in _RESET_HOLDS for run in ill) / every
    lines += [
        f"| baseline: a cause drawn at random | {len(ill)} | {1 / count:.1%} | {2 / count:.1%} | |",
        f"| baseline: always the commonest cause | {len(ill)} | {usual[0][1] / every if usual else 0:.1%} | "
        f"{sum(each for _, each in usual) / every:.1%} | |",
        f"| baseline: always reset the codebook, right where a reset is the remedy | {len(ill)} | {reset:.1%} | | |",
        "",
        "## What was named first",
        "",
        "| built in | right | seeds and families | named instead |",
        "|---|---|---|---|",
    ]
    for cause in causes:
        those = [run for run in ill if run.cause == cause]
        right = sum(_rank(run) == 1 for run in those)
        wrong = Counter((run.found[0][0] if run.found else "nothing") for run in those if _rank(run) != 1)
        instead = ", ".join(f"{name} {times}x" for name, times in wrong.most_common()) or "-"
        lines.append(f"| {cause} | {right} | {len(those)} | {instead} |")
    loud = [run for run in sound if run.found and run.found[0][1] > _BOUND]
    lines += [
        "",
        "## Sound runs",
        "",
        f"{len(sound)} runs; a cause was claimed with a confidence above {_BOUND:g} in {len(loud)} of them.",
        "",
        "| run | most confident claim | rules of the preset that fired |",
        "|---|---|---|",
    ]
    for run in sound:
        claim = f"{run.found[0][0]} {run.found[0][1]:.2f}" if run.found else "none"
        lines.append(f"| {run.scenario} | {claim} | {run.rule if run.rule not in ('', 'inquest') else 'none'} |")
    return "\n".join(lines) + "\n"


_RESET_HOLDS = {Cause.MISPLACED_CODEBOOK.value, Cause.CODEBOOK_LEFT_BEHIND.value, Cause.STARVED_LEVEL.value}


def _shares(runs: Sequence[DiagnosisRun]) -> str:
    ranks = [_rank(run) for run in runs]
    sure = [run for run in runs if run.found and run.found[0][1] >= _BOUND]
    right = sum(_rank(run) == 1 for run in sure)
    one, two = (sum(0 < rank <= most for rank in ranks) / len(ranks) for most in (1, 2))
    return f"{one:.1%} | {two:.1%} | {right} of {len(sure)}"


def _missing(runs: Sequence[DiagnosisRun], seeds: int) -> Iterator[tuple[Scenario, int]]:
    """Yield what is to be run: faulty scenarios on every seed, sound ones on the first."""
    have = {(run.scenario, run.seed) for run in runs}
    for seed in range(_FIRST_SEED, _FIRST_SEED + seeds):
        for scenario in FAULTS:
            if (scenario.name, seed) not in have:
                yield scenario, seed
    for scenario in SOUND:
        if (scenario.name, _FIRST_SEED) not in have:
            yield scenario, _FIRST_SEED


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(prog="bench-diagnosis", description="is the true cause named?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=_NOTES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / "diagnosis.jsonl"
    for scenario, seed in _missing(read_diagnosis_runs(path), asked.seeds):
        run = run_diagnosis(scenario, seed)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        print(f"{scenario.name}, seed {seed}: {run.rule} at step {run.step}: {run.found}", flush=True)
    text = f"{diagnosis_as_markdown(read_diagnosis_runs(path))}\n{cost_as_markdown(measure_cost())}"
    (asked.folder / "diagnosis.md").write_text(text, encoding="utf-8")
    print(text)

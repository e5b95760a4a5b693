"""The zoo: a study runs what is missing, goes on, and reports."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from collapse_guard.cli import app
from collapse_guard.demos import zoo
from collapse_guard.policies import PolicyError

CELL = zoo.CellResult("start-far-away", "nothing", 0, 800, "", 0.2, [10.0], [0.1], [[100.0], [40.0], [10.0], [10.0]])
TWIN = replace(CELL, arm="twin", error=0.1, perplexity=[100.0], trace=[[100.0]] * 4)
PATCHES = zoo.SCENARIOS["start-far-away"]


def test_an_arm_is_left_out_where_it_makes_no_sense() -> None:
    def arms_of(name: str) -> set[str]:
        return {arm.name for arm in zoo.ARMS.values() if arm.applies_to(zoo.SCENARIOS[name])}

    assert arms_of("plain-ema") == {"nothing", "observe", "default", "upkeep", "dense"}
    assert set(zoo.ARMS) - arms_of("start-far-away") == {"dense"}
    assert not zoo.ARMS["observe"].applies_to(zoo.SCENARIOS["start-far-away"], 1)
    for name, control, collapse in (("upkeep", 1, 1), ("nothing", 1, 5), ("dense", 4, 0), ("default", 5, 5)):
        for scenario, seeds in (("plain-ema", control), ("start-far-away", collapse)):
            assert sum(zoo.ARMS[name].applies_to(zoo.SCENARIOS[scenario], seed) for seed in range(5)) == seeds
    assert set(zoo.ARMS) - arms_of("residual-4") == {"dense", "simvq", "fsq"}
    assert set(zoo.ARMS) - arms_of("taming-start") == {"dense", "own", "rotation"}


def test_a_study_runs_what_is_missing_and_gives_up_on_what_takes_too_long(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    study = zoo.Study([PATCHES], [zoo.ARMS["twin"], zoo.ARMS["nothing"]], 1, share_of_steps=0.03125)
    assert zoo.run_study(study, path) == []
    assert [(cell.arm, cell.steps) for cell in zoo.read_cells(path)] == [("twin", 25), ("nothing", 25)]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"scenario": "start-far')  # killed in the middle of a line
    told: list[str] = []
    assert zoo.run_study(study, path, tell=told.append) == []
    assert told == []
    late = zoo.run_study(replace(study, seeds=2), path, seconds_per_cell=0.0)
    assert late == [f"start-far-away, {arm}, seed 1: took longer than 0 s" for arm in ("twin", "nothing")]
    assert len(zoo.read_cells(path)) == 2


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes do not show their environment here")
def test_only_the_workers_allocator_keeps_what_was_freed_and_the_users_setting_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, ours = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"
    monkeypatch.setenv(own, "65536")
    monkeypatch.delenv(ours, raising=False)
    others = set(multiprocessing.active_children())  # what another test of this process left behind
    seen: list[dict[str, str]] = []

    def look(line: str) -> None:
        for worker in set(multiprocessing.active_children()) - others:
            entries = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
            seen.append(dict(entry.split("=", 1) for entry in entries if "=" in entry))

    zoo.run_study(
        zoo.Study([PATCHES], [zoo.ARMS["twin"]], 1, share_of_steps=0.03125), tmp_path / "zoo.jsonl", tell=look
    )
    (worker,) = seen
    assert (worker[own], int(worker[ours])) == ("65536", 1 << 32)
    assert (os.environ[own], ours in os.environ) == ("65536", False)


def test_cells_that_would_be_the_very_same_run_are_trained_once(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    alike = [PATCHES, zoo.SCENARIOS["crowded-start"], zoo.SCENARIOS["padded-tokens"]]
    arms = [zoo.ARMS[name] for name in ("twin", "sound", "nothing", "fsq")]
    study = zoo.Study(alike, arms, 1, share_of_steps=0.0125)
    assert zoo.run_study(study, path) == []
    cells = {(cell.scenario, cell.arm): cell for cell in zoo.read_cells(path)}
    assert len(cells) == 12
    shared = {key: cell.same_as for key, cell in cells.items() if cell.same_as}
    assert shared == {
        ("crowded-start", "twin"): "start-far-away, twin",
        ("crowded-start", "sound"): "start-far-away, sound",
        ("crowded-start", "fsq"): "start-far-away, fsq",
        ("padded-tokens", "sound"): "padded-tokens, twin",  # as the twin, it has no replacement of dead codes
    }
    for (scenario, arm), cell in cells.items():
        anew = zoo.run_cell(zoo.SCENARIOS[scenario], zoo.ARMS[arm], 0, steps=10)
        assert (cell.error, cell.perplexity, cell.trace) == (anew.error, anew.perplexity, anew.trace)


def test_a_changed_policy_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    old = replace(CELL, arm="default", policy="of yesterday")
    path.write_text(json.dumps(old.as_record()) + "\n", encoding="utf-8")
    (cell,) = zoo.Study([PATCHES], [zoo.ARMS["default"]], 1).cells()
    assert cell.key != (old.scenario, old.arm, old.seed, old.steps, old.policy)
    assert zoo.current_cells(path) == []


def cells_of_two_seeds() -> Sequence[zoo.CellResult]:
    guarded = replace(
        TWIN, arm="default", policy=zoo.ARMS["default"].fingerprint, alerts=[(60, "collapsed", "critical")]
    )
    guarded = replace(guarded, readings=[60])
    return [replace(each, seed=seed) for seed in (0, 1) for each in (CELL, TWIN, guarded, replace(CELL, arm="own"))]


def test_the_report_says_how_much_was_measured_and_draws_it(tmp_path: Path) -> None:
    lines = [json.dumps(cell.as_record()) for cell in cells_of_two_seeds()]
    (tmp_path / "zoo.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = zoo.write_report(tmp_path)
    figures = json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))
    assert figures["cells"]["measured"] == 8 < figures["cells"]["asked"]
    assert "**The study is not complete" in text
    whole = "100% (100% - 100%)"
    assert f"| `default` | 2 | {whole} | {whole} | - | - | {whole} | 0.50 (0.50 - 0.50) |" in text
    assert "| `default` | 2 | 100.0% | 60 (60) | 1 (1) |" in text
    assert f"| `default` | 2 | {whole} | {whole} | - | - | +100% (+100% - +100%) | 0.50 (0.50 - 0.50) |" in text
    assert figures["arms"]["default"]["error_ratio"] == {"value": 0.5, "low": 0.5, "high": 0.5, "seeds": 2}
    for name in ("zoo-recovery.svg", "zoo-error.svg"):
        assert ET.fromstring((tmp_path / name).read_text(encoding="utf-8")).tag.endswith("svg")


def test_a_policy_file_is_an_arm_and_brings_what_it_is_judged_by(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\nname: mine\nextends: default\n", encoding="utf-8")
    study = zoo.study_of(arms=[str(file)], scenarios=["start-far-away"])
    assert [arm.name for arm in study.arms] == ["twin", "nothing", "policy:mine"]
    file.write_text("version: 1\nname: mine\nextends: default\nwarm: 10\n", encoding="utf-8")
    with pytest.raises(PolicyError, match="warm"):
        zoo.study_of(arms=[str(file)])
    with pytest.raises(LookupError, match=r"expected one of twin, sound, nothing, .*got 'nonsense'"):
        zoo.study_of(arms=["nonsense"])


def test_an_edited_policy_stands_in_every_table_and_its_former_runs_in_none(tmp_path: Path) -> None:
    mine, control = replace(TWIN, arm="policy:mine"), replace(CELL, scenario="plain-ema")
    former, edited = replace(mine, error=0.9, policy="former"), replace(mine, seed=1, policy="edited")
    healthy = [control, replace(control, arm="policy:mine", policy="edited", readings=[50])]
    doomed = [replace(each, seed=seed) for seed in (0, 1) for each in (CELL, TWIN)]
    lines = [json.dumps(cell.as_record()) for cell in (*doomed, former, edited, *healthy)]
    (tmp_path / "zoo.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = zoo.write_report(tmp_path)
    assert "| `policy:mine` | 1 | 100% |" in text
    assert "| start-far-away | 128 | 100 | - | 2.00 (0/2) | - | - | - | - | - | - | - | - | 1.00 (1/1) |" in text
    assert "| plain-ema * | 10 | - | - | - | 0.0, 0.0; 1.00 |" in text


def test_two_policies_of_one_name_and_a_scenario_that_only_has_the_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for file in files:
        file.write_text("version: 1\nname: mine\nextends: default\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"different names, got policy:mine from .*first\.yaml, .*second\.yaml"):
        zoo.study_of(arms=list(map(str, files)))
    study = zoo.Study([replace(PATCHES, batch=8)], [zoo.ARMS["nothing"]], 1)
    with pytest.raises(ValueError, match="got others: start-far-away"):
        zoo.run_study(study, tmp_path / "zoo.jsonl")


def test_seeds_that_are_asked_for_are_run_by_the_quick_study_too() -> None:
    assert [zoo.study_of(is_quick=True, seeds=seeds).seeds for seeds in (None, 2)] == [1, 2]
    assert [zoo.study_of(seeds=seeds).seeds for seeds in (None, 2)] == [5, 2]


def test_the_command_lists_and_refuses(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["zoo", "list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in (*zoo.SCENARIOS, *zoo.ARMS))
    assert runner.invoke(app, ["zoo", "report", "--folder", "nowhere"]).exit_code == 2
    file = tmp_path / "file"
    file.touch()
    for wrong in (["--scenario", "nonsense"], ["--minutes", "-1"], ["--folder", str(file)]):
        assert runner.invoke(app, ["zoo", "run", *wrong]).exit_code == 2


def test_a_study_of_a_part_has_its_scenarios_alone_and_what_is_unknown_is_told_with_what_is_near() -> None:
    for part in ("tuned", "held-out", "fresh"):
        study = zoo.study_of(part=part)
        assert {scenario.part for scenario in study.scenarios} == {part.replace("-", " ")}
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"scenarios": ["slow-drit"]}, "expected a scenario, got 'slow-drit'. Did you mean 'slow-drift'?"),
        ({"part": "tune"}, "expected a part, got 'tune'. Did you mean 'tuned'?"),
        ({"scenarios": ["slow-drift"], "part": "fresh"}, "expected a scenario of the part 'fresh', got slow-drift"),
    ]
    for wanted, what in mistakes:
        with pytest.raises(LookupError, match=re.escape(what)):
            zoo.study_of(**wanted)

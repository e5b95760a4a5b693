"""The zoo: what its measures mean, that a study goes on where it stopped, that arms differ in the arm alone."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from collapse_guard.cli import app
from collapse_guard.demos import zoo
from collapse_guard.policies import PolicyError, load_policy

CELL = zoo.CellResult("start-far-away", "nothing", 0, 800, "", 0.2, [10.0], [0.1], [[100.0], [40.0], [10.0], [10.0]])
TWIN = replace(CELL, arm="twin", error=0.1, perplexity=[100.0], trace=[[100.0]] * 4)
PATCHES = zoo.SCENARIOS["start-far-away"]
COLLAPSES = [*zoo.COLLAPSES, *zoo.FRESH]
QUICK_TO_FALL = ["enlarged-codebook", "few-for-kmeans", "means-for-sums", "hot-codebook", "dummy-forward"]
QUICK_TO_FALL += ["uncentred-cosine", "first-batch-sorted", "tiny-latents"]
ODD_CONTROLS = ["warm-restarts", "few-tokens", "quantize-dropout", "flat-first", "mostly-silence", "growing-batches"]
ODD_CONTROLS += ["short-last-batch", "popular-items", "echoed-batches", "shared-by-heads", "commitment-warm-up"]


def test_the_held_out_third_is_the_one_that_was_written_down() -> None:
    expected = "artificial-reshape diffusers-start encodec-replacement four-codes frozen-codebook narrow-cosine"
    assert {*expected.split(), "plain-ema", "residual-4", "residual-healthy", "start-too-small"} == zoo.HELD_OUT
    assert set(zoo.SCENARIOS) >= zoo.HELD_OUT


def test_there_are_as_many_collapses_and_controls_as_the_zoo_promises() -> None:
    assert len(zoo.COLLAPSES) >= 16
    assert len(zoo.CONTROLS) >= 8
    assert len(zoo.SCENARIOS) == len(zoo.COLLAPSES) + len(zoo.FRESH) + len(zoo.CONTROLS)
    fresh_controls = [each for each in zoo.CONTROLS if each.is_fresh]
    assert [each for each in zoo.SCENARIOS.values() if each.part == "fresh"] == [*zoo.FRESH, *fresh_controls]
    assert (len(zoo.FRESH), len(fresh_controls)) == (6, 3)
    assert not any(each.is_fresh for each in zoo.COLLAPSES)
    assert {scenario.family for scenario in zoo.SCENARIOS.values()} <= set(zoo.FAMILIES)


@pytest.mark.parametrize(
    ("change", "is_good"),
    [
        ({}, True),
        ({"error": 0.1099, "perplexity": [90.1]}, True),
        ({"error": 0.1101}, False),
        ({"perplexity": [89.9]}, False),
        ({"error": None}, False),
        ({"perplexity": [100.0, 100.0]}, False),
    ],
)
def test_recovered_means_within_a_tenth_of_the_twin(change: dict[str, object], is_good: bool) -> None:
    assert zoo.is_as_good(replace(TWIN, arm="default", **change), TWIN) is is_good  # type: ignore[arg-type]


def test_a_codebook_falls_in_the_first_window_below_half_of_its_twin_after_the_onset() -> None:
    assert zoo.fell_at(CELL, TWIN, onset=0) == 50
    assert zoo.fell_at(CELL, TWIN, onset=50) == 75
    assert zoo.fell_at(TWIN, TWIN, onset=0) is None
    assert zoo.fell_at(replace(CELL, trace=[[100.0], [], [], []]), TWIN, onset=0) == 50  # shows no code any more


def test_recovery_is_counted_from_the_onset_to_when_it_holds_for_good() -> None:
    healed = replace(CELL, trace=[[10.0], [95.0], [20.0], [91.0]])
    assert zoo.held_since(healed, TWIN, onset=25) == 75
    assert zoo.held_since(CELL, TWIN, onset=0) is None
    assert zoo.held_since(TWIN, TWIN, onset=0) == 25


def a_study(*cells: zoo.CellResult) -> zoo.Pairs:
    return zoo.Pairs(cells, zoo.SCENARIOS, ["own", "fsq"])


def test_a_pair_tells_delay_error_ratio_and_recovery() -> None:
    guarded = replace(CELL, arm="default", error=0.105, perplexity=[95.0], readings=[40, 50, 60, 70, 80])
    guarded = replace(guarded, alerts=[(60, "idle", "info"), (70, "collapsed", "critical"), (80, "astray", "critical")])
    peers = [replace(TWIN, arm="own", error=0.21), replace(TWIN, arm="fsq", error=0.15)]
    (pair,) = a_study(CELL, TWIN, guarded, *peers).of("default")
    assert pair.has_fallen
    told = (pair.fell_at, pair.detected_at, pair.delay, pair.delay_readings)
    assert told == (50, 70, 70, 4)  # from the cause, at step 0; what only informs is no alert
    assert pair.error_ratio == pytest.approx(0.105 / 0.15)
    assert pair.is_recovered
    (lost,) = a_study(CELL, TWIN, replace(guarded, error=None), *peers).of("default")
    assert lost.error_ratio == math.inf  # and not left out, which would flatter


def test_where_doing_nothing_ends_well_there_is_nothing_to_rescue() -> None:
    pairs = a_study(replace(TWIN, arm="nothing"), TWIN, replace(TWIN, arm="default"))
    assert pairs.of("default") == []
    assert pairs.harmless() == [("start-far-away", 0)]


def test_false_alarms_are_those_at_readings_of_healthy_codebooks() -> None:
    control = replace(CELL, scenario="plain-ema", arm="default", readings=[50, 100], codebooks=2)
    control = replace(control, alerts=[(100, "collapsed", "critical"), (100, "starving", "info")])
    jumped = replace(CELL, scenario="encoder-jump", arm="default", readings=[100, 150, 200], codebooks=1)
    jumped = replace(
        jumped, alerts=[(200, "collapsed", "critical")], interventions=[(200, "q", "reset_codes", "failed")]
    )
    assert a_study(control, jumped).healthy("default") == (2 * 2 + 2, 1, 0)


def test_intervals_draw_scenarios_and_seeds() -> None:
    assert zoo.mean_of_pairs({}) is None
    assert zoo.mean_of_pairs({("a", 0): 1.0, ("b", 0): 0.0}) == zoo.Interval(0.5, 0.5, 0.5, 1)
    by_scenario = zoo.mean_of_pairs({(name, seed): float(name == "a") for name in "ab" for seed in range(5)})
    by_seed = zoo.mean_of_pairs({(name, seed): float(seed == 0) for name in "ab" for seed in range(2)})
    assert by_scenario == zoo.Interval(0.5, 0.0, 1.0, 5)  # five seeds that agree say nothing of other scenarios
    assert by_seed == zoo.Interval(0.5, 0.0, 1.0, 2)
    alike = {(name, seed): float(ord(name)) for name in "aaa" for seed in range(3)}
    assert zoo.median_of_pairs(alike) == zoo.Interval(97.0, 97.0, 97.0, 3)
    lost = zoo.median_of_pairs({("a", 0): 1.0, ("b", 0): math.inf, ("a", 1): 1.0, ("b", 1): math.inf, ("c", 0): 2.0})
    assert lost is not None
    assert (lost.value, lost.low, lost.high) == (2.0, 1.0, math.inf)


def test_the_blunt_arm_answers_everything_alike() -> None:
    blunt, default = zoo.blunt_policy("any"), load_policy("default")
    assert [each.name for each in blunt.rules] == [each.name for each in default.rules if each.name != "half_repaired"]
    asked = {rule.name: [rung.params.describe() for rung in rule.ladder] for rule in blunt.rules if rule.ladder}
    assert asked.pop("stale_moments") == ["restart_optimizer()"]
    assert {tuple(rungs) for rungs in asked.values()} == {("reset_codes(scope=all, source=reservoir, refill=0.5)",)}


def test_a_sound_run_has_neither_the_cause_nor_a_replacement_of_dead_codes() -> None:
    of = PATCHES.options_of
    assert (of("twin"), of("sound")) == (
        {"kmeans_init": True, "threshold_ema_dead_code": 0.2},
        {"kmeans_init": True, "threshold_ema_dead_code": 0},
    )
    assert not zoo.ARMS["sound"].has_cause
    assert zoo.ARMS["own"].has_cause


@pytest.mark.parametrize("scenario", [each for each in COLLAPSES if each.onset], ids=lambda each: each.name)
def test_a_run_is_that_of_its_sound_twin_until_the_cause_strikes(scenario: zoo.Scenario) -> None:
    torch.set_num_threads(1)
    quick = replace(scenario, is_pretrained=False)
    sound, struck = (zoo.run_cell(quick, zoo.ARMS[arm], 0, steps=scenario.onset + 25) for arm in ("sound", "nothing"))
    assert sound.trace[:-1] == struck.trace[:-1]
    assert sound.trace[-1] != struck.trace[-1]


@pytest.mark.parametrize("name", QUICK_TO_FALL)
def test_a_bad_start_shows_at_once(name: str) -> None:
    torch.set_num_threads(1)
    twin, doomed = (zoo.run_cell(zoo.SCENARIOS[name], zoo.ARMS[arm], 0, steps=50) for arm in ("twin", "nothing"))
    assert zoo.fell_at(doomed, twin, onset=0) == 25


@pytest.mark.parametrize("name", ODD_CONTROLS)
def test_an_odd_control_trains_like_any_healthy_run(name: str) -> None:
    torch.set_num_threads(1)
    result = zoo.run_cell(zoo.SCENARIOS[name], zoo.ARMS["nothing"], 0, steps=50)
    assert result.error is not None
    assert result.error < 0.2
    assert min(result.usage) > 0.25


def test_the_guard_leaves_silence_alone() -> None:
    silence = zoo.run_cell(zoo.SCENARIOS["mostly-silence"], zoo.ARMS["default"], 0, steps=150)
    alone = zoo.run_cell(zoo.SCENARIOS["mostly-silence"], zoo.ARMS["nothing"], 0, steps=150)
    assert (silence.alerts, silence.interventions) == ([], [])
    assert (silence.error, silence.perplexity) == (alone.error, alone.perplexity)
    assert len(silence.readings) == 3  # nothing was suspected either


def test_what_a_level_without_anything_to_code_does_in_evaluation_raises_nothing() -> None:
    cell = zoo.run_cell(zoo.SCENARIOS["nothing-left-over"], zoo.ARMS["default"], 0, steps=350)
    assert cell.alerts == []


def test_codes_that_are_drawn_at_random_in_training_are_not_drawn_in_evaluation_where_that_costs_error(
    tmp_path: Path,
) -> None:
    rules = "rules:\n  - {name: overheated, ladder: []}\n"  # else training is cooled before
    (tmp_path / "hot.yaml").write_text(f"version: 1\nname: hot\nextends: default\n{rules}", encoding="utf-8")
    cell = zoo.run_cell(zoo.SCENARIOS["hot-sampling"], zoo.arm_named(str(tmp_path / "hot.yaml")), 0, steps=250)
    assert [each[:2] for each in cell.alerts] == [(20, "overheated"), (200, "evaluation_only")]
    assert {result for _, _, _, result in cell.interventions} == {"refused"}


def test_where_the_first_level_tells_all_items_apart_nothing_is_left_over() -> None:
    torch.set_num_threads(1)
    result = zoo.run_cell(zoo.SCENARIOS["nothing-left-over"], zoo.ARMS["nothing"], 0, steps=50)
    assert result.trace[-1][0] == pytest.approx(12, rel=0.05)


def test_an_epoch_shows_each_item_once_and_ends_with_what_is_left() -> None:
    scenario = zoo.SCENARIOS["short-last-batch"]
    run = zoo.Run(nn.Identity(), scenario.load(), None, torch.Generator().manual_seed(3), 0.0)  # type: ignore[arg-type]
    batches = [scenario.draw(run, step, scenario.batch) for step in range(16)]
    assert [len(each) for each in batches] == 2 * ([285] * 7 + [5])
    items = run.data.train.flatten(1)
    for epoch in (batches[:8], batches[8:]):
        assert torch.equal(torch.cat(epoch).flatten(1).sort(dim=0).values, items.sort(dim=0).values)
    assert not torch.equal(batches[0], batches[8])


def test_sums_of_the_first_share_leave_codes_of_the_others_without_a_token() -> None:
    torch.manual_seed(0)
    quantizer = zoo.build_quantizer("vq", 4, 8, {"threshold_ema_dead_code": 0})
    run = zoo.Run(zoo.Coder(4, 4, quantizer), None, None, torch.Generator(), 0.0)  # type: ignore[arg-type]
    zoo.fill_from_first(2, at=5)(run, 5)
    codes: Any = quantizer.quantizer._codebook
    zoo.write_codes(quantizer.quantizer, torch.eye(8, 4) - torch.eye(8, 4).flip(0))
    tokens = torch.cat([codes.embed[0, :4], codes.embed[0, 4:]]).unsqueeze(1).clone()
    quantizer(tokens, None)
    assert torch.allclose(codes.cluster_size[0], torch.tensor([1.0] * 4 + [0.95] * 4))


def a_run(name: str) -> zoo.Run:
    """Return the run of a scenario before its first step, with an encoder that has learned nothing."""
    torch.manual_seed(0)
    scenario = zoo.SCENARIOS[name]
    data = scenario.load()
    quantizer = zoo.build_quantizer(scenario.family, scenario.D, scenario.K, scenario.options)
    model = zoo.Coder(data.train.shape[-1], scenario.D, quantizer, tokens=scenario.tokens)
    return zoo.Run(model, data, torch.optim.Adam(model.parameters()), torch.Generator().manual_seed(1), scenario.lr)


def spread_and_distance(latents: Tensor) -> tuple[float, float]:
    rows = latents.flatten(0, 1)
    return float((rows - rows.mean(dim=0)).square().mean().sqrt()), float(rows.mean(dim=0).square().mean().sqrt())


@pytest.mark.parametrize("name", ["uncentred-cosine", "tiny-latents"])
def test_a_start_that_moves_latents_lets_the_decoder_know(name: str) -> None:
    run, start = a_run(name), zoo.SCENARIOS[name].start
    assert start is not None
    x = run.data.train[:1024]
    run.model.is_passed_by = True
    with torch.no_grad():
        before, (spread, distance) = run.model(x)[0], spread_and_distance(run.model.latents(x))
        start(run)
        after, moved = run.model(x)[0], spread_and_distance(run.model.latents(x))
    assert torch.allclose(before, after, atol=1e-5)
    expected = (spread, 3 * spread) if name == "uncentred-cosine" else (0.02 * spread, 0.02 * distance)
    assert moved == pytest.approx(expected, rel=0.1)


def test_a_codebook_of_three_bits_is_mostly_copies() -> None:
    run, scenario = a_run("three-bit-codes"), zoo.SCENARIOS["three-bit-codes"]
    assert scenario.start is not None
    assert scenario.disturb is not None
    scenario.start(run)
    table: Any = run.model.bottleneck.quantizer.embedding.weight  # type: ignore[union-attr]
    most = table.abs().max().item()
    scenario.disturb(run, 240)
    assert len(table.unique(dim=0)) == 1024
    scenario.disturb(run, 241)
    assert table.abs().unique().tolist() == pytest.approx([0, most / 3, most * 2 / 3, most])
    assert len(table.unique(dim=0)) < 512


def test_a_commitment_rises_by_a_factor_of_what_it_is_until_a_step() -> None:
    run, raised = a_run("rising-commitment"), zoo.SCENARIOS["rising-commitment"].disturb
    assert raised is not None
    quantizer: Any = run.model.bottleneck.quantizer
    raised(run, 163)
    quantizer.commitment_weight /= 2
    raised(run, 462)
    raised(run, 463)
    assert quantizer.commitment_weight == pytest.approx(1.02**2 / 2)
    run, warmed = a_run("commitment-warm-up"), zoo.SCENARIOS["commitment-warm-up"].routine
    assert warmed is not None
    for step in range(300):
        warmed(run, step)
    assert run.model.bottleneck.quantizer.beta == pytest.approx(0.05 * 1.01**200)


def test_negatives_have_the_mean_and_variance_of_what_they_were() -> None:
    run, invert = a_run("inverted-scans"), zoo.SCENARIOS["inverted-scans"].disturb
    assert invert is not None
    data = run.data
    for step in range(208, 211):
        invert(run, step)
    assert torch.equal(run.data.train, -data.train)
    assert torch.equal(run.data.test, -data.test)
    assert run.data.variance == data.variance


def test_an_echoed_batch_comes_four_times_and_is_that_of_its_seed() -> None:
    draw, run = zoo.SCENARIOS["echoed-batches"].draw, a_run("echoed-batches")
    batches = [draw(run, step, 64) for step in range(8)]
    assert all(torch.equal(batches[step], batches[step // 4 * 4]) for step in range(8))
    assert not torch.equal(batches[0], batches[4])
    run.draws.manual_seed(2)
    assert not torch.equal(batches[0], draw(run, 0, 64))


def test_each_head_of_a_codebook_counts_as_a_level() -> None:
    torch.set_num_threads(1)
    result = zoo.run_cell(zoo.SCENARIOS["stuck-loader"], zoo.ARMS["twin"], 0, steps=25)
    assert [len(result.perplexity), len(result.usage), *map(len, result.trace)] == [2, 2, 2]


def test_the_random_arm_is_default_with_anything_in_its_ladders() -> None:
    drawn = [zoo.random_policy(str(seed)) for seed in range(20)]
    default = load_policy("default")
    for policy in drawn:
        assert [(rule.name, rule.when) for rule in policy.rules] == [(rule.name, rule.when) for rule in default.rules]
        assert [len(rule.ladder) for rule in policy.rules] == [len(rule.ladder) for rule in default.rules]
    actions = {rung.action for policy in drawn for rule in policy.rules for rung in rule.ladder}
    assert actions == {"alert", "reset_codes", "decay_commitment", "upkeep", "fallback_tokenizer"}
    assert zoo.random_policy("1") == zoo.random_policy("1")


def test_a_guard_that_looks_changes_no_bit_of_a_model_of_which_a_method_was_replaced() -> None:
    torch.set_num_threads(1)
    scenario = zoo.SCENARIOS["transposed-sums"]  # an evaluation at step 300 has modes compared on a copy
    nothing, observed = (zoo.run_cell(scenario, zoo.ARMS[arm], 0, steps=301) for arm in ("nothing", "observe"))
    assert any(rule == "evaluation_only" for _, rule, _ in observed.alerts)
    assert (observed.error, observed.perplexity, observed.trace) == (nothing.error, nothing.perplexity, nothing.trace)


def test_a_guard_that_looks_changes_no_bit_and_tells_the_collapse() -> None:
    torch.set_num_threads(1)
    nothing, observed = (zoo.run_cell(PATCHES, zoo.ARMS[arm], 1, steps=75) for arm in ("nothing", "observe"))
    assert (observed.error, observed.perplexity, observed.trace) == (nothing.error, nothing.perplexity, nothing.trace)
    assert observed.alerts[0][1:] == ("collapsed", "critical")
    assert observed.interventions == []
    assert observed.readings[0] == 10
    twin = zoo.run_cell(PATCHES, zoo.ARMS["twin"], 1, steps=75)
    assert zoo.fell_at(nothing, twin, onset=0) == 25


@pytest.mark.parametrize("name", ["two-optimizers", "padded-tokens", "nan-batch", "warm-up", "encodec-replacement"])
def test_the_odd_scenarios_train_and_are_judged(name: str) -> None:
    result = zoo.run_cell(replace(zoo.SCENARIOS[name], onset=2), zoo.ARMS["nothing"], 0, steps=4)
    assert result.steps == 4
    assert all(0 < share <= 1 for share in result.usage)
    assert all(1 <= value <= zoo.SCENARIOS[name].K for value in result.perplexity)


def test_an_arm_is_left_out_where_it_makes_no_sense() -> None:
    def arms_of(name: str) -> set[str]:
        return {arm.name for arm in zoo.ARMS.values() if arm.applies_to(zoo.SCENARIOS[name])}

    assert arms_of("plain-ema") == {"nothing", "observe", "default", "upkeep", "dense"}
    assert set(zoo.ARMS) - arms_of("start-far-away") == {"dense"}
    assert not zoo.ARMS["observe"].applies_to(zoo.SCENARIOS["start-far-away"], 1)
    assert zoo.ARMS["observe"].applies_to(zoo.SCENARIOS["plain-ema"], 4)
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

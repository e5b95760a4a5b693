"""The zoo: its scenarios do what they say, and what looks odd in its controls is healthy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard.demos import zoo

PATCHES = zoo.SCENARIOS["start-far-away"]
COLLAPSES = [*zoo.COLLAPSES, *zoo.FRESH]
QUICK_TO_FALL = ["enlarged-codebook", "few-for-kmeans", "means-for-sums", "hot-codebook", "dummy-forward"]
QUICK_TO_FALL += ["uncentred-cosine", "first-batch-sorted", "tiny-latents"]
ODD_CONTROLS = ["warm-restarts", "few-tokens", "quantize-dropout", "flat-first", "mostly-silence", "growing-batches"]
ODD_CONTROLS += ["short-last-batch", "popular-items", "echoed-batches", "shared-by-heads", "commitment-warm-up"]


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

"""`collapse-guard replay` on TensorBoard files, written by the loggers that people use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from collapse_guard.callbacks import CollapseGuard
from collapse_guard.cli import app
from collapse_guard.cli.logs import Given, read_log
from collapse_guard.demos import digits_loaders
from tests.loops import digits_model

POLICY = """version: 1
name: mine
sample: {settle: 0}
rules:
  - {name: low, when: perplexity < 2, for: 2, ladder: [alert], verify: {within: 20 steps}}
  - {name: far, when: relative_error > 1}
"""
OF_THE_QUANTIZER = """version: 1
name: theirs
rules:
  - {name: finite, when: finite_fraction == 1}
  - {name: weighed, when: [commitment_weight > 0.39, commitment_weight < 0.41]}
  - {name: averaged, when: [decay > 0.94, decay < 0.96]}
  - {name: written, when: rewrites == 1, for: 2}
  - {name: written_again, when: rewrites == 2, for: 2}
"""


def replay(*arguments: str | Path) -> tuple[int, str]:
    """Run the command in this process: exit code, and all that it prints, unfolded."""
    done = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def write(folder: Path, tag: str, values: dict[int, float], suffix: str = "") -> Path:
    """Write one event file of one tag, as a user's own loop does."""
    writer = SummaryWriter(str(folder), filename_suffix=suffix)
    for step, value in values.items():
        writer.add_scalar(tag, value, step)
    writer.close()
    return max(folder.glob(f"*tfevents*{suffix}"))


def given(*pairs: str, codes: int | None = 256, tokens: int | None = 2048) -> Given:
    return Given.of(pairs, codes=codes, dim=0, tokens=tokens)


def perplexities(folder: Path, *pairs: str) -> list[tuple[int, str, float]]:
    """What a log is read as: step, codebook, perplexity."""
    log = read_log(folder, given(*(pairs or ("perplexity=ppl",))))
    return [(each.step, each.codebook, each.perplexity) for each in log.recording.readings]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(POLICY)
    return tmp_path / "mine.yaml"


def test_what_the_callback_gave_the_loggers_replays_to_the_decisions_of_the_run(tmp_path: Path) -> None:
    """The event log, TensorBoard and CSV of one guarded run tell the same."""
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    pl.seed_everything(0, verbose=False)
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    guard = CollapseGuard("default", console=False)
    options: dict[str, Any] = {"max_steps": 170, "log_every_n_steps": 10, "accelerator": "cpu", "logger": loggers}
    trainer = pl.Trainer(callbacks=[guard], **options, **quiet)
    trainer.fit(digits_model(), digits_loaders(0)[0])
    run = tmp_path / "tb/version_0"
    (events,) = run.glob("*tfevents*")
    sources = (run, events, tmp_path / "csv/version_0/metrics.csv")
    as_json = ("--codes", "256", "--tokens", "640", "--format", "json")
    told = []
    for source in sources:
        code, printed = replay("default", source, *as_json)
        assert code == 0, printed
        told.append(json.loads(printed)["new"])
    event_log, tensorboard, table = told
    never = {"missing": "keep", "consequences": ["it can never fire"]}
    assert event_log["counts"]["outcome recovered"] == 2
    assert event_log["absent"] == {  # its quantizer replaces no codes, nor draws any
        "restless": {"fields": ["replacement_share"], **never},
        "overheated": {"fields": ["sampling_ratio"], **never},
    }
    for other in (tensorboard, table):
        assert other["absent"] == event_log["absent"]
        assert [_kind(each) for each in other["decisions"]] == [_kind(each) for each in event_log["decisions"]]
    assert replay("default", tmp_path / "tb")[1] == replay("default", run)[1]
    (tmp_path / "theirs.yaml").write_text(OF_THE_QUANTIZER)
    theirs = [json.loads(replay(tmp_path / "theirs.yaml", source, *as_json)[1])["new"] for source in sources]
    fired = [each["rule"] for each in theirs[0]["decisions"] if each["kind"] == "alert"]
    assert sorted(fired) == ["averaged", "finite", "weighed", "written", "written_again"]
    for other in theirs[1:]:
        assert [_kind(each) for each in other["decisions"]] == [_kind(each) for each in theirs[0]["decisions"]]


def _kind(decision: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(decision.get(key) for key in ("step", "codebook", "rule", "kind", "action", "outcome", "rollback"))


def test_foreign_tags_are_read_by_a_mapping_and_what_was_read_is_said(tmp_path: Path, mine: Path) -> None:
    write(tmp_path / "run", "train/codebook_ppl", {10: 90.0, 20: 1.0, 30: 1.0, 40: 80.0, 50: 80.0})
    options = ("--codes", "256", "--tokens", "2048", "--column", "perplexity=train/codebook_ppl")
    code, printed = replay(mine, tmp_path / "run", *options)
    assert code == 0, printed
    assert printed.startswith(f"mine ({mine}) on 5 readings of codebook")
    for expected in (
        "step 30 alert codebook: low: perplexity 1.00 < 2 for 2 readings",
        "step 50 recovered codebook: low alert #1",
        f"Read: TensorBoard event file {tmp_path / 'run'}/events.out.tfevents.",
        "Taken: perplexity from train/codebook_ppl.",
        "Not in the log, though the policy looks at it: relative_error. What follows for each rule:",
        "far, without relative_error: it can never fire (`missing: keep`: such comparisons stay open).",
        "A replay cannot know what an action would have changed",
    ):
        assert expected in printed


def test_several_codebooks_are_told_apart_by_a_placeholder(tmp_path: Path) -> None:
    for level in (0, 1):
        write(tmp_path, f"vq/{level}/ppl", {10: 5.0 + level, 20: 7.0 + level}, suffix=f".{level}")
    assert perplexities(tmp_path, "perplexity=vq/{codebook}/ppl") == [
        (10, "0", 5.0),
        (10, "1", 6.0),
        (20, "0", 7.0),
        (20, "1", 8.0),
    ]


def test_all_that_a_log_lacks_is_asked_for_at_once(tmp_path: Path, mine: Path) -> None:
    write(tmp_path / "run", "train/codebook_ppl", {10: 90.0})
    code, printed = replay(mine, tmp_path / "run")
    assert code == 2
    assert printed == (
        f"{tmp_path / 'run'}: it lacks what a reading needs. Its tags: train/codebook_ppl. "
        "Say which of them holds what: `--column perplexity=train/codebook_ppl`. "
        "The number of codes is missing: add `--codes K`. "
        "The number of tokens that a value was computed from is missing: add `--tokens N`."
    )


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The first process was killed at step 40, ten steps after the checkpoint."""
    write(tmp_path, "ppl", {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}, suffix=".1")
    write(tmp_path, "other", {10: 1.0, 50: 2.0}, suffix=".2")
    write(tmp_path, "ppl", {35: 30.0, 50: 50.0}, suffix=".3")
    assert perplexities(tmp_path) == [
        (step, "codebook", value) for step, value in ((10, 1.0), (20, 2.0), (30, 3.0), (35, 30.0), (50, 50.0))
    ]
    notes = read_log(tmp_path, given("perplexity=ppl")).notes
    assert notes[0] == f"Read: 3 TensorBoard event files, merged by step, in {tmp_path}."
    assert notes[1] == "Later event files go back to steps that earlier ones hold: 1 earlier values are left out."


def test_a_torn_file_gives_what_comes_before(tmp_path: Path) -> None:
    path = write(tmp_path, "ppl", {10: 1.0, 20: 2.0, 30: 3.0})
    path.write_bytes(path.read_bytes()[:-3])
    assert [step for step, _, _ in perplexities(tmp_path)] == [10, 20]
    (note,) = (each for each in read_log(tmp_path, given("perplexity=ppl")).notes if "torn at byte" in each)
    assert note.startswith(f"{path}: torn at byte ")


def test_a_damaged_record_is_skipped_and_a_damaged_frame_ends_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "ppl", {10: 1.0, 20: 2.0, 30: 3.0})
    whole = path.read_bytes()
    size = (len(whole) - len(_first_records(whole, 1))) // 3
    damaged = bytearray(whole)
    damaged[-2 * size + size // 2] ^= 0xFF  # in the middle of the second value
    path.write_bytes(damaged)
    assert [step for step, _, _ in perplexities(tmp_path)] == [10, 30]
    assert f"{path}: 1 record that is damaged; skipped." in read_log(tmp_path, given("perplexity=ppl")).notes
    damaged[-2 * size] ^= 0xFF  # its length
    path.write_bytes(damaged)
    assert [step for step, _, _ in perplexities(tmp_path)] == [10]
    assert any("damaged from byte" in note for note in read_log(tmp_path, given("perplexity=ppl")).notes)


def _first_records(data: bytes, count: int) -> bytes:
    """The first records of an event file, frames included."""
    place = 0
    for _ in range(count):
        place += 8 + 4 + int.from_bytes(data[place : place + 8], "little") + 4
    return data[:place]


def test_what_is_no_scalar_is_passed_over(tmp_path: Path) -> None:
    import torch

    writer = SummaryWriter(str(tmp_path))
    writer.add_histogram("weights", torch.arange(1000.0), 10)
    writer.add_text("note", "a text", 10)
    writer.add_scalar("ppl", 4.0, 10, new_style=True)
    writer.close()
    assert perplexities(tmp_path) == [(10, "codebook", 4.0)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("perplexity=pppl",), "a column of the log for perplexity, got 'pppl'. Did you mean `ppl`? Known: ppl."),
        (("perplexity=vq/{codebook}",), "a pattern of columns for perplexity, got 'vq/{codebook}'. Known: ppl."),
        (("perplexty=ppl",), "Did you mean `perplexity`?"),
        (("perplexity=ppl", "perplexity=ppl"), "expected each field once after --column, got perplexity twice."),
        (("perplexity=ppl", "step=ppl"), "TensorBoard files carry their steps with them."),
        (("loss=ppl",), "Say which of them holds what: `--column perplexity=ppl`."),
    ],
)
def test_a_mapping_that_fits_nothing_is_told(tmp_path: Path, pairs: tuple[str, ...], message: str) -> None:
    write(tmp_path, "ppl", {10: 1.0})
    with pytest.raises(ValueError, match=r"expected|carry|lacks") as caught:
        read_log(tmp_path, given(*pairs))
    assert message in str(caught.value)


def test_a_perplexity_that_k_codes_cannot_show_is_doubted(tmp_path: Path) -> None:
    write(tmp_path, "ppl", {10: 4000.0})
    notes = read_log(tmp_path, given("perplexity=ppl")).notes
    assert any(note.startswith("Perplexity reaches 4000, more than 256 codes allow.") for note in notes)


def test_one_of_several_runs_has_to_be_named(tmp_path: Path, mine: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "runs" / name, "ppl", {10: 1.0})
    code, printed = replay(mine, tmp_path / "runs")
    assert code == 2
    assert f"Give one of them: {tmp_path / 'runs/a'}, {tmp_path / 'runs/b'}." in printed


def test_without_tensorboard_its_files_are_told_how_to_be_read(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "ppl", {10: 1.0})
    for name in ("tensorboard.compat.proto.event_pb2", "tensorboard.compat.proto"):
        monkeypatch.setitem(sys.modules, name, None)
    code, printed = replay(mine, path)
    assert code == 2
    assert "it is not installed. Run `pip install tensorboard`." in printed

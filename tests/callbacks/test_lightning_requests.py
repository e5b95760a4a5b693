"""What a policy asks of the training loop, carried out by real Lightning Trainers on the CPU."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, TensorDataset

from collapse_guard import Request
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import digits_loaders
from tests.callbacks.models import QUIET_TRAINER
from tests.loops import Recorder, digits_model
from tests.test_requests import giving_up

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended"  # meant: every batch is the same
)
RULE = {"codebook": "quantizer", "rule": "collapsed-1", "asked_at": 40}


def same_batches(count: int = 45) -> DataLoader[Any]:
    """Epochs of one batch over and over: a resumed run sees what the uninterrupted one sees, wherever it goes on."""
    images, labels = next(iter(digits_loaders(0)[0]))
    return DataLoader(TensorDataset(images.repeat(count, 1), labels.repeat(count)), batch_size=len(images))


def fit(
    tmp_path: Path, policy: dict[str, Any], ckpt_path: Path | None = None, **options: Any
) -> tuple[pl.Trainer, Recorder]:
    recorder = Recorder()
    guard = CollapseGuard(policy, console=False, sinks=[recorder], log_dir=tmp_path)
    run = pl.Trainer(callbacks=guard, default_root_dir=tmp_path, **{**QUIET_TRAINER, "max_steps": 100, **options})
    run.fit(digits_model(), same_batches(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return run, recorder


def giving_up_together(*asked: str) -> dict[str, Any]:
    """The second rule finds the budget spent at the very step at which the first has tried everything."""
    policy = giving_up(*asked)
    policy["budget"] = {"interventions": 1}
    policy["rules"][1]["for"] = 2
    return policy


def told(recorder: Recorder, kind: str = "carried_out") -> list[dict[str, Any]]:
    return [{"step": event.step, **event.fields} for event in recorder.of(kind)]


@pytest.mark.parametrize(
    ("options", "ends_at", "when"),
    [
        ({}, 40, ""),
        ({"min_steps": 60}, 60, ", which it does once min_epochs=1 and min_steps=60 is reached"),
        ({"min_epochs": 2}, 90, ", which it does once min_epochs=2 is reached"),
    ],
)
def test_stop_training_stops_the_trainer_as_early_as_it_may(
    tmp_path: Path, options: dict[str, Any], ends_at: int, when: str
) -> None:
    run, recorder = fit(tmp_path, giving_up("stop_training"), **options)
    assert run.global_step == ends_at
    summary = "the Trainer was told to stop" + when
    assert told(recorder) == [{"step": 40, **RULE, "request": "stop_training", "summary": summary, "file": None}]
    assert recorder.of("fault") == []


def test_save_checkpoint_writes_the_whole_run_beside_the_event_log(tmp_path: Path) -> None:
    run, recorder = fit(tmp_path, giving_up_together("save_checkpoint", "save_checkpoint"))
    file = tmp_path / "collapse_guard" / "40-quantizer.ckpt"
    first, second = told(recorder)
    summary = f"the whole run as it stands is in {file}"
    assert first == {"step": 40, **RULE, "request": "save_checkpoint", "summary": summary, "file": str(file)}
    assert second == {**first, "rule": "collapsed-2"}
    assert {each.name for each in file.parent.iterdir()} == {"events.jsonl", file.name}
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["global_step"] == 40
    assert checkpoint["callbacks"]["CollapseGuard"]["requests"] == []
    assert run.global_step == 100


def test_a_run_resumed_from_that_checkpoint_decides_as_the_uninterrupted_one(tmp_path: Path) -> None:
    policy = giving_up("save_checkpoint", "alert")
    policy["rules"][1] |= {"for": 5, "ladder": [{"reset_codes": {"scope": "all"}}, "fallback_tokenizer"]}
    _, whole = fit(tmp_path, policy, max_steps=140)
    file = tmp_path / "collapse_guard" / "40-quantizer.ckpt"
    _, resumed = fit(tmp_path, policy, ckpt_path=file, max_steps=140)
    (event,) = resumed.of("resumed")
    assert (event.step, event.fields["policy_changed"]) == (40, False)

    def later(recorder: Recorder) -> list[dict[str, Any]]:
        kinds = ("reading", "pending", "alert", "intervention", "outcome", "skip", "exhausted", "carried_out", "fault")
        return [
            {"event": each.event, "step": each.step, **each.fields} for each in recorder.of(*kinds) if each.step > 40
        ]

    assert later(resumed) == later(whole)
    assert [event.fields["action"] for event in resumed.of("intervention")] == ["reset_codes", "fallback_tokenizer"]


def test_both_are_done_the_checkpoint_first(tmp_path: Path) -> None:
    run, recorder = fit(tmp_path, giving_up_together("stop_training", "save_checkpoint"))
    assert [event.fields["request"] for event in recorder.of("carried_out")] == ["save_checkpoint", "stop_training"]
    assert (tmp_path / "collapse_guard" / "40-quantizer.ckpt").is_file()
    assert run.global_step == 40


def test_the_rungs_of_a_ladder_may_ask_too(tmp_path: Path) -> None:
    policy = giving_up("alert")
    policy["rules"][0]["ladder"] = [{"save_checkpoint": {}, "within": "20 steps"}, "stop_training"]
    run, recorder = fit(tmp_path, policy)
    done = [(event.step, event.fields["request"]) for event in recorder.of("carried_out")]
    assert done == [(20, "save_checkpoint"), (40, "stop_training")]
    assert run.global_step == 40
    file = tmp_path / "collapse_guard" / "20-quantizer.ckpt"
    resumed, again = fit(tmp_path, policy, ckpt_path=file)
    assert again.of("resumed")[0].step == 20
    assert [(event.step, event.fields["request"]) for event in again.of("carried_out")] == [(40, "stop_training")]
    assert resumed.global_step == 40


class FullDisk(TorchCheckpointIO):
    """Fails in the middle of a checkpoint, as a full disk does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    run, recorder = fit(tmp_path, giving_up("save_checkpoint"), plugins=[FullDisk()])
    assert run.global_step == 100
    assert recorder.of("carried_out") == []
    why = (
        "asked for by collapsed-1 on quantizer at step 40, failed: OSError: [Errno 28] No space left on device; "
        "training goes on without it"
    )
    assert told(recorder, "fault") == [{"step": 40, "where": "save_checkpoint", "reason": why}]
    assert [each.name for each in (tmp_path / "collapse_guard").iterdir()] == ["events.jsonl"]


class AskedOnOneRank(CollapseGuard):
    """On two ranks the guard only observes so far; here one of them asks all the same."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert self.guard is not None
        if trainer.global_rank == 1 and trainer.global_step == 5:
            for kind in ("save_checkpoint", "stop_training"):
                self.guard.requests.ask(Request(kind=kind, step=5, codebook="vq", rule="r", reason="one rank says so"))
        self._carry_out(trainer, self.guard)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        seen = {"steps": trainer.global_step, "files": [each.name for each in Path(str(self._log_dir)).rglob("*.ckpt")]}
        Path(str(self._log_dir), f"{trainer.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_one_rank_asks_for_is_done_on_all(tmp_path: Path) -> None:
    run = pl.Trainer(
        max_steps=20,
        callbacks=[AskedOnOneRank("observe", console=False, log_dir=tmp_path)],
        devices=2,
        strategy="ddp_spawn",
        default_root_dir=tmp_path,
        **QUIET_TRAINER,
    )
    run.fit(digits_model(), same_batches())
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen == [{"steps": 5, "files": ["5-codebook.ckpt"]}] * 2

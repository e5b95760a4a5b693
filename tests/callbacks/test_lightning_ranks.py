"""Lightning's DDP on two CPU ranks: one log, the same interventions on both and as in a plain loop, a stop for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from collapse_guard import read_events
from collapse_guard.callbacks import CollapseGuard
from tests.callbacks.models import QUIET_TRAINER
from tests.callbacks.test_lightning_requests import FullDisk, same_batches
from tests.crew import Crew
from tests.loops import digits_model
from tests.ranks import loops, trainers
from tests.test_requests import giving_up

PARTS = ("readings", "story", "marks", "end")


def without_epoch(told: dict[str, Any]) -> dict[str, Any]:
    """Return what was told, but for what a Trainer says and a plain loop does not."""
    readings = [(step, {**fields, "epoch": None}) for step, fields in told["readings"]]
    return {name: told[name] for name in PARTS} | {"readings": readings}


def test_under_ddp_a_trainer_decides_and_does_on_both_ranks_what_a_plain_loop_does(crew: Crew, tmp_path: Path) -> None:
    plain = crew.run(loops.ddp_run, 2, steps=24)[0]
    file = str(tmp_path / "run.ckpt")
    first, second = crew.run(trainers.ddp_fit, 2, folder=str(tmp_path), further=[trainers.Saving(file)])
    assert [fields["action"] for _, event, fields in first["story"] if event == "intervention"] == ["reset_codes"]
    assert first == second
    assert without_epoch(first) == without_epoch(plain)
    (attached,) = (record for record in read_events(tmp_path) if record["event"] == "attached")
    assert attached["ranks"] == 2
    state = torch.load(file, weights_only=True)["callbacks"]["Marking"]
    assert (state["step"], len(state["watch"]["elsewhere"])) == (9, 1)


def test_under_ddp_both_ranks_stop_where_the_policy_asks_for_it(crew: Crew, tmp_path: Path) -> None:
    policy = loops.POLICY | {"rules": [loops.POLICY["rules"][0] | {"ladder": ["stop_training"]}]}
    first, second = crew.run(trainers.ddp_fit, 2, folder=str(tmp_path), policy=policy)
    assert (first["steps"], second["steps"]) == (12, 12)
    assert sum(record["event"] == "carried_out" for record in read_events(tmp_path)) == 1


def full_disk_fit(rank: int, size: int, **options: Any) -> dict[str, Any]:
    """Train under Lightning's DDP on a disk that takes no checkpoint."""
    plugins = [trainers.Started(rank, size), FullDisk()]
    return trainers.fit(trainers.Trained(), strategy=DDPStrategy(), plugins=plugins, **options)


def test_a_checkpoint_that_the_first_rank_cannot_write_keeps_no_rank_waiting(crew: Crew, tmp_path: Path) -> None:
    policy = loops.POLICY | {"rules": [loops.POLICY["rules"][0] | {"ladder": ["save_checkpoint"]}]}
    first, second = crew.run(full_disk_fit, 2, folder=str(tmp_path), policy=policy)
    assert (first["steps"], second["steps"]) == (24, 24)
    assert first["end"] == second["end"]
    (fault,) = (record for record in read_events(tmp_path) if record["event"] == "fault")
    assert "No space left on device; training goes on without it" in fault["reason"]


class Telling(CollapseGuard):
    """Writes what its rank did to a file of its own."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        assert self.guard is not None
        table = pl_module.get_submodule("quantizer").state_dict()
        told = {
            "steps": trainer.global_step,
            "interventions": self.guard.interventions,
            "table": {name: tensor.double().sum().item() for name, tensor in table.items()},
        }
        Path(str(self._log_dir), f"{trainer.global_rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_processes_that_lightning_spawns_do_the_same_and_the_first_writes_it_down(tmp_path: Path) -> None:
    run = pl.Trainer(
        max_steps=100,
        callbacks=[Telling(giving_up("stop_training"), console=False, log_dir=tmp_path)],
        devices=2,
        strategy="ddp_spawn",
        default_root_dir=tmp_path,
        **QUIET_TRAINER,
    )
    run.fit(digits_model(), same_batches())
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["interventions"] == told[1]["interventions"] != []
    assert told[0]["steps"] == told[1]["steps"] < 100
    lines = (tmp_path / "collapse_guard" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events].count("attached") == 1
    assert next(event for event in events if event["event"] == "attached")["ranks"] == 2
    assert sum(event["event"] == "carried_out" for event in events) == 1

"""Lightning's DDP on two spawned CPU processes: one log, the same interventions on both ranks, a stop for both."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest

from collapse_guard.callbacks import CollapseGuard
from tests.callbacks.models import QUIET_TRAINER
from tests.callbacks.test_lightning_requests import same_batches
from tests.loops import digits_model
from tests.test_requests import giving_up


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
def test_under_ddp_both_ranks_do_the_same_and_the_first_writes_it_down(tmp_path: Path) -> None:
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

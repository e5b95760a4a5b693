"""Ray Train with Lightning on a local cluster of two CPU workers: what plain DDP decides and does, bit for bit.

Ray is not among the developers' dependencies: `make ray` installs it and runs this.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from collapse_guard import read_events
from tests.callbacks.test_lightning_ranks import without_epoch
from tests.checkout import ROOT
from tests.crew import Crew
from tests.ranks import loops, trainers

_PATIENCE = 900

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: `make ray`, or pip install 'ray[train]'"
    ),
]


def test_under_ray_train_two_workers_decide_and_do_what_plain_ddp_does(crew: Crew, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ranks.ray_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=_PATIENCE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    workers = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    trainer = json.loads(json.dumps(crew.run(trainers.ddp_fit, 2, folder=str(tmp_path / "plain"))[0]))
    loop = json.loads(json.dumps(crew.run(loops.ddp_run, 2, steps=24)[0]))
    assert [fields["action"] for _, event, fields in loop["story"] if event == "intervention"] == ["reset_codes"]
    for worker in workers:
        assert worker == trainer
        assert without_epoch(worker) == without_epoch(loop)
    events = [record["event"] for record in read_events(tmp_path / "log")]
    assert events.count("attached") == events.count("summary") == 1
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)["callbacks"]["Marking"]
    assert (state["step"], len(state["watch"]["elsewhere"])) == (24, 1)

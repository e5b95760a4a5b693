"""Two real processes over gloo: in this version the guard watches, says so, and keeps its hands off."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from collapse_guard import Guard
from tests.loops import Recorder, digits_model, train


def _rank(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 60, guard)
        told = {
            "mode": guard.policy.mode,
            "alerts": [event.step for event in recorder.of("alert")],
            "interventions": len(recorder.of("intervention")),
            "faults": [event.fields["reason"] for event in recorder.of("fault")],
        }
    Path(out, f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def test_on_two_ranks_the_guard_observes_and_says_why(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (told["mode"], told["alerts"], told["interventions"]) == ("observe", [30], 0)
        assert told["faults"] == ["2 ranks: this version counts this rank's tokens only and does not act"]

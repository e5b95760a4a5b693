"""A run of several ranks that is cut and resumed: what it decides, reads and ends in, against the uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from collapse_guard import Guard
from tests.crew import Crew
from tests.ranks import loops
from tests.ranks.test_acting_together import acts, assert_alike, policy

STEPS = 30
FITTED = policy({"fallback_tokenizer": {"backend": "sklearn", "refit_every": "4 steps", "refit_growth": 1}})
"""Fitted again every few steps to what all ranks recorded: what is missing of it would be seen at once."""


def many(step: int, rank: int) -> Tensor:
    """Return more latents than a window keeps of one forward, so that its private random stream matters."""
    return loops.batch(step, rank, n=300)


def go(
    rank: int, size: int, *, steps: range, file: str, load: bool = False, together: bool = True, each: bool = False
) -> dict[str, Any]:
    """Train for some steps under DDP, from a checkpoint or from the start, and leave one behind.

    Args:
        together: save one state, with what all ranks recorded. each: save one of each rank.
    """
    torch.manual_seed(0)
    model = loops.Autoencoder(loops.quantizer("ema"))
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    mine = f"{file}{rank if each else 0}"
    saved = torch.load(mine, weights_only=True) if load else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    recorder = loops.Marks(model, optimizer)
    with Guard(FITTED, console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        if saved is not None:
            guard.load_state_dict(saved["guard"])
        for step in steps:
            if step == 6:
                loops.spoil(model)
            loss = ddp(many(step, rank))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step(loss=loss.detach())
        state = {"guard": guard.state_dict(together=together)}
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if rank == 0 or each:
            torch.save(state, mine)
        torch.distributed.barrier()
    kept = len(guard.state_dict()["watch"]["elsewhere"])  # after the end
    return loops.told(recorder) | {"marks": recorder.marks, "end": loops.marks_of(model, optimizer), "kept": kept}


def after(told: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what was read and done after a step."""
    readings = [each for each in told["readings"] if each[0] > step]
    readings = [(at, {name: value for name, value in fields.items() if name != "uses"}) for at, fields in readings]
    story = [each for each in told["story"] if each[0] > step]
    return {"readings": readings, "story": story, "marks": [each for each in told["marks"] if each[1] > step]}


@pytest.fixture(scope="module")
def whole(crew: Crew, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The run that nobody cuts."""
    return crew.run(go, 2, steps=range(STEPS), file=str(tmp_path_factory.mktemp("whole") / "all"))


def resumed(crew: Crew, folder: Path, at: int, **options: Any) -> list[dict[str, Any]]:
    file = str(folder / "state")
    crew.run(go, 2, steps=range(at), file=file, **options)
    return crew.run(go, 2, steps=range(at, STEPS), file=file, load=True, **options)


@pytest.mark.parametrize("at", [9, 12, 21])
def test_two_ranks_that_are_cut_and_resumed_go_on_as_if_nothing_had_been(
    crew: Crew, tmp_path: Path, whole: list[dict[str, Any]], at: int
) -> None:
    """Before the first reading that sees the collapse, as soon as the fallback stands, and between two refits."""
    kinds = [event for event, _, _ in whole[0]["marks"]]
    assert kinds[0] == "intervention"
    assert kinds.count("tended") >= 2
    told = resumed(crew, tmp_path, at)
    assert_alike(told)
    assert after(told[0], at) == after(whole[0], at)
    assert told[0]["end"] == whole[0]["end"]
    assert (told[0]["kept"], told[1]["kept"]) == (1, 0)


def test_so_they_do_when_each_rank_keeps_a_state_of_its_own(
    crew: Crew, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    told = resumed(crew, tmp_path, 9, together=False, each=True)
    assert_alike(told)
    assert after(told[0], 9) == after(whole[0], 9)
    assert told[0]["end"] == whole[0]["end"]


def test_of_the_first_ranks_state_alone_the_others_begin_with_empty_windows(
    crew: Crew, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    """One window is short of their tokens since the last reading; ranks agree all the same, and so do the decisions."""
    told = resumed(crew, tmp_path, 9, together=False)
    assert_alike(told)
    first, second = ([(at, each["tokens"]) for at, each in run["readings"] if at > 9] for run in (told[0], whole[0]))
    assert first[0][0] == second[0][0]
    assert first[0][1] < second[0][1]
    assert first[1:] == second[1:]
    assert [each[1:] for each in acts(told[0])] == [each[1:] for each in acts(whole[0])]


def torn_on_one(rank: int, size: int) -> dict[str, Any]:
    """Load a state that only the first rank could read, and train on."""
    told: dict[str, Any] = {}

    def load(step: int, rank: int, guard: Guard, model: torch.nn.Module) -> None:
        if step == 0:
            guard.load_state_dict(guard.state_dict() if rank == 0 else {"schema": 0})
            told["steps"] = guard.steps

    return loops.ddp_run(rank, size, steps=10, during=load, spoil_at=()) | told


def test_a_state_that_one_rank_cannot_read_is_restored_on_none(crew: Crew) -> None:
    told = crew.run(torn_on_one, 2)
    assert_alike(told)
    assert told[0]["readings"]
    ((_, _, fault),) = (each for each in told[0]["story"] if each[1] == "fault")
    assert fault["reason"].endswith(
        "rank 1: ValueError: expected guard state of schema 1, got 0; the guard starts afresh"
    )


def test_a_state_of_two_ranks_is_one_of_three_without_what_the_second_recorded(crew: Crew, tmp_path: Path) -> None:
    file = str(tmp_path / "state")
    crew.run(go, 2, steps=range(12), file=file)
    told = crew.run(go, 3, steps=range(12, STEPS), file=file, load=True)
    assert_alike(told)
    assert [event for event, _, _ in told[0]["marks"]].count("tended") >= 2

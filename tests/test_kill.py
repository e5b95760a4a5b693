"""Kill -9 at random moments, resume, and compare with the run that nobody disturbed: bit for bit.

`make kill` runs fifty moments of each kind of loop; the suite runs five in all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

if not Path("/proc/self/schedstat").exists():
    pytest.skip("the moment of a kill is told from /proc", allow_module_level=True)

from collapse_guard import read_events
from collapse_guard.policies import recordings_of_events
from tests.killed import RUNS, STEPS, checkpoints

_TIME = ("time", "run", "guard_seconds", "run_seconds", "guard_share")
_MOMENTS = int(os.environ.get("KILL_MOMENTS", "50"))


@pytest.fixture(scope="module")
def forks() -> Any:
    """A server that has imported everything, and of which each run is a fork."""
    context = multiprocessing.get_context("forkserver")  # the server begins with the first fork
    context.set_forkserver_preload(["tests.killed"])
    return context


def run(forks: Any, kind: str, home: Path, *, kill_after: float | None = None) -> tuple[bool, float]:
    """Train in a process of its own; return whether it came to its end, and the seconds of processor time it took.

    Args:
        kill_after: seconds of processor time, so that a busy machine does not move all kills to the end.
    """
    process = forks.Process(target=RUNS[kind], args=(home,))
    process.start()
    used, give_up = 0.0, time.monotonic() + 300
    while process.is_alive():
        used = max(used, _seconds_of(process.pid))
        if kill_after is not None and used >= kill_after:
            process.kill()
            process.join()
            return process.exitcode == 0, used
        assert time.monotonic() < give_up, "it hung"
        process.join(0.002)
    assert process.exitcode == 0
    return True, used


def _seconds_of(pid: int | None) -> float:
    """Return the processor time that a process has taken; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0


@pytest.fixture(scope="module")
def whole(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """Each kind of run, undisturbed, and the seconds that it took."""
    found = {}
    for kind in RUNS:
        home = tmp_path_factory.mktemp(kind)
        found[kind] = home, run(forks, kind, home)[1]
    return found


def history(home: Path) -> list[dict[str, Any]]:
    """Return what a reader sees of a run, without what differs between any two processes."""
    records = list(read_events(home, superseded=False))
    for record in records:
        record.update(
            {"tokenizers": sorted(record["tokenizers"])} if "tokenizers" in record else {}
        )  # paths name the run
    return [
        {key: value for key, value in record.items() if key not in _TIME}
        for record in records
        if record["event"] not in ("attached", "resumed")
    ]


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Compare plain data and tensors, bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, (each, twin) in enumerate(zip(one, other, strict=True)):
            assert_equal(each, twin, f"{place}[{index}]")
    else:
        assert one == other, place


def final(home: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(home / "final.pt", weights_only=True)
    del state["guard"]["run"]
    return state


def kill_and_compare(forks: Any, kind: str, whole: tuple[Path, float], home: Path, chance: random.Random) -> list[int]:
    """Kill a run once or twice, let it end, and compare; return the checkpoints that it went on from."""
    undisturbed, seconds = whole
    kills, went_on_from = chance.choice((1, 1, 1, 2)), []
    while kills:
        before = checkpoints(home)
        has_ended, _ = run(forks, kind, home, kill_after=seconds * chance.uniform(0.02, 0.98))
        if has_ended:  # before it could be killed: it went on from a late checkpoint, or was quicker than the other
            for path in {*checkpoints(home), home / "final.pt"} - set(before):
                path.unlink()
            continue
        kills -= 1
        known = checkpoints(home)
        went_on_from.append(int(known[-1].stem.rpartition("=")[2]) if known else 0)
    assert run(forks, kind, home)[0]
    lines = (home / "collapse_guard" / "events.jsonl").read_bytes().split(b"\n")
    torn = [line for line in lines if line and not _is_whole(line)]
    assert len(torn) <= len(went_on_from), "a kill tears one line at most"
    assert history(home) == history(undisturbed)
    assert_equal(final(home), final(undisturbed))
    assert len(recordings_of_events(read_events(home))[-1].readings) == len(
        [record for record in history(undisturbed) if record["event"] == "reading"]
    )
    return went_on_from


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "seeds"), [("plain", range(3)), ("trainer", range(2))])
def test_a_run_killed_at_a_random_moment_and_resumed_equals_the_undisturbed_one(
    forks: Any, whole: dict[str, tuple[Path, float]], tmp_path: Path, kind: str, seeds: range
) -> None:
    told = [(record["event"], record["step"]) for record in history(whole[kind][0])]
    assert [event for event, _ in told if event in ("alert", "intervention", "outcome")] == [
        "alert", "intervention", "outcome", "intervention", "alert", "outcome", "intervention", "outcome",
    ]  # fmt: skip
    assert told[-1] == ("summary", STEPS)
    for seed in seeds:
        home = tmp_path / str(seed)
        kill_and_compare(forks, kind, whole[kind], home, random.Random(f"{kind} {seed}"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", RUNS)
def test_fifty_runs_killed_at_random_moments_equal_the_undisturbed_one(
    forks: Any, whole: dict[str, tuple[Path, float]], tmp_path: Path, kind: str, capsys: Any
) -> None:
    resumed_at: list[int] = []
    for moment in range(_MOMENTS):
        resumed_at += kill_and_compare(
            forks, kind, whole[kind], tmp_path / str(moment), random.Random(f"{kind} of fifty {moment}")
        )
    with capsys.disabled():
        told = f"{_MOMENTS} of {_MOMENTS} equal; killed {len(resumed_at)} times, went on from {sorted(resumed_at)}"
        sys.stdout.write(f"\n{kind}: {told}\n")

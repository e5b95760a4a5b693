"""Under DDP all ranks decide and do the same; what is written is bit-equal, and what fails on one fails on all."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collapse_guard import Guard
from collapse_guard.interventions import INTERVENTIONS
from collapse_guard.ranks import Ranks, join_ranks
from collapse_guard.testing import Recorder
from tests.crew import Crew
from tests.ranks import loops

Told = list[dict[str, Any]]


def policy(*ladder: dict[str, Any], **rule: Any) -> dict[str, Any]:
    """Return the small policy with another ladder."""
    changed: dict[str, Any] = copy.deepcopy(loops.POLICY)
    changed["rules"][0] |= {"ladder": list(ladder)} if ladder else {}
    changed["rules"][0] |= rule
    return changed


def assert_alike(told: Told) -> None:
    """Readings, story, and every tensor of model and optimizer at each act and at the end, on all ranks."""
    for other in told[1:]:
        for part in ("readings", "story", "marks", "end"):
            assert other[part] == told[0][part]


def acts(told: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [
        (step, fields["action"], fields.get("outcome") or fields["result"])
        for step, event, fields in told["story"]
        if event in ("intervention", "outcome")
    ]


def faults(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(fields["where"], fields["reason"]) for _, event, fields in told["story"] if event == "fault"]


@pytest.mark.parametrize(("kind", "size"), [("ema", 2), ("learnable", 2), ("residual", 4)])
def test_a_collapse_is_repaired_alike_on_all_ranks(crew: Crew, kind: str, size: int) -> None:
    told = crew.run(loops.ddp_run, size, kind=kind, steps=24)
    assert_alike(told)
    assert acts(told[0]) == [(12, "reset_codes", "applied"), (16, "reset_codes", "recovered")]
    assert len(told[0]["marks"]) == 2
    assert faults(told[0]) == []


def test_a_fallback_is_fitted_and_refitted_alike_on_all_ranks(crew: Crew) -> None:
    ladder = {"fallback_tokenizer": {"backend": "sklearn", "refit_every": "4 steps", "refit_growth": 1}}
    told = crew.run(loops.ddp_run, 2, policy=policy(ladder), steps=26)
    assert_alike(told)
    kinds = [event for event, _, _ in told[0]["marks"]]
    assert kinds[0] == "intervention"
    assert kinds.count("tended") >= 3


def test_a_layout_is_restored_and_codes_are_placed_alike_on_all_ranks(crew: Crew) -> None:
    rule = {"when": "reshaped == 1", "clear": {"when": "reshaped == 0", "for": 2}}
    told = crew.run(
        loops.ddp_run, 2, kind="mixed", spoil_at=(), steps=24, policy=policy({"restore_layout": {}}, **rule)
    )
    assert_alike(told)
    assert [action for _, *action in acts(told[0])] == [["restore_layout", "applied"], ["restore_layout", "recovered"]]
    (placed,) = [fields for _, event, fields in told[0]["story"] if event == "tended"]
    assert placed["summary"].startswith("24 codes placed by reservoir on ")
    assert faults(told[0]) == []


def test_a_gradient_is_handed_on_alike_on_all_ranks(crew: Crew) -> None:
    rule = {"when": "task_gradient < 0.002", "clear": {"when": "task_gradient >= 0.01", "for": 2}}
    told = crew.run(loops.ddp_run, 2, kind="cut", spoil_at=(), steps=40, policy=policy({"bridge_gradient": {}}, **rule))
    assert_alike(told)
    assert [action for _, *action in acts(told[0])] == [
        ["bridge_gradient", "applied"],
        ["bridge_gradient", "recovered"],
    ]
    shares = [fields["task_gradient"] for _, fields in told[0]["readings"] if fields["task_gradient"] is not None]
    assert shares[0] < 0.002 < 0.01 < shares[-1]
    assert faults(told[0]) == []


def test_upkeep_moves_the_same_codes_on_all_ranks(crew: Crew) -> None:
    ladder = {"upkeep": {"every": "4 steps", "below": 0.3}}
    rule = {
        "when": "perplexity < 20",
        "clear": {"when": "perplexity >= 20", "for": 2},
        "verify": {"within": "30 steps"},
    }
    told = crew.run(loops.ddp_run, 2, policy=policy(ladder, **rule), steps=40, spoil_at=())
    assert_alike(told)
    ends = [fields for _, event, fields in told[0]["story"] if event == "tended"]
    assert len(ends) == 1
    assert not ends[0]["summary"].startswith("0 moves")


def test_a_rank_of_which_no_token_is_one_goes_along(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, masked=(1,), steps=24)
    assert_alike(told)
    assert acts(told[0]) == [(12, "reset_codes", "applied"), (16, "reset_codes", "recovered")]
    assert {reading["tokens"] for _, reading in told[0]["readings"]} == {96, 192}


def one_sided(step: int, rank: int) -> Tensor:
    """Return latents that are all the same on the last rank."""
    latents = loops.batch(step, rank)
    return latents[:, :1].expand_as(latents).clone() if rank == 1 else latents


def test_a_collapse_that_one_rank_alone_sees_is_judged_by_the_tokens_of_all(crew: Crew) -> None:
    """Rank 1 by itself reads perplexity 1; the run as a whole does not."""
    told = crew.run(loops.ddp_run, 2, data=one_sided, spoil_at=(), steps=20)
    assert_alike(told)
    assert acts(told[0]) == []
    assert min(reading["perplexity"] for _, reading in told[0]["readings"]) > 3


def raising(step: int, rank: int, guard: Guard, model: nn.Module) -> None:
    """On rank 1, at first, let what writes the codebook raise after it has written."""
    reset = INTERVENTIONS["reset_codes"]
    if step == 0 and rank == 1:
        real = reset.apply

        def apply(self: Any) -> str:
            real(self)
            raise RuntimeError("boom")

        apply.real = real  # type: ignore[attr-defined]
        reset.apply = apply  # type: ignore[method-assign]
    if step == 13 and rank == 1:
        reset.apply = reset.apply.real  # type: ignore[attr-defined, method-assign]


def test_a_rank_that_raises_inside_an_action_makes_all_ranks_undo_it(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, during=raising, steps=30)
    assert_alike(told)
    first = next(fields for _, event, fields in told[0]["story"] if event == "intervention")
    assert first["result"] == "refused"
    assert first["summary"] == "rank 1: RuntimeError: boom; everything was put back"
    assert [each[1:] for each in acts(told[0])] == [
        ("reset_codes", "refused"),
        ("reset_codes", "failed"),
        ("fallback_tokenizer", "applied"),
        ("fallback_tokenizer", "recovered"),
    ]


def failing_probe(step: int, rank: int, guard: Guard, model: nn.Module) -> None:
    if step == 9 and rank == 1:

        def add(*_: Any, **__: Any) -> None:
            raise ValueError("no")

        guard._watch.probes["quantizer"].window.add = add  # type: ignore[method-assign]


def test_a_codebook_that_one_rank_cannot_observe_is_watched_by_none(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, during=failing_probe, spoil_at=(), steps=24)
    assert_alike(told)
    assert faults(told[0]) == [("quantizer", "rank 1: its probe raised ValueError: no; quantizer is no longer watched")]
    assert [step for step, _ in told[0]["readings"]] == [2, 6]


def broken_guard(step: int, rank: int, guard: Guard, model: nn.Module) -> None:
    if step == 9 and rank == 1:

        def observe(*_: Any) -> Any:
            raise MemoryError("full")

        guard._shift.engine.observe_together = observe  # type: ignore[method-assign, assignment]


def test_a_guard_that_breaks_on_one_rank_stops_on_all_and_the_run_goes_on(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, during=broken_guard, spoil_at=(), steps=30)
    assert told[0]["end"] == told[1]["end"]
    ((where, reason),) = faults(told[0])
    assert where == "ranks"
    assert "The ranks no longer act as one: nothing is read or changed from step 14 on" in reason
    assert faults(told[1]) == [
        ("guard", "MemoryError: full"),
        (
            "ranks",
            "the guard of rank 1 failed. The ranks no longer act as one: nothing is read or changed from step 10 on, "
            "what is in force stays; training goes on",
        ),
    ]


def broken_at_the_end(step: int, rank: int, guard: Guard, model: nn.Module) -> None:
    if step == 7 and rank == 1:

        def hold(*_: Any) -> Any:
            raise MemoryError("full")

        guard._shift.ledger.hold = hold  # type: ignore[method-assign, assignment]


def test_a_guard_that_breaks_after_the_last_reading_is_missed_when_the_others_end(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, during=broken_at_the_end, spoil_at=(), steps=9)
    assert [step for step, _ in told[0]["readings"]] == [2, 6]
    ((where, reason),) = faults(told[0])
    assert where == "ranks"
    assert reason.startswith("an exchange with the other ranks failed")
    assert [where for where, _ in faults(told[1])] == ["guard", "ranks"]


def unsynchronised(step: int, rank: int) -> Tensor:
    return loops.batch(step, rank)


def test_codebooks_that_drift_apart_are_told_once_and_written_alike(crew: Crew) -> None:
    told = crew.run(loops.ddp_run, 2, options={"sync_codebook": False}, data=unsynchronised, steps=24)
    for part in ("readings", "story"):
        assert told[0][part] == told[1][part]
    ((where, reason),) = faults(told[0])
    assert where == "quantizer"
    assert reason.startswith("its codebook is not the same on all ranks")
    assert "sync_codebook=True" in reason
    written = [marks for event, _, marks in told[0]["marks"] if event == "intervention"]
    theirs = [marks for event, _, marks in told[1]["marks"] if event == "intervention"]
    assert len(written) == 1
    assert written == theirs


def by_itself(
    rank: int,
    size: int,
    *,
    steps: tuple[int, ...],
    fails: bool = False,
    policy: dict[str, Any] = loops.POLICY,
    spoil_at: int | None = None,
    saves_at: tuple[int | None, ...] | None = None,
) -> dict[str, Any]:
    """Train without any collective but the guard's own, each rank for as long as it likes."""
    torch.manual_seed(0)
    model, recorder = loops.Autoencoder(loops.quantizer("ema", sync_codebook=False)), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    guard = Guard(policy, console=False, sinks=[recorder]).attach(model, optimizer)
    for step in range(steps[rank]):
        if step == spoil_at:
            loops.spoil(model)
        if saves_at is not None and step == saves_at[rank]:
            guard.state_dict(together=True)
        model(loops.batch(step, rank)).backward()
        optimizer.step()
        guard.step()
    guard.close(ended_by="RuntimeError" if fails and rank == 1 else None)
    return loops.told(recorder)


def test_a_rank_that_finishes_early_leaves_the_others_to_themselves(crew: Crew) -> None:
    told = crew.run(by_itself, 3, steps=(30, 14, 30))
    for rank in (0, 2):
        reasons = [reason for where, reason in faults(told[rank]) if where == "ranks"]
        assert len(reasons) == 1
        assert reasons[0].startswith("rank 1 has ended after 14 steps. The ranks no longer act as one")
    assert [where for where, _ in faults(told[1])] == [where for where, _ in faults(told[0])][:-1]


REFITTED = policy({"fallback_tokenizer": {"backend": "sklearn", "refit_every": "4 steps", "refit_growth": 1}})


def test_a_rank_that_ends_when_a_refit_is_due_next_leaves_the_others_to_themselves(crew: Crew) -> None:
    told = crew.run(by_itself, 2, steps=(18, 30), policy=REFITTED, spoil_at=6)
    where, reason = faults(told[1])[-1]
    assert where == "ranks"
    assert reason.startswith("rank 0 has ended after 18 steps. The ranks no longer act as one: nothing is read or")
    assert [step for step, event, _ in told[1]["story"] if event == "tended"] == [16]


def test_a_rank_that_saves_the_state_of_all_by_itself_is_told_so(crew: Crew) -> None:
    told = crew.run(by_itself, 2, steps=(20, 20), saves_at=(9, None))
    for rank in range(2):
        where, reason = faults(told[rank])[-1]
        assert where == "ranks"
        assert reason.startswith(
            "rank 0 saves the state of all ranks after 9 steps and rank 1 takes a reading after 10: each rank must "
            "make the same calls of its guard, at the same steps. The ranks no longer act as one"
        )


def test_a_rank_that_an_exception_ends_waits_for_nobody(crew: Crew) -> None:
    told = crew.run(by_itself, 2, steps=(30, 14), fails=True)
    where, reason = faults(told[0])[-1]
    assert where == "ranks"
    assert reason.startswith("an exchange with the other ranks failed")


def test_ranks_that_all_end_together_say_nothing_about_it(crew: Crew) -> None:
    told = crew.run(by_itself, 2, steps=(10, 10))
    assert [where for where, _ in faults(told[0])] == ["quantizer"]


def evaluating(rank: int, size: int) -> list[tuple[str, str]]:
    """Evaluate while the guard watches, and once more when it is closed."""
    recorder = Recorder()
    guard = Guard("observe", console=False, sinks=[recorder]).attach(loops.Autoencoder(loops.quantizer("ema")))
    with guard.evaluate():
        pass
    told = len(recorder.of("fault"))
    guard.close()
    guard._broken.clear()
    guard.begin_evaluation()
    assert len(recorder.of("fault")) == told
    return faults(loops.told(recorder))


def test_that_evaluation_is_not_read_is_told_by_the_first_rank_as_long_as_it_guards(crew: Crew) -> None:
    first, second = crew.run(evaluating, 2)
    what = "2 ranks train together, and evaluation is read where one trains alone: rules of stage eval do not fire; "
    assert (first, second) == ([("evaluation", what + "training is guarded all the same")], [])


def patience_of(rank: int, size: int, *, given: timedelta | None) -> timedelta:
    ranks = join_ranks(patience=given)
    assert isinstance(ranks, Ranks)
    group: Any = ranks._group
    patience: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    ranks.leave()
    return patience


@pytest.mark.parametrize(
    ("given", "then"), [(None, timedelta(minutes=5)), (timedelta(seconds=9), timedelta(seconds=9))]
)
def test_a_guard_waits_for_other_ranks_less_long_than_the_run_does(
    crew: Crew, given: timedelta | None, then: timedelta
) -> None:
    """NCCL aborts a run whose ranks wait for ten minutes, as they would for one that waits in its guard."""
    assert crew.run(patience_of, 2, given=given) == [then, then]


def unlike(rank: int, size: int) -> str:
    model = loops.Autoencoder(loops.quantizer("ema"))
    try:
        Guard("observe" if rank else "default", console=False).attach(model)
    except ValueError as error:
        return str(error)
    return ""


def test_guards_that_are_not_alike_are_refused_on_every_rank(crew: Crew) -> None:
    said = crew.run(unlike, 2)
    assert said[0] == said[1]
    assert said[0].startswith("expected the same guard and the same codebooks on every rank, got policy 'default'")


def writing(rank: int, size: int, *, folder: str) -> None:
    model = loops.Autoencoder(loops.quantizer("ema"))
    with Guard("observe", console=False, log_dir=f"{folder}/{rank}").attach(model):
        pass


def test_the_first_rank_alone_writes_the_log(crew: Crew, tmp_path: Path) -> None:
    crew.run(writing, 2, folder=str(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")] == [
        "0/collapse_guard/events.jsonl"
    ]

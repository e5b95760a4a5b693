"""A residual quantizer in a real loop: its levels collapse together or alone, and are repaired as what they are."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from collapse_guard import Guard, read_events
from collapse_guard.adapters import CodebookView
from collapse_guard.policies import DecisionKind, load_policy, recordings_of_events, replay
from collapse_guard.sinks import ConsoleSink
from tests.loops import Recorder

LEVELS, K, D = 4, 32, 8
SHORT = {"every": "10 steps", "when_suspect": "10 steps", "min_tokens": 256}
POLICY = {"version": 1, "name": "short", "extends": "default", "sample": SHORT}


class Codec(nn.Module):
    """An encoder before a residual quantizer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        self.rvq = ResidualVQ(dim=D, num_quantizers=LEVELS, codebook_size=K, decay=0.9, kmeans_init=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        quantized, _, losses = self.rvq(self.encoder(x))
        loss: Tensor = (quantized - x).square().mean() + losses.sum()
        return loss


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(200, D, generator=generator)
    return [
        centres[torch.randint(200, (1, 256), generator=generator)] + 0.3 * torch.randn(1, 256, D, generator=generator)
        for _ in range(count)
    ]


def collapse(model: Codec, levels: tuple[int, ...], *, to_one_row: bool = False) -> None:
    """Let codes grow as in the reference story, but for one; or overwrite them with one far row, but for one."""
    for level in levels:
        book: Any = model.rvq.layers[level]._codebook
        with torch.no_grad():
            book.embed.mul_(200) if not to_one_row else book.embed.fill_(40.0)
            book.embed[0, 0] = 0.0
            book.embed_avg.copy_(book.embed * book.cluster_size.unsqueeze(-1))


def train(
    model: Codec,
    guards: list[Guard],
    cuts: tuple[int, ...] = (),
    *,
    steps: int = 150,
    at: int = 60,
    levels: tuple[int, ...] = tuple(range(LEVELS)),
    to_one_row: bool = False,
) -> None:
    """Train, collapse some levels at a step; at each cut the next guard goes on from the state of the one before."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    guard = guards[0].attach(model, optimizer)
    model.train()
    for step, batch in enumerate(batches(steps)):
        if step in cuts:
            state = copy.deepcopy(guard.state_dict())
            guard._let_go()
            guard = guards[1 + cuts.index(step)].attach(model, optimizer)
            guard.load_state_dict(state)
        if step == at:
            collapse(model, levels, to_one_row=to_one_row)
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step(loss=loss.item())
    guard.close()


def codec(**options: Any) -> Codec:
    torch.manual_seed(0)
    return Codec(**options)


def story(recorder: Recorder) -> list[tuple[str, list[int] | str]]:
    """Alerts, interventions and outcomes, with the levels that each concerns."""
    told = recorder.of("alert", "intervention", "outcome")
    return [
        (
            event.fields.get("outcome") or event.fields.get("action") or event.event,
            event.fields.get("levels", event.fields["codebook"]),
        )
        for event in told
    ]


@pytest.mark.parametrize("to_one_row", [False, True])
def test_levels_that_collapse_together_make_one_alert_one_intervention_and_one_outcome(to_one_row: bool) -> None:
    recorder, model = Recorder(), codec()
    train(model, [Guard(POLICY, console=False, sinks=[recorder])], to_one_row=to_one_row)
    every = list(range(LEVELS))
    assert story(recorder) == [("alert", every), ("reset_codes", every), ("recovered", every)]
    (outcome,) = recorder.of("outcome")
    assert [(member["codebook"], member["outcome"]) for member in outcome.fields["members"]] == [
        (f"rvq.layers.{level}", "recovered") for level in every
    ]
    assert all(
        member["after"]["perplexity"] > 10 > member["before"]["perplexity"] for member in outcome.fields["members"]
    )
    (act,) = recorder.of("intervention")
    assert [member["codebook_version"] for member in act.fields["members"]] == [1] * LEVELS
    assert [book["health"] for book in recorder.of("summary")[0].fields["codebooks"]] == ["healthy"] * LEVELS


def test_a_level_that_collapses_alone_is_repaired_alone() -> None:
    recorder, model = Recorder(), codec()
    train(model, [Guard(POLICY, console=False, sinks=[recorder])], levels=(2,))
    alone = "rvq.layers.2"
    assert story(recorder) == [("alert", alone), ("reset_codes", alone), ("recovered", alone)]
    assert "members" not in recorder.of("intervention")[0].fields
    last = {event.fields["codebook"]: event.fields["rewrites"] for event in recorder.of("reading")}
    assert last == {f"rvq.layers.{level}": 1 for level in range(LEVELS)}  # what is repaired in one concerns them all


def test_a_resumed_run_decides_in_the_middle_of_a_coordinated_intervention_as_the_uninterrupted_one() -> None:
    whole, model = Recorder(), codec()
    train(model, [Guard(POLICY, console=False, sinks=[whole])])
    (act,) = whole.of("intervention")
    for cut in (act.step + 5, act.step + 15):
        parts, resumed = Recorder(), codec()
        guards = [Guard(POLICY, console=False, sinks=[parts]) for _ in range(2)]
        train(resumed, guards, (cut,))
        assert [event.fields for event in parts.of("alert", "intervention", "outcome")] == [
            event.fields for event in whole.of("alert", "intervention", "outcome")
        ]
        assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_log_of_a_coordinated_intervention_replays_to_the_same_decisions(tmp_path: Path) -> None:
    train(codec(), [Guard(POLICY, console=False, log_dir=tmp_path)])
    records = list(read_events(tmp_path))
    (recording,) = recordings_of_events(records)
    kinds = {DecisionKind.ALERT: "alert", DecisionKind.ACT: "intervention", DecisionKind.OUTCOME: "outcome"}
    replayed = [
        (each.step, kinds[each.kind], list(each.codebooks), each.attempt)
        for each in replay(load_policy(POLICY), recording).decisions
        if each.kind in kinds
    ]
    assert len(replayed) == 3
    assert replayed == [
        (record["step"], record["event"], record["codebooks"], record.get("attempt"))
        for record in records
        if record["event"] in kinds.values()
    ]


def test_levels_whose_tokens_cannot_be_followed_wait_for_the_coarsest_and_are_repaired_after_it() -> None:
    """With quantizer dropout the finer levels see other forwards than the coarse ones."""
    recorder, model = Recorder(), codec(quantize_dropout=True)
    train(model, [Guard(POLICY, console=False, sinks=[recorder])], steps=220)
    first, second, *_ = recorder.of("intervention")
    assert first.fields["levels"][0] == 0
    assert [member["result"] for member in first.fields["members"]] == [
        "applied",
        *["postponed"] * (len(first.fields["levels"]) - 1),
    ]
    assert "cannot be derived from those of" in first.fields["members"][1]["summary"]
    assert story(recorder)[2] == ("recovered", "rvq.layers.0")
    assert second.fields["codebook"] == "rvq.layers.1"
    skips = [event.fields for event in recorder.of("skip") if event.step == first.step and "reason" in event.fields]
    assert any("it waits for new ones" in each["reason"] for each in skips)


def test_an_action_that_raises_on_one_level_is_put_back_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, model = Recorder(), codec()
    write = CodebookView.write_rows

    def fails(view: CodebookView, rows: Tensor, vectors: Tensor, counts: Tensor | None = None) -> None:
        write(view, rows, vectors, counts)
        if view.level == 2:
            raise RuntimeError("no more memory")

    monkeypatch.setattr(CodebookView, "write_rows", fails)
    before: dict[str, Tensor] = {}

    class Look(Recorder):
        def write(self, event: Any) -> None:
            if event.event == "alert":
                before.update({key: value.clone() for key, value in model.state_dict().items()})
            if event.event == "intervention":
                assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            super().write(event)

    look = Look()
    train(model, [Guard(POLICY, console=False, sinks=[look, recorder])], steps=110)
    first = recorder.of("intervention")[0].fields
    assert first["result"] == "refused"
    assert [member["summary"] for member in first["members"]] == [
        "rvq.layers.2: RuntimeError: no more memory; everything was put back"
        if level != 2
        else "RuntimeError: no more memory; everything was put back"
        for level in range(LEVELS)
    ]


def test_several_levels_ask_the_training_loop_once() -> None:
    guard, model = (
        Guard(POLICY | {"rules": [{"name": "collapsed", "ladder": ["save_checkpoint"]}]}, console=False),
        codec(),
    )
    train(model, [guard], steps=90)
    assert [(each.kind, each.codebook, each.reason) for each in guard.requests.take()] == [
        ("save_checkpoint", "rvq.layers.0", "rung 1: save_checkpoint")
    ]


def test_the_console_tells_a_coordinated_intervention_in_three_lines() -> None:
    text = io.StringIO()
    sink = ConsoleSink(Console(file=text, width=400))
    train(codec(), [Guard(POLICY, console=False, sinks=[sink])])
    lines = [" ".join(line.split()[4:]) for line in text.getvalue().splitlines() if "  step " in line[:30]]
    assert [line.partition(" for ")[0].partition(" on ")[0].partition(" recovered: ")[0] for line in lines] == [
        "CRITICAL rvq.layers: levels 0-3 of 4: collapsed: perplexity 1.00 < 1.5 and perplexity_ratio 0.03 < 0.5 "
        "and rest_ratio 0.00 < 0.35 and relative_error 1.00 > 0.9",
        "ACT rvq.layers: levels 0-3 of 4: reset_codes #1: 32 of 32 codes placed by reservoir",
        "RECOVERED rvq.layers: levels 0-3 of 4: reset_codes #1: levels 0-3",
    ]

"""The promise to break nothing: whatever fails in or around the guard, the run goes on and is left clean."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from collapse_guard import Event, GenericVQ, Guard, NoQuantizerError, read_events
from collapse_guard.demos import DigitsClassifier
from tests import quantizers
from tests.loops import Recorder, digits_model, train


def poisoned_at(when: int, model: DigitsClassifier) -> Callable[[int], None]:
    """At one step, turn the encoder's weights into NaN."""

    def poison(step: int) -> None:
        if step == when:
            with torch.no_grad():
                cast(nn.Linear, model.encoder[0]).weight.fill_(float("nan"))

    return poison


def test_nan_latents_raise_an_alert_and_not_an_exception() -> None:
    recorder = Recorder()
    model = digits_model(repaired=True)

    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(model, 120, guard, before_step=poisoned_at(60, model))
    (alert,) = [event for event in recorder.of("alert") if event.fields["rule"] == "non_finite"]
    assert 60 < alert.step <= 110
    assert "NaN or Inf" in alert.fields["why"]
    assert recorder.of("fault") == []


def test_a_torn_last_line_is_skipped_and_the_next_run_appends_after_it(tmp_path: Path, caplog: Any) -> None:
    with Guard("observe", console=False, log_dir=tmp_path) as guard:
        train(digits_model(), 10, guard)
    path = tmp_path / "collapse_guard" / "events.jsonl"
    whole = len(path.read_text().splitlines())
    with path.open("a") as file:
        file.write('{"schema": 1, "event": "rea')
    with Guard("observe", console=False, log_dir=tmp_path) as guard:
        train(digits_model(), 10, guard)
    assert len(list(read_events(path))) == 2 * whole
    assert "torn" in caplog.text


def test_a_guard_that_was_never_attached_says_so_once_and_takes_no_state(caplog: Any) -> None:
    guard = Guard("observe", console=False)
    guard.step()
    guard.step()
    assert [record.message for record in caplog.records] == [
        "guard.step() was called before guard.attach(model, optimizer): nothing is guarded"
    ]
    with pytest.raises(RuntimeError, match="expected a guard that is attached, got one that is not: call"):
        guard.load_state_dict(guard.state_dict())


class Broken(Recorder):
    """A sink that fails after its first event."""

    def write(self, event: Event) -> None:
        super().write(event)
        if len(self.events) > 1:
            raise OSError("disk full")


def test_a_sink_that_raises_is_switched_off_and_said_once(caplog: Any) -> None:
    broken, healthy = Broken(), Recorder()
    with Guard("default", console=False, sinks=[broken, healthy]) as guard:
        train(digits_model(), 30, guard)
    assert len(broken.events) == 2
    (fault,) = healthy.of("fault")
    assert fault.fields["reason"] == "Broken raised OSError: disk full; it is switched off, training goes on"
    assert caplog.text.count("disk full") == 1


def test_a_probe_that_raises_is_switched_off_and_said_once() -> None:
    def raising(output: Any) -> torch.Tensor:
        raise RuntimeError("codes are elsewhere")

    recorder = Recorder()
    model = nn.Sequential(quantizers.Learnable())
    adapters = {"0": GenericVQ(table="embedding.weight", codes=raising)}
    with Guard("default", console=False, sinks=[recorder], adapters=adapters) as guard:
        guard.attach(model)
        for _ in range(3):
            model(torch.randn(4, 8))
            guard.step()
    (fault,) = recorder.of("fault")
    assert "codes are elsewhere" in fault.fields["reason"]


def test_an_intervention_that_raises_puts_everything_back_and_the_ladder_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collapse_guard.interventions import reset_codes

    def raising(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(reset_codes, "clear_moments", raising)
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 40, guard)
    reset, fallback = recorder.of("intervention")
    assert (reset.fields["result"], fallback.fields["result"]) == ("refused", "applied")
    assert "RuntimeError: no memory; everything was put back" in reset.fields["summary"]


def test_an_intervention_that_cannot_even_be_prepared_is_refused_and_the_ladder_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collapse_guard.residual import members_of

    broken = iter([True])

    def raising_once(*args: Any) -> Any:
        if next(broken, False):
            raise MemoryError("no room to compare levels")
        return members_of(*args)

    monkeypatch.setattr("collapse_guard.ledger.members_of", raising_once)
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 40, guard)
    refused, fallback = recorder.of("intervention")
    assert (refused.fields["result"], fallback.fields["result"]) == ("refused", "applied")
    assert refused.fields["summary"] == "raised MemoryError: no room to compare levels; nothing was touched"
    assert not recorder.of("fault")


def test_hooks_and_sinks_are_released_when_the_loop_raises() -> None:
    recorder = Recorder()
    model = digits_model()
    guard = Guard("default", console=False, sinks=[recorder])

    def interrupt(step: int) -> None:
        if step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), guard:
        train(model, 200, guard, before_step=interrupt)
    assert recorder.closed == 1
    assert recorder.of("summary")
    assert [o.fields["outcome"] for o in recorder.of("outcome")] == ["failed", "inconclusive"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_copy_of_a_guarded_model_is_not_watched_and_can_be_pickled() -> None:
    model = digits_model()
    with Guard("default", console=False) as guard:
        train(model, 90, guard)
        twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        tokens = guard._watch.probes["quantizer"].window.tallies
        assert tokens is not None
        before = tokens.clone()
        for other in (twin, again):
            other.train()(torch.rand(8, 64))
        assert torch.equal(tokens, before)
        assert torch.equal(twin.state_dict()["quantizer.codebook"], model.state_dict()["quantizer.codebook"]) is False


def test_a_model_without_a_quantizer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    guard = Guard("default", console=False, log_dir=tmp_path)
    with pytest.raises(NoQuantizerError, match="found no quantizer to guard in Linear"):
        guard.attach(nn.Linear(2, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (lambda output: output[0], "expected integer codes, got torch.float32"),
        (lambda output: output[2][:3], "expected one code for each of 8 latents, got (3,)"),
        (lambda output: output[2] + 1000, "expected codes from 0 to 15 (-1 for no token), got 10"),
    ],
)
def test_a_description_that_reads_something_else_is_found_out_at_the_first_forward(codes: Any, expected: str) -> None:
    recorder = Recorder()
    model = nn.Sequential(quantizers.Learnable())
    adapters = {"0": GenericVQ(table="embedding.weight", codes=codes)}
    with Guard("default", console=False, sinks=[recorder], adapters=adapters) as guard:
        guard.attach(model)
        for _ in range(40):
            model(torch.randn(8, 8))
            guard.step()
    (fault,) = recorder.of("fault")
    assert expected in fault.fields["reason"]
    assert recorder.of("reading", "intervention") == []
    assert recorder.of("summary")[0].fields["codebooks"][0]["is_watched"] is False


def test_a_quantizer_whose_forward_is_never_called_is_not_silently_unwatched() -> None:
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        guard.attach(digits_model())
        for _ in range(60):
            guard.step()
    (fault,) = recorder.of("fault")
    assert "it is not being measured" in fault.fields["reason"]
    assert recorder.of("summary")[0].fields["codebooks"][0]["last"] is None


def test_a_model_is_watched_by_one_guard_at_a_time() -> None:
    model = digits_model()
    with Guard("observe", console=False) as first:
        first.attach(model)
        with pytest.raises(RuntimeError, match="watched by another guard already"):
            Guard("observe", console=False).attach(model)
    with Guard("observe", console=False) as second:
        second.attach(copy.deepcopy(model))


def test_nothing_is_repaired_while_latents_are_nan() -> None:
    recorder = Recorder()
    model = digits_model(repaired=True)

    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(model, 250, guard, before_step=poisoned_at(60, model))
    assert recorder.of("intervention") == []


def test_the_summary_says_what_stays_in_force_and_what_ended_the_run() -> None:
    recorder = Recorder()

    def interrupt(step: int) -> None:
        if step == 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 200, guard, before_step=interrupt)
    (summary,) = recorder.of("summary")
    assert summary.fields["ended_by"] == "KeyboardInterrupt"
    assert [item["action"] for item in summary.fields["in_force"]] == ["fallback_tokenizer"]


def test_the_log_does_not_stand_in_the_way_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder collapse_guard in a script's own directory would be imported in place of the package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    with Guard("observe", console=False, log_dir=tmp_path) as guard:
        train(digits_model(), 10, guard)
    assert not (tmp_path / "collapse_guard").exists()
    assert {record["run"] for record in read_events(tmp_path)} == {guard_run(tmp_path)}
    assert list(read_events(tmp_path / "collapse_guard_log"))


def guard_run(log_dir: Path) -> str:
    (line, *_) = (log_dir / "collapse_guard_log" / "events.jsonl").read_text().splitlines()
    run = json.loads(line)["run"]
    assert isinstance(run, str)
    return run


@pytest.mark.parametrize("loss", [torch.tensor(0.5, requires_grad=True) * 2, torch.tensor([1.0]), lambda: 1.0, 1])
def test_a_loss_may_be_a_number_a_tensor_or_a_function(loss: Any) -> None:
    recorder = Recorder()
    model = digits_model(repaired=True)
    with Guard("observe", console=False, sinks=[recorder]) as guard:
        guard.attach(model)
        for _ in range(10):
            model.train()(torch.rand(32, 64))
            guard.step(loss=loss)
    assert recorder.of("fault") == []
    assert recorder.of("reading")[0].fields["loss"] == 1.0


def test_a_loss_that_is_no_number_is_told_and_readings_go_on_in_training_and_evaluation() -> None:
    recorder = Recorder()
    model = digits_model(repaired=True)
    few = {"version": 1, "rules": [{"name": "few", "when": "perplexity < 1.01"}]}  # which asks for no loss
    with Guard(few, console=False, sinks=[recorder]) as guard:
        guard.attach(model)
        for step in range(110):
            model.train()(torch.rand(256, 64))
            guard.step(loss=torch.ones(3))
            if step == 59:
                guard.begin_evaluation()
                model.eval()(torch.rand(256, 64))
                guard.end_evaluation(loss=torch.ones(3))
    (told,) = recorder.of("fault")
    assert told.fields["where"] == "loss"
    assert "readings go on without" in told.fields["reason"]
    readings = [(event.fields["stage"], event.step, event.fields["loss"]) for event in recorder.of("reading")]
    assert ("eval", 60, None) in readings
    assert readings[-1] == ("train", 110, None)


def test_state_that_cannot_be_read_is_told_and_the_run_resumes_without_it() -> None:
    donor = Guard("default", console=False)
    with donor:
        train(digits_model(), 40, donor)
        state = donor.state_dict()
    for spoiled in ({**state, "engine": {"schema": 99}}, {**state, "ledger": {}}, {"schema": 1}):
        recorder = Recorder()
        with Guard("default", console=False, sinks=[recorder]) as guard:
            guard.attach(digits_model())
            guard.load_state_dict(spoiled)
            assert guard.steps == 0
        assert "the guard starts afresh" in recorder.of("fault")[0].fields["reason"]


def test_a_decayed_commitment_weight_survives_a_resume() -> None:
    policy = {
        "version": 1, "name": "decay", "sample": {"every": "10 steps", "when_suspect": "10 steps", "min_tokens": 64},
        "rules": [{"name": "low", "when": "perplexity < 2", "ladder": [{"decay_commitment": {"factor": 0.25}}]}],
    }  # fmt: skip
    with Guard(policy, console=False) as guard:
        train(digits_model(), 30, guard)
        state = guard.state_dict()
    model = digits_model()
    with Guard(policy, console=False) as resumed:
        resumed.attach(model)
        resumed.load_state_dict(state)
        assert cast(Any, model.quantizer).commitment == pytest.approx(0.1)


def test_what_a_removed_rule_had_open_ends_inconclusive() -> None:
    with Guard("default", console=False) as guard:
        train(digits_model(), 40, guard)
        state = guard.state_dict()
    other = {"version": 1, "name": "other", "rules": [{"name": "another", "when": "perplexity < 1.2"}]}
    with Guard(other, console=False) as resumed:
        resumed.attach(digits_model())
        resumed.load_state_dict(state)
        (entry,) = resumed.state_dict()["ledger"]["entries"]
    assert (entry["result"], entry["transaction"]) == ("inconclusive", None)

"""Reading the codebook in evaluation: what counts there, and what it leaves alone."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from collapse_guard import Guard, read_events
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import CaseQuantizer, DigitsAutoencoder, digits_loaders
from collapse_guard.evaluation import ModuleState
from tests.callbacks.models import QUIET_TRAINER
from tests.loops import Recorder

EPOCH = 45
APART = {
    "version": 1,
    "mode": "observe",
    "rules": [
        {"name": "low", "when": "perplexity < 1.5"},
        {"name": "apart", "stage": "eval", "when": "eval_to_train < 1000", "ladder": ["eval_fix"]},
    ],
}
"""Fires at every validation, so that modes are compared each time."""


def noisy_model(seed: int = 0) -> DigitsAutoencoder:
    """A model with everything that has a state or a random stream: normalisation, dropout, drawn codes, averages."""
    torch.manual_seed(seed)
    before = nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.3))
    return DigitsAutoencoder(CaseQuantizer(temperature=0.5, updates_always=True), before)


def run_loop(model: DigitsAutoencoder, guard: Guard | None, epochs: int = 2) -> list[Tensor]:
    """Train with a validation after each epoch; return the codes of all validations."""
    train, test = digits_loaders(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    codes: list[Tensor] = []
    if guard is not None:
        guard.attach(model, optimizer)

    def validate() -> None:
        model.eval()
        handle = model.quantizer.register_forward_hook(lambda _, __, out: codes.append(out[1].detach().flatten()))
        with torch.no_grad():
            for images in torch.as_tensor(next(iter(test))[0]).split(60):
                model.loss_of(images)
        handle.remove()

    torch.manual_seed(0)
    for _ in range(epochs):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
            if guard is not None:
                guard.step()
        if guard is None:
            validate()
        else:
            with guard.evaluate():
                validate()
    return codes


def everything(model: nn.Module) -> list[Any]:
    return [*(tensor.clone() for tensor in model.state_dict().values()), torch.get_rng_state()]


def test_a_whole_validation_makes_one_reading_of_its_own_counts() -> None:
    model, sink = noisy_model(), Recorder()
    codes = run_loop(model, Guard(APART, console=False, sinks=[sink]), epochs=1)
    (reading,) = [each.fields for each in sink.of("reading") if each.fields["stage"] == "eval"]
    counts = np.bincount(torch.cat(codes).numpy(), minlength=64)
    share = counts[counts > 0] / counts.sum()
    assert reading["tokens"] == 720
    assert reading["perplexity"] == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-12)
    assert reading["usage"] == (counts > 0).mean()
    assert reading["eval_to_train"] > 0


def test_observing_evaluation_and_comparing_modes_changes_no_bit_and_no_random_stream() -> None:
    states = []
    for sink in (None, Recorder()):
        random.seed(0)
        np.random.seed(0)
        model = noisy_model()
        guard = Guard(APART, console=False, sinks=[sink]) if sink is not None else None
        run_loop(model, guard)
        states.append([*everything(model), torch.tensor(random.random()), torch.as_tensor(np.random.random())])
        if sink is not None:
            assert sink.of("alert")[0].fields["reading"]["causes"]
            assert not sink.of("fault")
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_windows_and_reservoirs_of_training_are_not_touched_by_evaluation() -> None:
    model, sink = noisy_model(), Recorder()
    guard = Guard(APART, console=False, sinks=[sink])
    run_loop(model, guard, epochs=1)
    before = copy.deepcopy(guard.state_dict()["watch"])
    model.eval()
    with guard.evaluate(), torch.no_grad():
        model.loss_of(torch.rand(64, 64))
    after = guard.state_dict()["watch"]
    for name, value in before["windows"]["quantizer"].items():
        now = after["windows"]["quantizer"][name]
        assert torch.equal(now, value) if isinstance(value, Tensor) else now == value
    assert before["first"] == after["first"]


def test_an_evaluation_that_breaks_off_leaves_no_reading_and_its_exception_goes_on() -> None:
    model, sink = noisy_model(), Recorder()
    guard = Guard(APART, console=False, sinks=[sink])
    guard.attach(model)
    model.eval()

    def broken() -> None:
        with guard.evaluate(), torch.no_grad():
            model.loss_of(torch.rand(64, 64))
            raise KeyError("the loader")

    with pytest.raises(KeyError):
        broken()
    with torch.no_grad():
        model.loss_of(torch.rand(64, 64))
    assert sink.of("reading") == []
    with guard.evaluate(), torch.no_grad():
        model.loss_of(torch.rand(8, 64))
    assert [each.fields["tokens"] for each in sink.of("reading")] == [16]


def test_an_evaluation_in_training_mode_is_still_evaluation() -> None:
    model, sink = noisy_model(), Recorder()
    guard = Guard(APART, console=False, sinks=[sink])
    guard.attach(model)
    model.train()
    with guard.evaluate(), torch.no_grad():
        model.loss_of(torch.rand(8, 64))
    (reading,) = sink.of("reading")
    assert (reading.fields["stage"], reading.fields["tokens"]) == ("eval", 16)
    assert guard.state_dict()["watch"]["windows"]["quantizer"]["added"] == 0


def test_a_model_that_cannot_be_copied_is_told_and_harms_nothing() -> None:
    class Stubborn(DigitsAutoencoder):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("not me")

    torch.manual_seed(0)
    model, sink = Stubborn(CaseQuantizer()), Recorder()
    run_loop(model, Guard(APART, console=False, sinks=[sink]), epochs=1)
    (fault,) = sink.of("fault")
    assert "could not be compared: the model cannot be copied: RuntimeError: not me" in fault.fields["reason"]
    assert [each.fields["result"] for each in sink.of("intervention")] == []
    assert len(sink.of("alert")) == 1


@pytest.mark.parametrize("sanity", [0, 2])
def test_lightning_reads_each_validation_and_neither_sanity_check_nor_fast_dev_run(tmp_path: Path, sanity: int) -> None:
    train, test = digits_loaders(0)
    sink, logger = Recorder(), CSVLogger(tmp_path)
    guard = CollapseGuard(APART, console=False, sinks=[sink], log_dir=tmp_path)
    options = {**QUIET_TRAINER, "logger": logger, "log_every_n_steps": 10, "default_root_dir": tmp_path}
    pl.Trainer(max_epochs=2, num_sanity_val_steps=sanity, callbacks=[guard], **options).fit(noisy_model(), train, test)
    shown = [each for each in sink.of("reading") if each.fields["stage"] == "eval"]
    assert [(each.step, each.fields["epoch"], each.fields["tokens"]) for each in shown] == [(45, 0, 720), (90, 1, 720)]
    assert [record["stage"] for record in read_events(tmp_path) if record["event"] == "reading"].count("eval") == 2
    logger.save()
    head = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "codebook_perplexity_eval/quantizer" in head
    assert "codebook_perplexity/quantizer" in head
    quick = CollapseGuard(APART, console=False, log_dir=tmp_path)
    pl.Trainer(fast_dev_run=True, callbacks=[quick], **QUIET_TRAINER).fit(noisy_model(), train, test)
    assert quick.guard is None


def test_a_module_state_puts_back_tensors_that_were_written_or_bound_anew_and_plain_attributes() -> None:
    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("table", torch.randn(4, 2))
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))
            self.is_started, self.scale = False, 2.0

    torch.manual_seed(0)
    module = Busy()
    table = module.get_buffer("table")
    before = copy.deepcopy(module.state_dict())
    state = ModuleState(module)
    with torch.no_grad():
        module.weight.mul_(2)
    module._buffers["table"] = torch.zeros(4, 2)
    module.get_buffer("steps").add_(1)
    module.is_started = True
    module.__dict__["count"] = 3
    assert {name: pytest.approx(1.0) for name in ("weight", "table")} == {
        name: float(value) for name, value in state.changed().items()
    }
    state.restore()
    assert module.get_buffer("table") is table
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (module.is_started, module.scale, hasattr(module, "count")) == (False, 2.0, False)

"""How a Trainer may execute a guarded model: loss scales, averaged weights, and writes that keep every address."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from collapse_guard import Guard
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer
from tests.callbacks.test_lightning import fit
from tests.loops import Recorder, digits_model, train
from tests.test_execution import BUSY, SOME, Model


class Overflowing(DigitsClassifier):
    """Its loss overflows in some batches, so that the gradient scaler skips the step."""

    def __init__(self) -> None:
        super().__init__(ReferenceQuantizer(repaired=True))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx in (3, 4, 9) else loss


def test_a_step_that_the_gradient_scaler_skips_is_no_step(tmp_path: Path) -> None:
    guard = CollapseGuard("observe", console=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    run = fit(tmp_path, guard, Overflowing(), max_steps=20, plugins=[precision])
    steps = next(iter(run.optimizers[0].state.values()))["step"]
    assert guard.guard is not None
    assert guard.guard.steps == int(steps) == 17


def test_averaged_weights_follow_a_codebook_that_was_placed_anew(tmp_path: Path) -> None:
    """What training ends with is the average, which at this decay would still be the codebook before the reset."""
    averaging = EMAWeightAveraging(decay=0.9999, use_buffers=True)
    model, recorder = digits_model(), Recorder()
    seen: list[Tensor] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 99:
                seen.append(pl_module.quantizer.codebook.clone())

    guard = CollapseGuard("default", console=False, sinks=[recorder])
    pl.seed_everything(0, verbose=False)
    from collapse_guard.demos import digits_loaders
    from tests.callbacks.test_lightning import trainer

    trainer(tmp_path, averaging, guard, Look(), max_steps=99).fit(model, digits_loaders(0)[0])
    assert [event.fields["action"] for event in recorder.of("intervention")] == ["reset_codes", "fallback_tokenizer"]
    table: Any = model.quantizer
    assert torch.allclose(table.codebook, seen[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("part", ["quantizer", "classifier"])
def test_an_average_of_a_part_of_the_model_follows_where_the_codebook_is_in_it(tmp_path: Path, part: str) -> None:
    class Average(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.average = AveragedModel(pl_module.get_submodule(part), use_buffers=True)

    from collapse_guard.demos import digits_loaders
    from tests.callbacks.test_lightning import trainer

    model, recorder, average = digits_model(), Recorder(), Average()
    before = copy.deepcopy(model.state_dict())
    guard = CollapseGuard("default", console=False, sinks=[recorder])
    run = trainer(tmp_path, average, guard, max_steps=99)
    run.fit(model, digits_loaders(0)[0])
    assert (run.global_step, bool(recorder.of("intervention"))) == (99, True)
    ends_in = model.state_dict() if part == "quantizer" else before  # nothing else moves this average
    for name, tensor in average.average.module.state_dict().items():
        assert torch.equal(tensor, ends_in[f"{part}.{name}"]) or name == "steps", name  # which is no part of a codebook


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_every_write_is_in_place_so_that_captured_graphs_keep_their_addresses(case: Any) -> None:
    torch.manual_seed(0)
    model, recorder = Model(case).train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Guard(BUSY, console=False, sinks=[recorder]) as guard:
        guard.attach(model, optimizer)
        for _ in range(16):
            optimizer.zero_grad()
            model(case.batch()).backward()
            optimizer.step()
            before = addresses(model, optimizer)
            guard.step()
            assert addresses(model, optimizer) == before
    assert {event.fields["result"] for event in recorder.of("intervention")} >= (
        {"refused"} if "reset" in case.lacks else {"applied"}
    )


def test_freezing_undoing_and_releasing_keep_every_address() -> None:
    model = digits_model()
    with Guard("default", console=False) as guard:
        optimizer = train(model, 25, guard)
        before = addresses(model, optimizer)
        inputs = torch.rand(64, 64)
        for _ in range(110):
            loss = model.training_step((inputs, torch.zeros(64, dtype=torch.long)), 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step()
            assert addresses(model, optimizer) == before
        assert [entry["action"] for entry in guard.interventions][:1] == ["reset_codes"]
    assert addresses(model, optimizer) == before


def addresses(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers(), *moments)]

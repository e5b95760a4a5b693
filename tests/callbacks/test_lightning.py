"""The callback under real Lightning Trainers on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import NoQuantizerError, PolicyError, read_events
from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from tests.callbacks.models import QUIET_TRAINER
from tests.loops import Recorder, digits_model

EPOCH = 45  # optimizer steps in one epoch of the digits


def trainer(tmp_path: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {**QUIET_TRAINER, "max_steps": 100, "default_root_dir": tmp_path}
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(
    tmp_path: Path, guard: CollapseGuard | None, model: pl.LightningModule | None = None, **options: Any
) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    model = digits_model() if model is None else model
    run = trainer(tmp_path, *([guard] if guard is not None else []), **options)
    run.fit(model, digits_loaders(0)[0])
    return run


def test_ten_lines_are_enough_and_the_log_lies_where_the_trainer_says(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path, CollapseGuard(policy="default"))
    events = [record["event"] for record in read_events(tmp_path)]
    assert events[0] == "attached"
    assert events[-1] == "summary"
    printed = capsys.readouterr().out
    for expected in (
        "quantizer",
        "256",
        "home-made",
        "CRITICAL",
        "reset_codes",
        "FAILED",
        "fallback_tokenizer",
        "summary",
    ):
        assert expected in printed


def test_observe_mode_ends_bit_equal_to_the_run_without_the_guard(tmp_path: Path) -> None:
    states = []
    for guard in (None, CollapseGuard("observe", console=False)):
        model = digits_model()
        run = fit(tmp_path, guard, model, max_steps=200)
        states.append((model.state_dict(), run.optimizers[0].state_dict()["state"]))
    (weights, moments), (weights_too, moments_too) = states
    assert all(torch.equal(weights[key], weights_too[key]) for key in weights)
    assert all(torch.equal(moments[i][key], moments_too[i][key]) for i in moments for key in moments[i])


def test_a_checkpoint_of_a_guarded_run_is_plain_data_and_its_model_is_the_plain_model(tmp_path: Path) -> None:
    guard = CollapseGuard("default", console=False)
    run = fit(tmp_path, guard, max_steps=130)
    run.save_checkpoint(tmp_path / "guarded.ckpt")
    checkpoint = torch.load(tmp_path / "guarded.ckpt", weights_only=True)
    plain = DigitsClassifier(ReferenceQuantizer())
    plain.load_state_dict(checkpoint["state_dict"])
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "CollapseGuard" in key]
    assert state["step"] == 130
    assert [entry["result"] for entry in state["ledger"]["entries"]] == ["failed", "recovered", "applied"]


@pytest.mark.parametrize("cut", [EPOCH, 2 * EPOCH])
def test_a_run_resumed_from_a_checkpoint_goes_on_with_its_fallback(tmp_path: Path, cut: int) -> None:
    first = fit(tmp_path, CollapseGuard("default", console=False), max_steps=cut)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    model, recorder = digits_model(), Recorder()
    second = trainer(tmp_path, CollapseGuard("default", console=False, sinks=[recorder]), max_steps=4 * EPOCH)
    second.fit(model, digits_loaders(0)[0], ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert recorder.of("resumed")[0].step == cut
    actions = [event.fields["action"] for event in recorder.of("intervention")]
    assert actions == [*(["fallback_tokenizer"] if cut == EPOCH else []), "restart_optimizer"]
    assert recorder.of("outcome")[-1].fields["outcome"] == "recovered"
    assert recorder.of("summary")[0].fields["codebooks"][0]["last"]["perplexity"] > 20


def test_a_second_fit_of_the_same_model_goes_on(tmp_path: Path) -> None:
    recorder = Recorder()
    guard = CollapseGuard("default", console=False, sinks=[recorder])
    run = fit(tmp_path, guard, max_steps=130)
    run.fit_loop.epoch_loop.max_steps = 200
    run.fit(run.lightning_module, digits_loaders(0)[0])
    actions = [event.fields["action"] for event in recorder.of("intervention")]
    assert actions == ["reset_codes", "fallback_tokenizer", "restart_optimizer"]
    assert recorder.of("resumed")


def test_steps_are_optimizer_steps_under_gradient_accumulation(tmp_path: Path) -> None:
    guard = CollapseGuard("observe", console=False)
    fit(tmp_path, guard, max_steps=12, accumulate_grad_batches=3)
    assert guard.guard is not None
    assert guard.guard.steps == 12


class TwoOptimizers(DigitsClassifier):
    """Manual optimization as in a VQ-GAN: two optimizers step in each batch."""

    def __init__(self) -> None:
        super().__init__(ReferenceQuantizer())
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.encoder.parameters()), torch.optim.Adam(self.classifier.parameters())


def test_two_optimizers_make_one_step_per_batch(tmp_path: Path) -> None:
    recorder = Recorder()
    callback = CollapseGuard(console=False, sinks=[recorder])
    fit(tmp_path, callback, TwoOptimizers(), max_steps=60)
    assert [event.step for event in recorder.of("alert")] == [30]
    assert callback.guard is not None
    assert callback.guard.total_steps == 30
    assert recorder.of("summary")[0].step == 30


def test_fast_dev_run_is_left_alone(tmp_path: Path) -> None:
    guard = CollapseGuard("default")
    fit(tmp_path, guard, fast_dev_run=True)
    assert guard.guard is None


def test_sanity_check_and_validation_are_not_counted(tmp_path: Path) -> None:
    class Validated(DigitsClassifier):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self(batch[0])

    recorder = Recorder()
    guard = CollapseGuard("observe", console=False, sinks=[recorder])
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path, guard, max_steps=10, val_check_interval=5)
    loader, test = digits_loaders(0)
    run.fit(Validated(ReferenceQuantizer(repaired=True)), loader, test)
    told = [(event.step, event.fields["stage"], event.fields["tokens"]) for event in recorder.of("reading")]
    validated = sum(len(labels) for _, labels in test) * 2
    assert told == [(5, "eval", validated), (10, "train", 10 * 32 * 2), (10, "eval", validated)]


def test_hooks_and_files_are_released_when_training_raises(tmp_path: Path) -> None:
    class Failing(DigitsClassifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 30:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    model, recorder = Failing(ReferenceQuantizer()), Recorder()
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, CollapseGuard("default", console=False, sinks=[recorder]), model)
    assert recorder.closed == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_quantizer_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.raises(NoQuantizerError, match="found no quantizer to guard in DigitsClassifier"):
        fit(tmp_path, CollapseGuard("default"), DigitsClassifier(None))


def test_a_bad_policy_is_refused_when_the_callback_is_made() -> None:
    with pytest.raises(PolicyError, match="defualt"):
        CollapseGuard("defualt")


def test_nan_latents_do_not_end_the_run(tmp_path: Path) -> None:
    class Poisoned(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 30:
                with torch.no_grad():
                    pl_module.encoder[0].weight.fill_(float("nan"))

    recorder = Recorder()
    run = trainer(tmp_path, Poisoned(), CollapseGuard("default", console=False, sinks=[recorder]))
    run.fit(digits_model(repaired=True), digits_loaders(0)[0])
    assert run.global_step == 100
    assert "non_finite" in [event.fields["rule"] for event in recorder.of("alert")]


def test_the_named_loss_reaches_the_readings(tmp_path: Path) -> None:
    class Logging(DigitsClassifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    recorder = Recorder()
    guard = CollapseGuard("observe", loss="train_loss", console=False, sinks=[recorder])
    fit(tmp_path, guard, Logging(ReferenceQuantizer()), max_steps=10)
    assert recorder.of("reading")[0].fields["loss"] > 0


def test_a_metric_of_another_name_than_the_one_that_is_logged_is_told(tmp_path: Path) -> None:
    recorder = Recorder()
    guard = CollapseGuard("default", loss="trian_loss", console=False, sinks=[recorder])
    run = fit(tmp_path, guard, DigitsClassifier(ReferenceQuantizer()), max_steps=80)
    (told,) = recorder.of("fault")
    assert told.fields["where"] == "loss"
    assert told.step > run.num_training_batches  # not before what an epoch makes would have been there
    assert "the name of a metric that training_step logs" in told.fields["reason"]


class Remembering(DigitsClassifier):
    """Keeps each loss, and returns it alone, in a mapping, or, under manual optimization, not at all."""

    def __init__(self, returns: str) -> None:
        super().__init__(ReferenceQuantizer())
        self.returns = returns
        self.automatic_optimization = not returns.startswith("manual")
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        if not self.automatic_optimization:
            optimizer = cast(LightningOptimizer, self.optimizers())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {"alone": loss, "mapping": {"loss": loss}, "manual": loss}.get(self.returns)


@pytest.mark.parametrize(
    ("returns", "batches"),
    [("alone", 1), ("alone", 2), ("mapping", 1), ("mapping", 2), ("manual", 1), ("manual, nothing", 1)],
)
def test_a_loss_that_is_not_named_is_what_the_training_step_returned(
    returns: str, batches: int, tmp_path: Path
) -> None:
    recorder, model = Recorder(), Remembering(returns)
    guard = CollapseGuard("observe", console=False, sinks=[recorder])
    fit(tmp_path, guard, model, max_steps=20, accumulate_grad_batches=batches)
    told = [(event.step, event.fields["loss"]) for event in recorder.of("reading")]
    assert len(told) >= 2
    for step, loss in told:
        assert loss == (None if "nothing" in returns else pytest.approx(model.losses[step * batches - 1], rel=1e-5))


def test_scalars_reach_the_loggers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path, name="csv", version="")]
    fit(tmp_path, CollapseGuard("default", console=False), logger=loggers, log_every_n_steps=10, max_steps=90)
    stored = EventAccumulator(str(tmp_path / "tb"))
    stored.Reload()
    scalars = stored.Scalars("codebook_perplexity/quantizer")
    assert [scalar.step for scalar in scalars][:2] == [10, 20]
    assert scalars[1].value == 1.0
    assert [scalar.value for scalar in stored.Scalars("codebook_intervention/quantizer")] == [1.0, 2.0]
    assert "codebook_usage/quantizer" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_learnable_vector_quantize_is_reset_with_its_optimizer_rows(tmp_path: Path) -> None:
    """A codebook far from all latents collapses at once; each reset clears the moments of every row.

    The first holds, but leaves codes unevenly used, so that another follows; the run ends before that has a verdict.
    """
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=64, codebook_size=64, learnable_codebook=True, ema_update=False)
    with torch.no_grad():
        quantizer._codebook.embed.mul_(0.01).add_(50.0)
        quantizer._codebook.embed[0, 0] = 49.0
    recorder = Recorder()
    fit(tmp_path, CollapseGuard("default", console=False, sinks=[recorder]), DigitsClassifier(quantizer), max_steps=120)
    resets = [each for each in recorder.of("intervention") if each.fields["action"] == "reset_codes"]
    assert resets
    for intervention in resets:
        names = {change["name"] for change in intervention.fields["manifest"]}
        assert names == {"table", "optimizer0.exp_avg", "optimizer0.exp_avg_sq"}
    outcomes = [(event.fields["rule"], event.fields["outcome"]) for event in recorder.of("outcome")]
    assert outcomes == [("collapsed", "recovered"), ("stale_moments", "recovered")]


def test_the_guard_is_told_of_a_quantizer_that_it_does_not_know(tmp_path: Path) -> None:
    from collapse_guard import GenericVQ

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(64, 64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            codes = torch.cdist(x.detach(), self.table.detach()).argmin(-1)
            q = self.table[codes]
            return x + (q - x).detach(), codes, functional.mse_loss(q, x.detach()) + functional.mse_loss(x, q.detach())

    recorder = Recorder()
    adapters = {"quantizer": GenericVQ(table="table", codes=lambda output: output[1])}
    guard = CollapseGuard("observe", console=False, sinks=[recorder], adapters=adapters)
    fit(tmp_path, guard, DigitsClassifier(Wrapped()), max_steps=20)
    (codebook,) = recorder.of("attached")[0].fields["codebooks"]
    assert (codebook["adapter"], codebook["K"]) == ("explicit", 64)

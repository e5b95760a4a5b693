"""The reference story under a Trainer on a GPU, in the precisions that people use there."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from collapse_guard.callbacks import CollapseGuard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from tests.loops import Recorder


@pytest.mark.filterwarnings("ignore")  # a Trainer has much to say about workers and loggers
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_the_reference_story_comes_out_the_same_on_a_gpu(cuda: torch.device, precision: str, tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    # Its own restart writes rows of the latents' type, which fails under autocast: off, as it changes nothing here.
    model, recorder = DigitsClassifier(ReferenceQuantizer(restart_every=10**6)), Recorder()
    train, test = digits_loaders(0)
    trainer = pl.Trainer(
        max_epochs=20,
        callbacks=[CollapseGuard("default", console=False, sinks=[recorder])],
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    try:
        trainer.fit(model, train)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not recorder.of("fault")
    (alert, *_) = recorder.of("alert")
    assert alert.step <= 30
    told = {each.fields["action"]: each.fields["result"] for each in recorder.of("intervention")}
    assert told.get("fallback_tokenizer") == "applied" or told.get("take_over_updates") == "applied", told
    images, labels = next(iter(test))
    with torch.no_grad():
        logits, _, _ = model.to(cuda).eval()(images.to(cuda))
    assert float((logits.argmax(dim=-1).cpu() == labels).float().mean()) > 0.9

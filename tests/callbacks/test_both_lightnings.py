"""One callback under the Trainers of `lightning.pytorch` and of `pytorch_lightning`, whichever is there and when."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from collapse_guard.callbacks import CollapseGuard
from tests.callbacks.models import QUIET_TRAINER, digits_module
from tests.checkout import ROOT, prelude
from tests.loops import Recorder

BOTH = ("lightning.pytorch", "pytorch_lightning")
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `train_dataloader` does not have many workers",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
)


def fit(name: str, tmp_path: Path, ckpt_path: Path | None = None, **options: Any) -> tuple[Any, Recorder]:
    """Fit under one of the two, the callback given alone and not in a list: that is where its class is asked for."""
    lightning, recorder = import_module(name), Recorder()
    run = lightning.Trainer(
        callbacks=CollapseGuard(console=False, sinks=[recorder]),
        default_root_dir=tmp_path,
        **QUIET_TRAINER,
        **options,
    )
    run.fit(digits_module(lightning)(), ckpt_path=ckpt_path)
    return run, recorder


@pytest.mark.parametrize("name", BOTH)
def test_the_guard_repairs_under_either_trainer(tmp_path: Path, name: str) -> None:
    run, recorder = fit(name, tmp_path, max_steps=130)
    assert isinstance(run.callbacks[0], import_module(name).Callback)
    outcomes = [(event.fields["action"], event.fields["outcome"]) for event in recorder.of("outcome")]
    assert outcomes[:2] == [("reset_codes", "failed"), ("fallback_tokenizer", "recovered")]
    assert recorder.of("fault") == []


@pytest.mark.parametrize(("first", "then"), [BOTH, BOTH[::-1], (BOTH[1], BOTH[1])])
def test_a_checkpoint_of_one_resumes_under_the_other(tmp_path: Path, first: str, then: str) -> None:
    run, _ = fit(first, tmp_path, max_steps=60)
    run.save_checkpoint(tmp_path / "cut.ckpt")
    assert torch.load(tmp_path / "cut.ckpt", weights_only=True)["callbacks"]["CollapseGuard"]["step"] == 60
    _, recorder = fit(then, tmp_path, tmp_path / "cut.ckpt", max_steps=130)
    assert [event.step for event in recorder.of("resumed")] == [60]
    actions = [event.fields["action"] for event in recorder.of("intervention")]
    assert actions == ["fallback_tokenizer", "restart_optimizer"]


def program(*lines: str) -> list[str]:
    """Run lines in a fresh interpreter and return what they print."""
    source = prelude() + "import warnings; warnings.simplefilter('ignore')\n" + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def without(*names: str) -> str:
    """Lines after which some packages cannot be imported, as if they were not installed."""
    return (
        f"class Missing:\n    def find_spec(self, name, path=None, target=None):\n        if name in {names}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())"
    )


TELL = "print(sorted({name for name in ('lightning', 'pytorch_lightning') if name in sys.modules}))"


def test_pytorch_lightning_alone_is_enough(tmp_path: Path) -> None:
    """The demos' model is a `lightning` one, so this program brings its own."""
    lines = program(
        without("lightning"),
        "import torch, pytorch_lightning as pl",
        "from torch import nn",
        "from vector_quantize_pytorch import VectorQuantize",
        "from collapse_guard.callbacks import CollapseGuard",
        "class Model(pl.LightningModule):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.encoder, self.quantizer = nn.Linear(8, 8), VectorQuantize(dim=8, codebook_size=16)",
        "    def training_step(self, batch, index):",
        "        quantized, codes, loss = self.quantizer(self.encoder(batch)[None])",
        "        return loss.sum() + (quantized - batch).square().mean()",
        "    def configure_optimizers(self):",
        "        return torch.optim.SGD(self.parameters(), lr=0.1)",
        "    def train_dataloader(self):",
        "        return torch.utils.data.DataLoader(torch.randn(640, 8), batch_size=64)",
        f"guard = CollapseGuard('observe', console=False, log_dir={str(tmp_path)!r})",
        "trainer = pl.Trainer(max_steps=30, callbacks=guard, accelerator='cpu', logger=False,",
        "    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)",
        "trainer.fit(Model())",
        "print(isinstance(guard, pl.Callback), guard.guard.steps)",
        TELL,
    )
    assert lines[-2:] == ["True 30", "['pytorch_lightning']"]


@pytest.mark.parametrize(
    ("lines", "loaded"),
    [
        (["import lightning.pytorch"], ["lightning"]),
        (["import pytorch_lightning"], ["pytorch_lightning"]),
        ([], ["lightning"]),
    ],
)
def test_the_callback_loads_no_second_lightning(lines: list[str], loaded: list[str]) -> None:
    """Whichever is loaded last takes over the log messages of both, so that is not the guard's to do."""
    before = program(*lines, "import collapse_guard.callbacks", TELL, "collapse_guard.callbacks.CollapseGuard", TELL)
    assert before == [str(loaded if lines else []), str(loaded)]


def test_a_lightning_loaded_after_the_callback_is_joined_when_the_callback_is_asked_for() -> None:
    """Imports are sorted by name, and collapse_guard stands before pytorch_lightning."""
    lines = program(
        "from collapse_guard.callbacks import CollapseGuard",
        "import lightning.pytorch, pytorch_lightning",
        "print(issubclass(CollapseGuard, pytorch_lightning.Callback))",
        "from collapse_guard.callbacks import CollapseGuard",
        "print(issubclass(CollapseGuard, pytorch_lightning.Callback))",
        "print(issubclass(CollapseGuard, lightning.pytorch.Callback))",
    )
    assert lines == ["False", "True", "True"]


def test_without_any_lightning_the_next_move_is_said() -> None:
    lines = program(
        without("lightning", "pytorch_lightning"),
        "try:",
        "    from collapse_guard.callbacks import CollapseGuard",
        "except ImportError as error:",
        "    print(error)",
    )
    assert lines == [
        "expected lightning 2.4 or newer, got none (lightning.pytorch: No module named 'lightning'; "
        "pytorch_lightning: No module named 'pytorch_lightning'). Run `pip install lightning`."
    ]


def test_what_the_package_does_not_have_is_told_with_what_it_has() -> None:
    import collapse_guard.callbacks

    with pytest.raises(AttributeError, match="has no attribute 'Guard'; it has: CollapseGuard"):
        _ = collapse_guard.callbacks.Guard  # type: ignore[attr-defined]

"""The loops' autoencoder under a Lightning Trainer, on ranks that something else has started: a crew, or Ray Train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from collapse_guard.callbacks import CollapseGuard
from tests.callbacks.models import QUIET_TRAINER
from tests.ranks import loops

__all__ = ["Saving", "Sharded", "Started", "Trained", "ddp_fit", "fit", "sharded_fit"]


class Started(LightningEnvironment):
    """Says where a rank stands among processes that are there already, with their process group."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self._rank, self._size = rank, size

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._size

    def global_rank(self) -> int:
        return self._rank

    def local_rank(self) -> int:
        return self._rank

    def set_world_size(self, size: int) -> None:
        assert size == self._size

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._rank


class Trained(pl.LightningModule):
    """What `loops.ddp_run` trains, spoilt before the same steps, on the same batches of each rank."""

    def __init__(self, kind: str = "ema", steps: int = 24, spoil_at: tuple[int, ...] = (6,)) -> None:
        super().__init__()
        torch.manual_seed(0)
        plain = loops.Autoencoder(loops.quantizer(kind))
        self.encoder, self.quantizer, self.decoder = plain.encoder, plain.quantizer, plain.decoder
        self._steps, self._spoil_at = steps, spoil_at

    def forward(self, x: Tensor) -> Tensor:
        quantized, _, commitment = self.quantizer(self.encoder(x))
        loss = (self.decoder(quantized) - x).square().mean() + commitment.sum()
        assert isinstance(loss, Tensor)
        return loss

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss: Tensor = self(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> DataLoader[Tensor]:
        rank = self.trainer.global_rank
        batches: Any = [loops.batch(step, rank) for step in range(self._steps)]
        return DataLoader(batches, batch_size=None)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx in self._spoil_at:
            self.spoil()

    def spoil(self) -> None:
        """Break the codebook; what is sharded wants another way."""
        loops.spoil(self)


class Marking(CollapseGuard):
    """The callback, with a recorder on every rank that marks what each act of the guard leaves behind."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.recorder = loops.Marks(pl_module, trainer.optimizers[0])
        assert self.guard is not None
        self.guard._log.sinks = [*self.guard._log.sinks, self.recorder]


class Saving(pl.Callback):
    """Saves the run after step 9."""

    def __init__(self, file: str) -> None:
        self._file = file

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 9:
            trainer.save_checkpoint(self._file)


def fit(
    model: Trained,
    *,
    strategy: Strategy,
    plugins: list[Any],
    policy: Mapping[str, Any] = loops.POLICY,
    folder: str,
    further: Sequence[pl.Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """Train under a Trainer with the callback; return what its guard told, as `loops.ddp_run` does.

    Args:
        folder: where the Trainer, and with it the event log, goes.
        further: callbacks beside the guard's.
        options: further ones of the Trainer.
    """
    guard = Marking(dict(policy), console=False, loss="loss")
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[guard, *further],
        devices=2,
        strategy=strategy,
        plugins=plugins,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **QUIET_TRAINER,
        **options,
    )
    trainer.fit(model)
    end = loops.marks_of(model, trainer.optimizers[0])
    return loops.told(guard.recorder) | {"marks": guard.recorder.marks, "end": end, "steps": trainer.global_step}


class Sharded(Trained):
    """The same with encoder and decoder sharded, the quantizer left out: each rank holds all of that."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        assert mesh is not None
        fully_shard(self, mesh=mesh["data_parallel"], ignored_params=set(self.quantizer.parameters()))

    def on_after_backward(self) -> None:
        for parameter in self.quantizer.parameters():  # what is left out is nobody's to synchronise but the user's
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad, torch.distributed.ReduceOp.SUM)
                parameter.grad /= self.trainer.world_size


def ddp_fit(rank: int, size: int, *, kind: str = "ema", **options: Any) -> dict[str, Any]:
    """Train under Lightning's DDP on one rank of a crew."""
    return fit(Trained(kind), strategy=DDPStrategy(), plugins=[Started(rank, size)], **options)


def sharded_fit(rank: int, size: int, *, kind: str = "ema", **options: Any) -> dict[str, Any]:
    """Train under Lightning's FSDP2 on one rank of a crew; also return the names of what was sharded."""
    model = Sharded(kind)
    strategy = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1)
    told = fit(model, strategy=strategy, plugins=[Started(rank, size)], **options)
    return told | {"sharded": [name for name, each in model.named_parameters() if isinstance(each, DTensor)]}

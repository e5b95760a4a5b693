"""Lightning 2.x: a callback that wraps a `Guard`.

Hooks are released on the normal end and on an exception (Lightning calls only `on_exception` then). Sanity checks,
validate-only runs and `fast_dev_run` are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from rich import get_console
from torch import Tensor
from typing_extensions import override

from collapse_guard import Event, GenericVQ, Guard, Sink
from collapse_guard.policies import Policy, load_policy

__all__ = ["CollapseGuard"]

_SCALARS = ("perplexity", "perplexity_ratio", "usage", "dead_fraction", "norm_ratio", "relative_error")


class CollapseGuard(pl.Callback):
    """Watches the codebooks of the LightningModule that trains and repairs them under a policy.

    Args:
        policy: preset name, path of a YAML file, mapping, or a loaded policy. A bad policy is refused here, before
            training starts.
        log_dir: where `collapse_guard/events.jsonl` goes; where not given, the Trainer's `log_dir`, else its
            `default_root_dir`.
        loss: name of a logged metric (`self.log(name, ...)`) that verification may look at.
        console: whether to print alerts, interventions and the summary.
        sinks: further places for events to go.
        adapters: module path in the LightningModule -> description, for quantizers that are not recognised.
        seed: of the guard's own random streams.

    Raises:
        PolicyError: the policy is not valid; every problem is listed with file and line.

    Example:
        ``Trainer(callbacks=[CollapseGuard(policy="default")])``
    """

    def __init__(
        self,
        policy: str | Path | Mapping[str, Any] | Policy = "default",
        *,
        log_dir: str | Path | None = None,
        loss: str | None = None,
        console: bool = True,
        sinks: Sequence[Sink] = (),
        adapters: Mapping[str, GenericVQ] | None = None,
        seed: int = 0,
    ) -> None:
        """Validate the policy and store the rest; nothing is hooked, opened or printed before training starts."""
        super().__init__()
        self.policy = load_policy(policy)
        self.guard: Guard | None = None
        self._log_dir = log_dir
        self._loss = loss
        self._console = console
        self._sinks = tuple(sinks)
        self._adapters = adapters
        self._seed = seed
        self._resume_from: dict[str, Any] | None = None
        self._guarded: pl.LightningModule | None = None
        self._last_global_step = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: the model is on its device, the optimizers exist, a checkpoint has been restored."""
        if getattr(trainer, "fast_dev_run", False):  # set on the instance; the class does not declare it
            if self._console and trainer.is_global_zero:
                get_console().print("collapse_guard: not attached: a fast_dev_run is too short to guard")
            return
        first = trainer.is_global_zero
        log_dir = self._log_dir or trainer.log_dir or trainer.default_root_dir
        sinks = [*self._sinks, _LoggerSink(trainer)] if first else []
        guard = Guard(
            self.policy,
            log_dir=log_dir if first else None,
            console=self._console and first,
            sinks=sinks,
            adapters=self._adapters,
            seed=self._seed,
        )
        guard.attach(pl_module, trainer.optimizers)
        if self._resume_from is None and self.guard is not None and self._guarded is pl_module:
            # A second fit of the same model goes on, it does not start afresh.
            self._resume_from = self.guard.state_dict()
        if self._resume_from is not None:
            guard.load_state_dict(self._resume_from)
            self._resume_from = None
        self._last_global_step = trainer.global_step
        self.guard, self._guarded = guard, pl_module

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count one step per batch in which an optimizer stepped: none under accumulation, one for two optimizers."""
        if self.guard is None or trainer.global_step == self._last_global_step:
            return
        self._last_global_step = trainer.global_step
        self.guard.step(loss=lambda: self._logged_loss(trainer), epoch=trainer.current_epoch)

    def _logged_loss(self, trainer: pl.Trainer) -> Tensor | None:
        return trainer.callback_metrics.get(self._loss) if self._loss is not None else None

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the summary and release hooks and files."""
        self._close()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Release hooks and files; Lightning calls no teardown after an exception."""
        self._close(type(exception).__name__)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release what may still be held."""
        self._close()

    def _close(self, ended_by: str | None = None) -> None:
        if self.guard is not None:
            self.guard.close(ended_by=ended_by)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state, also after training: plain data and tensors, loadable with `weights_only`."""
        return self.guard.state_dict() if self.guard is not None else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: modules and optimizers are not ready yet."""
        self._resume_from = state_dict or None


class _LoggerSink:
    """Writes readings to the Trainer's loggers as scalars, `codebook_perplexity/<codebook>` and so on."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    @property
    def _loggers(self) -> list[Logger]:
        return self._trainer.loggers

    def write(self, event: Event) -> None:
        """Log the scalars of a reading, and the attempt number at each intervention."""
        name = event.fields.get("codebook")
        if event.event == "reading":
            values = {key: event.fields.get(key) for key in _SCALARS}
            scalars = {f"codebook_{key}/{name}": float(value) for key, value in values.items() if value is not None}
        elif event.event == "intervention":
            scalars = {f"codebook_intervention/{name}": float(event.fields["attempt"])}
        else:
            return
        for logger in self._loggers:
            logger.log_metrics(scalars, step=self._trainer.global_step)

    def close(self) -> None:
        """The loggers belong to the Trainer."""

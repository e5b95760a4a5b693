"""Lightning 2.x: a callback that wraps a `Guard`, for `lightning.pytorch` and for `pytorch_lightning`.

The two are separate distributions of the same code, each with a `Callback` of its own; this one is a callback of each
that the program has loaded. Hooks are released on the normal end and on an exception (Lightning calls only
`on_exception` then). Sanity checks, validate-only runs and `fast_dev_run` are left alone.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich import get_console
from torch import Tensor
from typing_extensions import override

from collapse_guard import ConsoleSink, GenericVQ, Guard, PolicyError, Request, Sink
from collapse_guard.policies import Policy, load_policy
from collapse_guard.requests import REQUESTABLE, may_request
from collapse_guard.sinks import Verbosity, log_folder

from .averaging import averaged_models, follow
from .loggers import LoggerSink

__all__ = ["CollapseGuard", "join_lightning"]


_LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")


def _loaded() -> tuple[type, ...]:
    """Return the `Callback` of every Lightning that this program has loaded so far."""
    callbacks = (getattr(sys.modules.get(name), "Callback", None) for name in _LIGHTNINGS)
    return tuple(callback for callback in callbacks if callback is not None)


def _first_importable() -> tuple[type, ...]:
    """Return the `Callback` of the first Lightning that can be imported.

    Raises:
        ImportError: there is none.
    """
    missing = []
    for name in _LIGHTNINGS:
        try:
            return (import_module(name).Callback,)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    raise ImportError(f"expected lightning 2.4 or newer, got none ({'; '.join(missing)}). Run `pip install lightning`.")


if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch import Callback
else:
    # A base of its own, between this callback and theirs: what it derives from may grow, see `join_lightning`.
    Callback = type("Callback", _loaded() or _first_importable(), {})


def join_lightning() -> None:
    """Make the callback one of every Lightning that has been loaded by now, whichever was imported first.

    One that is not loaded is left so: importing it would take over the other's log messages and warning categories.
    """
    bases = Callback.__bases__
    if new := tuple(base for base in _loaded() if base not in bases):
        Callback.__bases__ = (*bases, *new)


class CollapseGuard(Callback):
    """Watches the codebooks of the LightningModule that trains and repairs them under a policy.

    What the policy asks of the training loop is done after the step that asked for it: a checkpoint beside the event
    log, or `trainer.should_stop`, which the Trainer heeds once `min_epochs` and `min_steps` are reached.

    Args:
        policy: preset name, path of a YAML file (relative to the working directory), mapping, or a loaded policy. A bad
            policy is refused here; where LightningCLI makes the callback, in `setup`, still before training starts.
        log_dir: where `collapse_guard/events.jsonl` goes; where not given, the Trainer's `log_dir`, else its
            `default_root_dir`.
        loss: name of a logged metric (`self.log(name, ...)`) that rules and verification look at; where not given, they
            look at the loss that `training_step` returns, which one of manual optimization may not.
        console: whether to print alerts, interventions and the summary.
        verbosity: how much is printed: `quiet`, `normal` or `detailed`; see `ConsoleSink`.
        sinks: further places for events to go.
        adapters: module path in the LightningModule -> description, for quantizers that are not recognised.
        seed: of the guard's own random streams.
        log_max_bytes: bound on the event log, which then forgets its oldest part; see `Guard`.

    Raises:
        PolicyError: the policy is not valid; every problem is listed with file and line.
        ValueError: an unknown verbosity.

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
        verbosity: Verbosity = "normal",
        sinks: Sequence[Sink] = (),
        adapters: Mapping[str, GenericVQ] | None = None,
        seed: int = 0,
        log_max_bytes: int | None = None,
    ) -> None:
        """Validate the policy and store the rest; nothing is hooked, opened or printed before training starts."""
        join_lightning()
        super().__init__()
        self._policy: Policy | PolicyError
        try:
            self._policy = load_policy(policy)
        except PolicyError as refused:
            if not _is_made_by_jsonargparse():
                raise
            self._policy = refused
        self.guard: Guard | None = None
        self._log_dir = log_dir
        self._loss = loss
        self._console = console
        ConsoleSink(verbosity=verbosity)  # refuses an unknown one here, not when training starts
        self._verbosity: Verbosity = verbosity
        self._sinks = tuple(sinks)
        self._adapters = adapters
        self._seed = seed
        self._log_max_bytes = log_max_bytes
        self._resume_from: dict[str, Any] | None = None
        self._guarded: pl.LightningModule | None = None
        self._last_global_step = 0
        self._loss_scale: float | None = None
        self._rewritten: Mapping[str, int] = {}

    @property
    def policy(self) -> Policy:
        """The policy that was given.

        Raises:
            PolicyError: LightningCLI made the callback, and the policy is not valid.
        """
        if isinstance(self._policy, PolicyError):
            raise self._policy.with_traceback(None)
        return self._policy

    @property
    def history(self) -> list[dict[str, Any]]:
        """What the guard told so far, as flat records; empty before training starts. See `Guard.history`."""
        return self.guard.history if self.guard is not None else []

    def plot_history(self) -> Any:
        """Return the course of each codebook as a plotly figure; see `Guard.plot_history`.

        Raises:
            RuntimeError: training has not started yet.
            MissingExtraError: plotly is not installed.
        """
        if self.guard is None:
            raise RuntimeError(
                "expected a guard that has seen training, got one before `fit`; there is nothing to plot"
            )
        return self.guard.plot_history()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a bad policy before anything else happens.

        Raises:
            PolicyError: as in `policy`.
        """
        _ = self.policy

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: the model is on its device, the optimizers exist, a checkpoint has been restored."""
        if getattr(trainer, "fast_dev_run", False):  # set on the instance; the class does not declare it
            if self._console and trainer.is_global_zero:
                get_console().print("collapse_guard: not attached: a fast_dev_run is too short to guard")
            return
        first = trainer.is_global_zero
        directory = self._directory(trainer)  # on every rank: it may take an exchange with the first
        sinks = [*self._sinks, LoggerSink(lambda: trainer.loggers, lambda: trainer.global_step)] if first else []
        guard = Guard(
            self.policy,
            log_dir=directory if first else None,
            console=self._console and first,
            verbosity=self._verbosity,
            sinks=sinks,
            adapters=self._adapters,
            seed=self._seed,
            log_max_bytes=self._log_max_bytes,
            total_steps=_planned_steps(trainer),
        )
        guard.attach(pl_module, trainer.optimizers)
        if self._resume_from is None and self.guard is not None and self._guarded is pl_module:
            # A second fit of the same model goes on, it does not start afresh.
            self._resume_from = self.guard.state_dict()
        if self._resume_from is not None:
            guard.load_state_dict(self._resume_from)
            self._resume_from = None
        self._last_global_step, self._loss_scale = trainer.global_step, _loss_scale(trainer)
        self._rewritten = guard.rewritten
        self.guard, self._guarded = guard, pl_module

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count one step per batch in which an optimizer stepped: none under accumulation, one for two optimizers.

        A step that the gradient scaler skipped, which its lower scale tells, is none.
        """
        if self.guard is None or trainer.global_step == self._last_global_step:
            return
        before, self._loss_scale = self._loss_scale, _loss_scale(trainer)
        self._last_global_step = trainer.global_step
        if before is not None and self._loss_scale is not None and self._loss_scale < before:
            return
        self.guard.step(loss=lambda: self._loss_now(trainer, pl_module, outputs), epoch=trainer.current_epoch)
        if (rewritten := self.guard.rewritten) != self._rewritten:
            names = [name for name, count in rewritten.items() if self._rewritten.get(name) != count]
            self._rewritten = rewritten
            follow(pl_module, averaged_models(cast(Any, trainer).callbacks), self.guard.views(names))
        if may_request(self.guard.policy):
            self._carry_out(trainer, self.guard)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hand the batch in: training and evaluation mode may have to be compared on it."""
        if self.guard is not None:
            self.guard.offer(batch)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an evaluation; the sanity check, and validation outside of `fit`, come before or after the guard."""
        if self.guard is not None and not trainer.sanity_checking:
            self.guard.begin_evaluation()

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Hand the batch in, as in training."""
        if self.guard is not None and not trainer.sanity_checking:
            self.guard.offer(batch)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the codebooks in evaluation; averaged weights have been swapped out by now."""
        if self.guard is None or trainer.sanity_checking:
            return
        self.guard.end_evaluation(loss=lambda: self._logged_loss(trainer), epoch=trainer.current_epoch)
        if may_request(self.guard.policy):
            self._carry_out(trainer, self.guard)

    def _carry_out(self, trainer: pl.Trainer, guard: Guard) -> None:
        """Do what the policy asks of the loop: on every rank as soon as it is asked for on one."""
        taken = guard.requests.take()
        if not trainer.strategy.reduce_boolean_decision(bool(taken), all=False):
            return
        for kind, act in zip(REQUESTABLE, (self._save_checkpoint, self._stop_training), strict=True):
            asked = [request for request in taken if request.kind == kind]
            if trainer.strategy.reduce_boolean_decision(bool(asked), all=False):
                act(trainer, guard, asked)

    def _save_checkpoint(self, trainer: pl.Trainer, guard: Guard, asked: Sequence[Request]) -> None:
        """Write one checkpoint for all requests of a step; a full disk is told, and ends nothing."""
        codebook = re.sub(r"[^\w.-]", "_", asked[0].codebook) if asked else "codebook"
        file = log_folder(self._directory(trainer)) / f"{guard.steps}-{codebook}.ckpt"
        path = Path(trainer.strategy.broadcast(str(file)))
        is_new = not path.exists()
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except Exception as error:  # storage fails in many ways, and the run must outlive each of them
            with contextlib.suppress(OSError):
                if is_new and trainer.is_global_zero:  # what there is of it cannot be loaded
                    path.unlink(missing_ok=True)
            trainer.strategy.barrier()  # where the Trainer lets the other ranks wait for this one
            for request in asked:
                guard.requests.failed(request, f"{type(error).__name__}: {error}")
        else:
            for request in asked:
                guard.requests.carried_out(request, f"the whole run as it stands is in {path}", file=str(path))

    def _stop_training(self, trainer: pl.Trainer, guard: Guard, asked: Sequence[Request]) -> None:
        """Ask the Trainer to stop; it goes on until `min_epochs` and `min_steps` are reached."""
        trainer.should_stop = True
        for request in asked:
            guard.requests.carried_out(request, _stopping(trainer))

    def _directory(self, trainer: pl.Trainer) -> str | Path:
        return self._log_dir or trainer.log_dir or trainer.default_root_dir

    def _logged_loss(self, trainer: pl.Trainer) -> Tensor | None:
        return trainer.callback_metrics.get(self._loss) if self._loss is not None else None

    def _loss_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any) -> Tensor | None:
        """Return the metric that was named, or what `training_step` returned as its loss, if it is one number."""
        if self._loss is not None:
            return self._logged_loss(trainer)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return None
        is_divided = pl_module.automatic_optimization  # by the batches of an accumulation, before it comes here
        return loss.detach() * trainer.accumulate_grad_batches if is_divided else loss.detach()

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
        """Return the guard's state, also after training: plain data and tensors, loadable with `weights_only`.

        A Trainer saves on all ranks together: that of the first holds what all recorded.
        """
        return self.guard.state_dict(together=True) if self.guard is not None else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: modules and optimizers are not ready yet."""
        self._resume_from = state_dict or None


# LightningCLI reads the annotation at run time. By the true one it would write a mapping as text into the config that
# it saves, and refuse in words of its own what `load_policy` explains better.
CollapseGuard.__init__.__annotations__["policy"] = Any


def _planned_steps(trainer: pl.Trainer) -> int | None:
    """Return the optimizer steps that the whole training is planned to take, or `None` where it has no end."""
    planned = trainer.estimated_stepping_batches
    if (most := trainer.max_steps) > 0 and not trainer.lightning_module.automatic_optimization:
        planned = min(planned, math.ceil(most / max(len(trainer.optimizers), 1)))  # each of them counts there
    return int(planned) if math.isfinite(planned) and planned > 0 else None


def _loss_scale(trainer: pl.Trainer) -> float | None:
    """Return the scale of the loss under float16, or `None` where there is none."""
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None


def _stopping(trainer: pl.Trainer) -> str:
    """Say when the Trainer will stop, now that it was told to."""
    least = {"min_epochs": trainer.min_epochs, "min_steps": trainer.min_steps}
    wanted = " and ".join(f"{name}={count}" for name, count in least.items() if count)
    return "the Trainer was told to stop" + (f", which it does once {wanted} is reached" if wanted else "")


def _is_made_by_jsonargparse() -> bool:
    """Whether LightningCLI's parser is what calls the constructor, also that of a subclass.

    An exception raised there comes out as one line of many on which types a Trainer's callbacks may have.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__init__" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "jsonargparse"

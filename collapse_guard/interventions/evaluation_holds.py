"""Holds on evaluation: the quantizer assigns as in training and keeps nothing, running statistics are made fresh.

A hook that fails takes nothing down: it is silent from then on, and the intervention that owns it says so at the next
step boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from collapse_guard.adapters.recognition.twins import own_streams
from collapse_guard.evaluation import Evaluations, ModuleState
from collapse_guard.hooks import Hook

from .holds import Hold, HookedHold

__all__ = ["AssignmentHold", "StatisticsHold"]


class AssignmentHold(HookedHold):
    """For each forward in evaluation: the codebook that training left, and afterwards everything as it was before.

    Args:
        quantizer: the whole module.
        codebook: its name.
        evaluations: knows the state in which training left the quantizer.
        trains: whether the quantizer runs in training mode meanwhile, with random streams of its own.
        seed: of those.
    """

    name = "assignment_in_evaluation"

    def __init__(
        self, quantizer: nn.Module, codebook: str, evaluations: Evaluations, trains: Callable[[], bool], seed: int
    ) -> None:
        """Store the parts; nothing is hooked before `install`."""
        super().__init__()
        self._quantizer, self._codebook, self._evaluations = quantizer, codebook, evaluations
        self._trains, self._seed, self._calls = trains, seed, 0
        self._depth = 0
        self._before: ModuleState | None = None
        self._modes: list[tuple[nn.Module, bool]] = []
        self._streams = ExitStack()

    @property
    def place(self) -> Hashable:
        """The quantizer."""
        return self.name, id(self._quantizer)

    def _hook(self) -> list[RemovableHandle]:
        """Hook the quantizer: before all other hooks, and after a forward before those that look at it."""
        return [
            self._quantizer.register_forward_pre_hook(Hook(self._begin), prepend=True),
            self._quantizer.register_forward_hook(Hook(self._end), prepend=True, always_call=True),
        ]

    def describe(self) -> dict[str, Any]:
        """Return in which mode the quantizer evaluates."""
        return {"training_mode": self._trains()}

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._depth += 1
        if self._depth > 1 or module.training or self._failure is not None:
            return
        try:
            self._before = ModuleState(module)
            if (trained := self._evaluations.as_trained(self._codebook)) is not None and self._evaluations.is_running:
                with torch.no_grad():
                    trained.copy_to(module)
            if self._trains():
                self._calls += 1
                self._streams.enter_context(own_streams(self._seed + self._calls))
                self._modes = [(part, part.training) for part in module.modules()]
                module.train()
        except Exception as error:  # the evaluation must not fail for the guard
            self._failure = error
            self._put_back()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth == 0:
            self._put_back()

    def _put_back(self) -> None:
        before, self._before = self._before, None
        self._streams.close()
        for part, mode in self._modes:
            part.training = mode
        self._modes = []
        try:
            if before is not None:
                before.restore()
        except Exception as error:
            self._failure = self._failure or error


class StatisticsHold(Hold):
    """Before each evaluation: running statistics of batch normalisation before the quantizer, from inputs of training.

    Args:
        model: the root.
        codebook: name of the codebook.
        evaluations: has the inputs.
    """

    name = "statistics_before_evaluation"

    def __init__(self, model: nn.Module, codebook: str, evaluations: Evaluations) -> None:
        """Store the parts."""
        self._model, self._codebook, self._evaluations = model, codebook, evaluations

    @property
    def place(self) -> Hashable:
        """The model."""
        return self.name, id(self._model)

    @property
    def is_in_force(self) -> bool:
        """Whether evaluations are waited for."""
        return self._refresh in self._evaluations.before_each

    def install(self) -> None:
        """Wait for evaluations."""
        if not self.is_in_force:
            self._failure = None
            self._evaluations.before_each.append(self._refresh)

    def remove(self) -> None:
        """Wait no more."""
        if self.is_in_force:
            self._evaluations.before_each.remove(self._refresh)

    @torch.no_grad()
    def recompute(self) -> list[str]:
        """Write the statistics; return the paths of the layers.

        Raises:
            CannotTryError: they cannot be computed.
        """
        fresh = self._evaluations.statistics(self._codebook)
        layers = []
        for name, values in fresh.items():
            path, _, attribute = name.rpartition(".")
            if attribute == "num_batches_tracked":
                continue
            getattr(self._model.get_submodule(path), attribute).copy_(values)
            layers.append(path)
        return list(dict.fromkeys(layers))

    def _refresh(self) -> None:
        if self._failure is not None:
            return
        try:
            self.recompute()
        except Exception as error:
            self._failure = error

"""A probe: a hook on one quantizer that records what its forwards show, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .adapters import CodebookView
from .hooks import Hook
from .window import Window

__all__ = ["Probe"]


class Probe:
    """Records codes and latents of one codebook while its module trains.

    Args:
        view: the codebook.
        seed: of the window's private random stream.
        on_error: told once of an exception in the probe, which is then silent for the rest of the run.
    """

    def __init__(self, view: CodebookView, *, seed: int, on_error: Callable[[Exception], None]) -> None:
        """Store the parts; nothing is hooked before `install`."""
        self.view = view
        self.window = Window(view.K, view.D, seed=seed)
        self.seconds = 0.0
        self._on_error = on_error
        self._handle: RemovableHandle | None = None

    def install(self) -> None:
        """Begin to record."""
        if self._handle is None:
            self._handle = self.view.module.register_forward_hook(Hook(self._record), with_kwargs=True)

    def remove(self) -> None:
        """Stop recording."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if not module.training or _inside_backward():
            return
        start = time.perf_counter()
        try:
            with torch.no_grad():
                observation = self.view.reader(args, kwargs, output)
                if observation is not None:
                    self.window.add(observation.codes, observation.latents)
        except Exception as error:  # the watched forward must not fail for the watcher
            self.remove()
            self._on_error(error)
        self.seconds += time.perf_counter() - start


def _inside_backward() -> bool:
    """Whether this forward is a recomputation of activation checkpointing, whose tokens were counted already."""
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1

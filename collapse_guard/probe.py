"""A probe: hooks on one quantizer that record what its calls show, and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .adapters import CodebookView, Interception, Observation
from .adapters.base import Reader
from .adapters.nested import flatten_tensors
from .diagnosis.origin import mix_of
from .diagnosis.pulse import Pulse
from .execution import Capture, is_capturing
from .graph import parameters_behind
from .hooks import Hook
from .mix import Mix
from .window import Window

__all__ = ["Probe", "inside_backward"]

_logger = logging.getLogger("collapse_guard")

_LOOKS, _SELDOM = 2, 20  # forwards that are looked at; windows until that is done anew


class Probe:
    """Records codes and latents of one codebook while its module trains, or while it is being evaluated.

    Args:
        view: the codebook.
        seed: of the window's private random stream.
        on_error: told once of an exception in the probe, which is then silent for the rest of the run.

    Attributes:
        window: of training.
        evaluated: of the evaluation that runs; while there is one, all that is called belongs to it, in whatever mode.
        rests: whether training is not recorded just now, evaluation and what goes into a CUDA graph apart.
        capture: what is known of a forward in a CUDA graph; `None` where none was captured.
        mix: how positions were taken for features at the first forwards with a graph, of this window or of one lately;
            `False` where they were not, `None` where that cannot be told.
    """

    def __init__(self, view: CodebookView, *, seed: int, on_error: Callable[[Exception], None]) -> None:
        """Store the parts; nothing is hooked before `install`."""
        self.view = view
        self.window = Window(view.K, view.D, seed=seed)
        self.evaluated: Window | None = None
        self.rests = False
        self.capture: Capture | None = None
        self.pulse = Pulse(view.D)
        self.mix: Mix | Literal[False] | None = None
        self.seconds = 0.0
        self._looks = self._windows = self._forgets = 0  # since it was looked anew; windows in all; of the window
        self._can_look = True
        self._on_error = on_error
        self._handles: list[RemovableHandle | Interception] = []
        self._is_checked = False
        self.feeds: list[nn.Parameter] = []
        """The parameters that the input depended on at the first forward with a gradient; none before that."""

    @staticmethod
    def is_on(module: nn.Module) -> bool:
        """Whether a probe is recording this module."""
        hooks = module._forward_hooks.values()
        return Interception.is_on(module) or any(isinstance(hook, Hook) and hook.is_live for hook in hooks)

    @property
    def is_recording(self) -> bool:
        """Whether the probe is installed and has not failed."""
        return bool(self._handles)

    def install(self) -> None:
        """Begin to record.

        Raises:
            InterceptionError: the quantizer is observed by a method of which the calls cannot be reported.
        """
        if self._handles:
            return
        readers, module = self.view.readers, self.view.module
        methods = {name: partial(self._record, reader) for name, reader in readers.items() if name != "forward"}
        if methods:
            interception = Interception(module, methods)
            interception.install()
            self._handles.append(interception)
        if "forward" in readers:
            record = Hook(partial(self._record, readers["forward"]))
            self._handles.append(module.register_forward_hook(record, with_kwargs=True))

    def remove(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _record(
        self, reader: Reader, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        window = self.evaluated
        if window is None:
            if not (self.view.owner or module).training:
                return
            window = self.window
            if self.rests and window.tap is None and not is_capturing():
                return
        start = time.perf_counter()
        try:
            if inside_backward():
                return
            if not self.feeds:
                self.feeds = parameters_behind(flatten_tensors((args, kwargs)))
            if window is self.window:
                self._look((args, kwargs))
            with torch.no_grad():
                observation = reader(args, kwargs, output)
                in_graph = observation is not None and is_capturing()
                if observation is not None and (not in_graph or self._can_be_captured(window, observation)):
                    self._check(observation)
                    codes, latents, is_update = observation.codes, observation.latents, observation.is_update
                    window.add(codes, latents, in_graph=in_graph, is_update=is_update)
            if in_graph:
                return
            if observation is not None and window is self.window and self.pulse.is_armed and torch.is_grad_enabled():
                self.pulse.feel((args, kwargs), output, observation.latents)
        except Exception as error:  # the watched forward must not fail for the watcher
            self.remove()
            self._on_error(error)
        self.seconds += time.perf_counter() - start

    def _look(self, given: Any) -> None:
        """At the first forwards of a window that have a graph, see whether positions are taken for features.

        Of two forwards that differ in that, such as those of two encoders, nothing is said. A model is seldom wired
        anew: where all was well, or could not be told, it is looked again after some windows only, or where the
        guard has changed what the codebook is compared with.
        """
        if not self.window.has_begun:
            forgets, self._forgets = self._forgets, self.window.forgets
            self._windows += 1
            if self.mix or self._forgets != forgets or self._windows % _SELDOM == 1:
                self.mix, self._looks = None, 0
        if self._looks == _LOOKS or not self._can_look or not torch.is_grad_enabled():
            return
        tensors = list(flatten_tensors(given))
        source = next((each for each in tensors if each.is_floating_point()), None)
        if source is None or source.grad_fn is None:
            return
        self._looks += 1
        try:
            found = mix_of(source, self.window.D)
        except Exception as error:  # a graph of a kind that nobody has met: recording goes on without a look
            self.mix, self._can_look = None, False
            what = f"{type(error).__name__}: {error}"
            _logger.warning("%s: its graph cannot be followed (%s); `reshaped` is not known", self.view.name, what)
            return
        if found:
            found = replace(found, is_alone=len(tensors) == 1)
        if self._looks == 1:
            self.mix = found
        elif not _are_alike(found, self.mix):
            self.mix = None

    @property
    def reshaped(self) -> int | None:
        """1 where positions were seen to be taken for features, 0 where not, else `None`."""
        return None if self.mix is None else int(self.mix is not False)

    def look_state(self) -> dict[str, Any]:
        """Return what was seen of the graph, as plain data."""
        mix = self.mix
        return {"looks": self._looks, "windows": self._windows, "mix": asdict(mix) if isinstance(mix, Mix) else mix}

    def load_look_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `look_state`."""
        mix = state["mix"]
        self._looks, self._windows, self._forgets = int(state["looks"]), int(state["windows"]), self.window.forgets
        self.mix = Mix(**mix) if isinstance(mix, Mapping) else mix

    def _can_be_captured(self, window: Window, observation: Observation) -> bool:
        """Take note that a forward goes into a CUDA graph; whether what it shows can be recorded there."""
        self.view.is_captured = True
        is_ready = self._is_checked and window.is_ready(observation.codes.device)
        self.capture = Capture.COUNTED if is_ready else Capture.MISSED
        return is_ready

    def _check(self, observation: Observation) -> None:
        """Look at what was read: what is read wrongly must not be acted on. The range costs a wait, so only once.

        Raises:
            ValueError: codes that are no integers, not one for each latent, or out of range; latents of another width.
        """
        codes, latents, K, D = observation.codes, observation.latents, self.window.K, self.window.D
        if codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool:
            raise ValueError(f"expected integer codes, got {codes.dtype}: which part of the output holds the codes?")
        if latents is not None and (latents.ndim != 2 or latents.shape[1] != D):
            raise ValueError(f"expected latents of (n, {D}), got {tuple(latents.shape)}")
        if latents is not None and codes.shape != (len(latents),):
            raise ValueError(f"expected one code for each of {len(latents)} latents, got {tuple(codes.shape)}")
        if not self._is_checked and codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < K:
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"expected codes from 0 to {K - 1} (-1 for no token), got {low} to {high}")
        self._is_checked = True


def _are_alike(one: Mix | Literal[False] | None, other: Mix | Literal[False] | None) -> bool:
    """Whether two forwards show the same, however many positions each has."""
    if one and other:
        return replace(one, positions=other.positions) == other
    return one is other


def inside_backward() -> bool:
    """Whether this forward is a recomputation of activation checkpointing, whose tokens were counted already."""
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1

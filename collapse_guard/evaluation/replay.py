"""Replays: kept inputs through a copy of the model, some of its modules in training mode and the others not.

The model itself is never run. The copy shares the parameters that a forward does not write to, and has buffers,
quantizers and plain attributes of its own; each replay begins from the same state. There are no gradients, and every
global random stream is put back to where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collapse_guard.adapters import CodebookView, Interception, Observation
from collapse_guard.adapters.recognition import CannotTryError
from collapse_guard.adapters.recognition.twins import apart, copy_apart

from .exhibits import Exhibit
from .state import ModuleState

__all__ = ["GROUPS", "Replayed", "Replayer"]

GROUPS = ("batch_norm", "dropout", "quantizer", "other")
"""Groups of modules that could make training differ from evaluation; the first two where they run before the codes."""

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DROPOUT = nn.modules.dropout._DropoutNd
_STEPS = ("validation_step", "training_step")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay showed.

    Attributes:
        each: (n,) codes of each exhibit, in order. latents: (n, D) of all of them, where they are shown.
        moved: how far the first exhibit moved each floating tensor of the quantizer, relative to its size.
    """

    each: tuple[Tensor, ...]
    latents: Tensor | None
    moved: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are in a model.

    Attributes:
        module: path of the module that assigns the codes. quantizer: path of the whole quantizer that it is part of.
        quantizers: paths of all quantizers. trained: paths of the modules that are in training mode in training.
    """

    module: str
    quantizer: str
    quantizers: tuple[str, ...]
    trained: Collection[str]


class Replayer:
    """Runs copies of a model.

    Args:
        model: the root, whatever mode it is in.
        view: the codebook whose codes are wanted.
        places: where it is.
        as_trained: state of the quantizer that replays begin from; as it is now, where not given.

    Raises:
        CannotTryError: the model cannot be copied.
    """

    def __init__(
        self, model: nn.Module, view: CodebookView, places: Places, as_trained: ModuleState | None = None
    ) -> None:
        """Make the copy."""
        self._view, self._places = view, places
        self._way, self._is_known, self._from_outside = "", False, True
        self._groups: Mapping[str, Sequence[str]] | None = None
        own = _parameters_below(model, places.quantizers)
        try:
            with apart():
                self._master = copy_apart(model, shared=[each for each in model.parameters() if id(each) not in own])
        except CannotTryError:
            raise
        except Exception as error:  # foreign state may refuse to be copied in any way
            raise CannotTryError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
        own = _parameters_below(self._master, places.quantizers)
        self._shared = {id(each): each for each in self._master.parameters() if id(each) not in own}
        if as_trained is not None:
            as_trained.copy_to(self._master.get_submodule(places.quantizer))

    @property
    def table(self) -> Tensor:
        """(K, D) float32: the codebook as it is now."""
        return self._view.codebook().detach().float()

    @property
    def sees_before(self) -> bool:
        """Whether the latest replay began before the quantizer."""
        return bool(self._way) or self._from_outside

    def groups(self, exhibits: Sequence[Exhibit]) -> Mapping[str, Sequence[str]]:
        """Return the paths of the modules of each group that are in training mode in training; looked for once."""
        if self._groups is not None:
            return self._groups
        found: dict[str, list[str]] = {group: [] for group in GROUPS}
        early, quantizer = self._called_before(exhibits[:1]), self._places.quantizer
        for path, module in self._master.named_modules():
            if isinstance(module, _BATCH_NORM):
                found["batch_norm"] += [path] if path in early else []
            elif isinstance(module, _DROPOUT):
                found["dropout"] += [path] if path in early and module.p > 0 else []
            elif path == quantizer or path.startswith(f"{quantizer}.") or not quantizer:
                found["quantizer"].append(path)
            else:
                found["other"].append(path)
        trained = self._places.trained
        self._groups = {group: [path for path in paths if path in trained] for group, paths in found.items()}
        return self._groups

    def run(
        self, exhibits: Sequence[Exhibit], train: Collection[str] = (), *, seed: int = 0, afresh: bool = True
    ) -> Replayed:
        """Replay exhibits on one copy.

        Args:
            exhibits: one or more.
            train: groups in training mode; all others are in evaluation mode.
            seed: of whatever is random in training mode.
            afresh: begin each exhibit with the quantizer as it was at first; else what is written lasts.

        Raises:
            CannotTryError: the copy refused the input, or showed no code.
        """
        groups = self.groups(exhibits) if train else {}
        with self._twin(groups, train, seed) as twin:
            before = ModuleState(twin.get_submodule(self._places.quantizer))
            seen: list[Observation] = []
            stop = _listen(twin.get_submodule(self._places.module), self._view, seen.append)
            each: list[Tensor] = []
            moved: dict[str, float] = {}
            for place, exhibit in enumerate(exhibits):
                start = len(seen)
                self._feed(twin, exhibit)
                each.append(_codes(seen[start:], self._view.K))
                if not place:
                    moved = {name: float(value) for name, value in before.changed().items()}
                if afresh:
                    before.restore()
            stop()
        if not any(len(codes) for codes in each):
            raise CannotTryError("a copy showed no code")
        latents = [one.latents.float() for one in seen if one.latents is not None]
        return Replayed(tuple(each), torch.cat(latents) if latents else None, moved)

    def recalibrated(self, exhibits: Sequence[Exhibit]) -> dict[str, Tensor]:
        """Return the buffers of batch normalisation before the quantizer as the exhibits would have them, by name.

        Means and variances are averaged over the exhibits with equal weights, as `momentum=None` does.
        """
        groups = self.groups(exhibits)
        with self._twin(groups, ("batch_norm",), 0) as twin:
            those = [(path, module) for path in groups["batch_norm"] if (module := _tracking(twin, path)) is not None]
            for _, module in those:
                module.reset_running_stats()
                module.momentum = None
            for exhibit in exhibits:
                self._feed(twin, exhibit)
            return {f"{path}.{name}": buffer for path, module in those for name, buffer in module.named_buffers()}

    @contextmanager
    def _twin(self, groups: Mapping[str, Sequence[str]], train: Collection[str], seed: int) -> Iterator[nn.Module]:
        with apart(seed), torch.no_grad():
            twin = copy.deepcopy(self._master, dict(self._shared))
            switched = {path for group in train for path in groups[group]}
            for path, module in twin.named_modules():
                module.training = path in switched
            yield twin

    def _called_before(self, exhibits: Sequence[Exhibit]) -> set[str]:
        """Return the paths of the modules that are called before the first codes are assigned."""
        called: list[str] = []
        before: set[str] = set()
        with self._twin({}, (), 0) as twin:
            for path, module in twin.named_modules():
                module.register_forward_pre_hook(lambda _, __, path=path: called.append(path))
            stop = _listen(twin.get_submodule(self._places.module), self._view, lambda _: before.update(called))
            for exhibit in exhibits:
                self._feed(twin, exhibit)
            stop()
        return before

    def _feed(self, twin: nn.Module, exhibit: Exhibit) -> None:
        """Call the copy as the model was called, or a step of its owner's where a batch is known and that works."""
        steps = [name for name in _STEPS if exhibit.batch is not None and callable(getattr(twin, name, None))]
        for name in [self._way] if self._is_known else [*steps, ""]:
            try:
                _call(twin, exhibit, name)
            except Exception as error:
                if not name or self._is_known:
                    raise CannotTryError(f"a copy refused the input: {type(error).__name__}: {error}") from error
            else:
                self._way, self._is_known = name, True
                self._from_outside = not f"{exhibit.path}.".startswith(f"{self._places.quantizer}.")
                break


def _call(twin: nn.Module, exhibit: Exhibit, name: str) -> None:
    args, kwargs, batch = copy.deepcopy((exhibit.args, dict(exhibit.kwargs), exhibit.batch))
    if name:
        getattr(twin, name)(batch, 0)
    else:
        twin.get_submodule(exhibit.path)(*args, **kwargs)


def _codes(seen: Sequence[Observation], K: int) -> Tensor:
    codes = torch.cat([one.codes.detach().reshape(-1).long() for one in seen]) if seen else torch.zeros(0).long()
    return codes[(codes >= 0) & (codes < K)]


def _tracking(twin: nn.Module, path: str) -> nn.modules.batchnorm._BatchNorm | None:
    module = twin.get_submodule(path)
    return module if isinstance(module, _BATCH_NORM) and module.running_mean is not None else None


def _parameters_below(model: nn.Module, paths: Sequence[str]) -> set[int]:
    return {id(each) for path in paths for each in model.get_submodule(path).parameters()}


def _listen(module: nn.Module, view: CodebookView, told: Callable[[Observation], Any]) -> Callable[[], None]:
    """Tell of each observation on a copy of a view's module; return what ends that."""

    def hear(method: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            observation = view.readers[method](args, kwargs, output)
            if observation is not None:
                told(observation)

        return record

    interception = Interception(module, {name: hear(name) for name in view.readers if name != "forward"})
    interception.install()
    handle = None
    if "forward" in view.readers:
        handle = module.register_forward_hook(hear("forward"), with_kwargs=True)

    def stop() -> None:
        interception.remove()
        if handle is not None:
            handle.remove()

    return stop

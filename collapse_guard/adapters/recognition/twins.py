"""Copies of a module on which anything may be tried, and single runs of them.

The module itself is never run: what is tried, is tried on a copy in float32 without its owner's hooks. Every global
random stream is put back to where it was. What is too large, or hangs together with too much else, is not copied.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .structure import Structure
from .trace import Comparison, Tracer

__all__ = ["MAX_ELEMENTS", "Bench", "CannotTryError", "Trial", "apart", "copy_apart", "own_streams", "shapes_of"]

MAX_ELEMENTS = 1 << 25
"""No module with more elements in its tensors than this is copied: 128 MiB in float32."""

_MAX_OBJECTS = 50_000  # of a copy; a quantizer has hundreds, a trainer that hangs on an attribute has more
_SEED = 1234
_LATENTS_SEED = 4321  # another one: latents must not be rows of the table
_TOKENS = 24
_HOSTS = ("_trainer", "trainer", "_fabric")  # attributes by which a module knows the loop that it runs in


class CannotTryError(Exception):
    """The module cannot be copied for trials; says why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a copy of a module.

    Attributes:
        given: the input, a leaf.
        output: what came out.
        twin: the copy that ran.
        comparisons: what stored tensors met, in order; likewise.
        looked_up: names of the stored tensors that were searched and of which rows were then looked up.
        stored: the stored tensors that the copy held at the start; it may have written to them or bound others since.
        before: what they held at the start; empty where the run was not to keep it.
        after: what the copy's stored tensors held at the end; without those that are gone.
    """

    given: Tensor
    output: Any
    twin: nn.Module
    comparisons: tuple[Comparison, ...]
    looked_up: frozenset[str]
    stored: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


class Bench:
    """Runs copies of one module.

    In the copies tables and counts hold distinct random values, so that a collapsed, an unset or a normalised codebook
    is no obstacle and two equal tensors can be told apart.

    Args:
        module: the candidate.
        structure: what is known of it.

    Raises:
        CannotTryError: the module cannot be copied.
    """

    def __init__(self, module: nn.Module, structure: Structure) -> None:
        if why := _why_not(module):
            raise CannotTryError(why)
        counts = {name for table in structure.tables for name in table.counts}
        self._names = [*dict.fromkeys([*(table.name for table in structure.tables), *structure.deeper, *counts])]
        try:
            with apart():
                self._master = copy_apart(module).float()
        except CannotTryError:
            raise
        except Exception as error:  # foreign state may refuse to be copied in any way
            raise CannotTryError(f"it cannot be copied for a trial: {type(error).__name__}: {error}") from error
        self._device = _tensor(self._master, self._names[0]).device
        self._scout: nn.Module | None = None
        self._is_filled = False

    def scout(self, entry: str, shape: tuple[int, ...]) -> Trial | None:
        """Run one and the same copy in evaluation mode: cheap, and good to see which inputs are worth a fresh copy.

        The copy may remember earlier runs, its tables are the module's own, and what they held before is not kept.
        """
        try:
            with apart(), torch.no_grad():
                if self._scout is None:
                    self._scout = copy.deepcopy(self._master).eval()
                return self._call(self._scout, entry, shape, {})
        except Exception:  # as below
            return None

    def run(
        self,
        entry: str,
        shape: tuple[int, ...],
        *,
        training: bool = False,
        gradients: bool = False,
        traced: bool = True,
        edit: Callable[[nn.Module], None] = lambda _: None,
    ) -> Trial | None:
        """Run a fresh copy on one random input; the same input, noise and copy each time. `None` where it raises.

        Args:
            entry: the method to call.
            shape: of the input.
            training: put the copy into training mode.
            gradients: record a graph.
            traced: record comparisons and what tables held before.
            edit: changes the copy beforehand.
        """
        try:
            with apart(), torch.enable_grad() if gradients else torch.no_grad():
                if not self._is_filled:
                    self._fill()
                twin = copy.deepcopy(self._master).train(training)
                with torch.no_grad():
                    edit(twin)
                stored = {name: _tensor(twin, name) for name in self._names} if traced else {}
                return self._call(twin, entry, shape, {name: t.detach().clone() for name, t in stored.items()})
        except Exception:  # foreign code may refuse a layout, or the copy, in any way; then there is nothing to learn
            return None

    def _call(self, twin: nn.Module, entry: str, shape: tuple[int, ...], before: dict[str, Tensor]) -> Trial:
        stored = {name: _tensor(twin, name) for name in self._names}
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(_LATENTS_SEED), device="cpu")
        given = noise.to(self._device).requires_grad_(torch.is_grad_enabled())
        call = twin if entry == "forward" else getattr(twin, entry)
        with Tracer(stored, keeps=bool(before)) as tracer:
            output = call(given if given.requires_grad else given.clone())
        after = {name: tensor.detach() for name in self._names if (tensor := _find(twin, name)) is not None}
        return Trial(given, output, twin, tuple(tracer.comparisons), frozenset(tracer.looked_up), stored, before, after)

    @torch.no_grad()
    def _fill(self) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        for name in self._names:
            tensor = _tensor(self._master, name)
            values = torch.randn(tensor.shape, generator=generator, device="cpu")
            tensor.copy_(values.abs_().add_(5) if tensor.ndim == 1 else values)
        self._is_filled = True


@contextmanager
def apart(seed: int = _SEED) -> Iterator[None]:
    """Keep random streams, warnings and precision settings of the run out of a trial, and the trial's out of it.

    Args:
        seed: that every stream begins at within the trial.
    """
    kind = "cuda" if torch.cuda.is_initialized() else "cpu"
    with (
        own_streams(seed),
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.autocast(kind, enabled=False),
        torch.autocast("cpu", enabled=False) if kind != "cpu" else nullcontext(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def own_streams(seed: int) -> Iterator[None]:
    """Begin every global random stream at a seed, and put all of them back to where they were afterwards."""
    plain, array = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            # torch.manual_seed would also leave a seed for a CUDA that is not initialised yet
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)


def shapes_of(D: int) -> tuple[tuple[int, ...], ...]:
    """Return inputs of the usual layouts, each with 24 latents of width D."""
    half = _TOKENS // 2
    return ((_TOKENS, D), (2, half, D), (2, D, 3, 4), (2, D, half), (2, 3, 4, D), (1, D, 2, 3, 4))


def _why_not(module: nn.Module) -> str | None:
    tensors = [*module.parameters(), *module.buffers()]
    elements = sum(tensor.numel() for tensor in tensors)
    if elements > MAX_ELEMENTS:
        return f"it was not tried: its tensors hold {elements} elements, more than {MAX_ELEMENTS} are not copied"
    if any(tensor.is_meta for tensor in tensors):
        return "it was not tried: it has no values yet (device meta); attach the guard when the model is on its device"
    if any("forward" in vars(part) for part in module.modules()):
        return "it was not tried: its forward was replaced on the instance, so that a copy would act on the original"
    return None


class _Memo(dict[int, Any]):
    """What a deepcopy has copied, up to a bound."""

    elements = 0

    def __setitem__(self, key: int, value: Any) -> None:
        self.elements += value.numel() if isinstance(value, Tensor) else 0
        if len(self) > _MAX_OBJECTS or self.elements > MAX_ELEMENTS:
            raise CannotTryError("it was not tried: too much else hangs on its attributes to be copied")
        super().__setitem__(key, value)


def copy_apart(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """Copy a module without its owner's hooks, which are for its owner's data, and without the loop that it runs in.

    Args:
        module: to copy.
        shared: tensors that the copy shares with it.

    Raises:
        CannotTryError: too much hangs on it, or a function that was put on it would act on the module itself.
    """
    for path, part in module.named_modules():
        if names := [name for name, value in vars(part).items() if _holds_on(value)]:
            where = ".".join(filter(None, (path, names[0])))
            raise CannotTryError(f"the function at {where} holds on to what a copy would then share with the original")
    memo = _Memo()
    for tensor in shared:
        dict.__setitem__(memo, id(tensor), tensor)  # past the count of what is copied
    for part in module.modules():
        for key, value in vars(part).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                kept = {name: hook for name, hook in value.items() if _is_of_torch(hook)}
                memo[id(value)] = copy.deepcopy(type(value)(kept), memo)
            elif key in _HOSTS:
                memo[id(value)] = None
    return copy.deepcopy(module, memo)


def _holds_on(value: object) -> bool:
    """Whether a function keeps a module or a tensor in closure or defaults, which a deepcopy leaves as they are."""
    todo, seen = [value], set[int]()
    while todo:
        function = todo.pop()
        function = function.func if isinstance(function, partial) else function  # its arguments are copied
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        kept = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
        kept += function.__defaults__ or ()
        kept = [each.__self__ if isinstance(each, MethodType) else each for each in kept]
        if any(isinstance(each, (nn.Module, Tensor)) for each in kept):
            return True
        todo += kept
    return False


def _is_set(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # empty
        return False
    return True


def _is_of_torch(hook: Any) -> bool:
    """Whether a hook is part of how a module computes: those of weight and spectral normalisation."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _tensor(module: nn.Module, dotted: str) -> Tensor:
    tensor = _find(module, dotted)
    if tensor is None:
        raise TypeError(f"{dotted} is no tensor")
    return tensor


def _find(module: nn.Module, dotted: str) -> Tensor | None:
    path, _, attribute = dotted.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute, None)
    return tensor if isinstance(tensor, Tensor) else None

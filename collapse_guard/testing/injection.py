"""Injecting a collapse: after chosen training forwards of a quantizer, its codebook is spoilt as a broken update would.

What is spoilt is written at the end of the quantizer's own forward, where its moving averages are written too. So a
guard that keeps the quantizer's updates out keeps the injection out, and one that only rewrites the codes meets it
again. Nothing else of the model or of the run is touched, and no random stream but a private one is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from collapse_guard.adapters import CodebookView, GenericVQ, Interception, discover
from collapse_guard.hooks import Bystander, Hook
from collapse_guard.probe import inside_backward

from .spoiling import SPOILERS, Codebook

__all__ = ["KINDS", "Fired", "Injection", "Injector", "Kind", "inject"]

Kind = Literal["scale", "freeze", "point_mass", "noise", "nan", "starve"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be injected."""

_STRENGTH: Mapping[str, float] = {"scale": 100.0, "noise": 10.0, "nan": 0.5, "starve": 0.75}


@dataclass(frozen=True, slots=True)
class Injection:
    """What is done to codebooks, and when.

    Attributes:
        kind: `scale`: all codes but the first get `strength` (100) times the median length, so that inputs fall on the
            one that is still short. `point_mass`: all codes are the same. `noise`: normal noise of `strength` (10)
            times the median length is added. `nan`: a share `strength` (0.5) of the codes is not a number.
            `starve`: a share `strength` (0.75) of the codes is moved to where no input is. `freeze`: the codebook no
            longer follows: its updates and its gradients are dropped.
        at: training forwards of the quantizer that pass before the first time.
        until: training forwards after which it ends; once where not given, and for good with `freeze`.
        every: training forwards from one time to the next.
        strength: how much, with a meaning of its own for each kind.
        codebooks: patterns of the names of those concerned, as in a policy.

    Raises:
        ValueError: an unknown kind, or a number out of its range.
    """

    kind: Kind
    at: int = 0
    until: int | None = None
    every: int = 1
    strength: float | None = None
    codebooks: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.kind not in KINDS:
            raise ValueError(f"expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.at < 0 or self.every < 1 or (self.until is not None and self.until <= self.at):
            raise ValueError(f"expected 0 <= at < until and every >= 1, got {self.at}, {self.until} and {self.every}")
        if self.strength is not None and (self.kind not in _STRENGTH or not 0 < self.strength < math.inf):
            takes = ", ".join(_STRENGTH)
            raise ValueError(f"expected a strength above 0 for one of {takes}, got {self.strength} for {self.kind}")
        if self.kind in ("nan", "starve") and self.amount > 1:
            raise ValueError(f"expected a share of the codes in (0, 1] for {self.kind}, got {self.amount}")

    @property
    def amount(self) -> float:
        """The strength in force."""
        return self.strength if self.strength is not None else _STRENGTH.get(self.kind, 0.0)

    def is_due(self, call: int) -> bool:
        """Whether it happens at the end of this training forward, counted from 0."""
        if call < self.at or (call - self.at) % self.every:
            return False
        if self.until is None:
            return self.kind == "freeze" or call == self.at
        return call < self.until


@dataclass(frozen=True, slots=True)
class Fired:
    """One injection that happened: at the end of which training forward of its quantizer, to which codebook, what."""

    call: int
    codebook: str
    kind: Kind


class Injector:
    """Spoils the codebooks of a model on a schedule, from `install` to `remove`; `inject` does both.

    Args:
        model: the model that is trained.
        injections: what to do and when; several may concern one codebook and are carried out in their order.
        adapters: module path -> description, for quantizers that are not recognised, as for a `Guard`.
        seed: of the private random stream.

    Attributes:
        fired: what happened so far.
    """

    def __init__(
        self,
        model: nn.Module,
        *injections: Injection,
        adapters: Mapping[str, GenericVQ] | None = None,
        seed: int = 0,
    ) -> None:
        """Store the parts; the model is looked at by `install`."""
        self.fired: list[Fired] = []
        self._model = model
        self._injections = injections
        self._adapters = dict(adapters or {})
        self._seed = seed
        self._handles: list[Any] = []

    def install(self) -> None:
        """Find the codebooks and begin to count.

        Raises:
            NoQuantizerError: the model has no quantizer.
            ValueError: an injection concerns no codebook, or one that cannot be spoilt in that way.
        """
        views = discover(self._model, self._adapters).views
        chosen = [(view, self._concerning(view)) for view in views]
        for injection in self._injections:
            if not any(injection in those for _, those in chosen):
                names = ", ".join(view.name for view in views)
                raise ValueError(f"expected a codebook for {injection.codebooks}, got {names}")
        modules: dict[nn.Module, list[_Target]] = {}
        for index, (view, injections) in enumerate(chosen):
            if injections:
                modules.setdefault(view.module, []).append(_Target(view, injections, self._seed + index, self.fired))
        for module, targets in modules.items():
            self._watch(module, targets)

    def _concerning(self, view: CodebookView) -> list[Injection]:
        found = [each for each in self._injections if any(fnmatchcase(view.name, name) for name in each.codebooks)]
        for injection in found:
            if (why := _why_not(view, injection)) is not None:
                raise ValueError(f"{injection.kind} cannot be injected into {view.name}: {why}")
        return found

    def _watch(self, module: nn.Module, targets: Sequence[_Target]) -> None:
        def ended(*_: Any) -> None:
            if (targets[0].view.owner or module).training and not inside_backward():
                for target in targets:
                    target.ended()

        def begins(*_: Any) -> None:
            for target in targets:
                target.begins()

        methods = {method for target in targets for method in target.view.readers}
        interception = Interception(module, dict.fromkeys(methods, ended), hook=Bystander)
        interception.install()
        self._handles += [interception, module.register_forward_pre_hook(Hook(begins))]
        for target in targets:
            self._handles += target.blinded()

    def remove(self) -> None:
        """Leave the model to itself; what was spoilt stays spoilt."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@contextmanager
def inject(
    model: nn.Module,
    *injections: Injection,
    adapters: Mapping[str, GenericVQ] | None = None,
    seed: int = 0,
) -> Iterator[Injector]:
    """Spoil codebooks of a model on a schedule while the context lasts, before or after a guard is attached.

    Example:
        >>> import torch
        >>> from collapse_guard.testing.rehearsal import RehearsalModel
        >>> model = RehearsalModel().train()
        >>> with inject(model, Injection("point_mass", at=1)) as injector:
        ...     for _ in range(3):
        ...         _ = model(torch.randn(8, 16))
        >>> injector.fired
        [Fired(call=1, codebook='quantizer', kind='point_mass')]

    Raises:
        NoQuantizerError, ValueError: as `Injector.install`.
    """
    injector = Injector(model, *injections, adapters=adapters, seed=seed)
    try:
        injector.install()
        yield injector
    finally:
        injector.remove()


class _Target:
    """One codebook and what is done to it."""

    def __init__(self, view: CodebookView, injections: Sequence[Injection], seed: int, fired: list[Fired]) -> None:
        self.view = view
        self._injections = injections
        self._generator = torch.Generator(view.codebook().device).manual_seed(seed)
        self._codebook = Codebook(view, self._generator)
        self._fired = fired
        self._calls = 0
        self._held: list[Tensor] | None = None

    def begins(self) -> None:
        """Take what stands at the start of a forward for what a freeze keeps."""
        if self._freezes(self._calls):
            self._held = self._codebook.parts()

    def ended(self) -> None:
        """Spoil the codebook where it is time to."""
        for injection in self._injections:
            if not injection.is_due(self._calls):
                continue
            if injection.kind == "freeze":
                self._codebook.put(self._held)
            else:
                rows, vectors = SPOILERS[injection.kind](self._codebook, injection.amount)
                self._codebook.write(rows, vectors)
            self._fired.append(Fired(self._calls, self.view.name, injection.kind))
        self._calls += 1
        if self._freezes(self._calls) and "forward" not in self.view.readers:
            self._held = self._codebook.parts()

    def _freezes(self, call: int) -> bool:
        return any(each.kind == "freeze" and each.is_due(call) for each in self._injections)

    def blinded(self) -> list[Any]:
        """Let no gradient through while a freeze lasts; return the handles of what does so."""
        parameters = [ref for ref in self.view.refs().values() if ref.is_parameter]
        if not any(each.kind == "freeze" for each in self._injections):
            return []

        def blind(part: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor | None:
            if not self._freezes(self._calls - 1):  # the forward that this gradient is of has ended
                return None
            gradient = gradient.clone()
            part(gradient).zero_()
            return gradient

        return [ref.whole().register_hook(partial(blind, ref.part_of)) for ref in parameters]


def _why_not(view: CodebookView, injection: Injection) -> str | None:
    """Say why an injection cannot be carried out on a codebook; `None` where it can."""
    if (why := view.why_not("reset")) is not None:
        return why
    if injection.kind == "scale" and view.metric == "cosine":
        return "its codes are compared by angle, so that their lengths change nothing; inject point_mass or starve"
    return None

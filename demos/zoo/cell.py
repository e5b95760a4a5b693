"""One cell of the zoo: a scenario, an arm and a seed; trained, and measured by means of its own.

Perplexities are counted from the codes that the quantizer returns, not from what the guard says of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Event, Guard
from collapse_guard.statistics import perplexity, usage

from .arms import Arm
from .models import Bottleneck, Coder, build_quantizer
from .scenario import Run, Scenario, any_items

__all__ = ["EVALUATED_EVERY", "WINDOW", "CellResult", "run_cell"]

WINDOW = 25
"""Steps over which a value of the trace is counted."""
EVALUATED_EVERY = 100
"""Steps after which the held-out items are looked at, as in any training; the last time is the one that counts."""
_START_STREAM = 10_000  # added to the seed: starts and batches draw from streams of their own
_ADVERSARY_WEIGHT = 0.05
_PRETRAINING, _PRETRAINING_TOKENS = 300, 256


@dataclass(frozen=True, slots=True)
class CellResult:
    """How one cell ended.

    Attributes:
        scenario, arm, seed, steps: which cell. policy: fingerprint of the guard's policy; empty without a guard.
        error: mean squared error on held-out items, as a share of their variance; `None` if it is no number.
        perplexity, usage: of each level's codes of held-out items, in evaluation mode.
        trace: for each `WINDOW` of steps the perplexity of each level's codes in training; empty where there were none.
        alerts: (step, rule, severity) of each.
        interventions: (step, codebook, action, result) of each.
        readings: steps of the guard's readings of its first codebook in training. codebooks: that it watched.
        guard_share: the guard's share of the training's wall time. cpu_seconds: of the process, for the training.
        packages: versions of what it was made with; empty where an older version did not write them down.
        same_as: scenario and arm whose run this is, too, where it was not trained again; see `recipe_of`.
    """

    scenario: str
    arm: str
    seed: int
    steps: int
    policy: str
    error: float | None
    perplexity: list[float]
    usage: list[float]
    trace: list[list[float]]
    alerts: list[tuple[int, str, str]] = field(default_factory=list)
    interventions: list[tuple[int, str, str, str]] = field(default_factory=list)
    readings: list[int] = field(default_factory=list)
    codebooks: int = 0
    guard_share: float = 0.0
    cpu_seconds: float = 0.0
    packages: str = ""
    same_as: str = ""

    def as_record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@cache
def _packages() -> str:
    names = ("collapse_guard", "torch", "vector-quantize-pytorch", "scikit-learn")
    return ", ".join(f"{name} {version(name)}" for name in names)


class _Listener:
    """Keeps what a guard tells of alerts and readings."""

    def __init__(self) -> None:
        self.alerts: list[tuple[int, str, str]] = []
        self.readings: dict[str, list[int]] = {}

    def write(self, event: Event) -> None:
        """Keep an alert or the step of a reading."""
        if event.event == "alert":
            self.alerts.append((event.step, str(event.fields["rule"]), str(event.fields["severity"])))
        elif event.event == "reading" and event.fields["stage"] == "train":
            self.readings.setdefault(str(event.fields["codebook"]), []).append(event.step)

    def close(self) -> None:
        """Nothing is held."""


def run_cell(scenario: Scenario, arm: Arm, seed: int, *, steps: int | None = None) -> CellResult:
    """Train one cell and measure how it ends.

    Args:
        scenario: what is trained, and what goes wrong.
        arm: what is done about it.
        seed: of weights, batches and the guard; the same seed gives all arms the same batches.
        steps: instead of the scenario's.

    Raises:
        ImportError: the package of the quantizer is not installed.
    """
    steps = steps or scenario.steps
    policy, fingerprint = arm.policy_of(scenario, seed), arm.fingerprint
    trainer = _Trainer(scenario, arm, seed)
    listener = _Listener()
    guard = Guard(policy or "observe", console=False, sinks=[listener], seed=seed, total_steps=steps)
    counter = _Counter(trainer.run.model.bottleneck.K)
    began, began_cpu = time.perf_counter(), time.process_time()
    with closing(guard):
        if policy is not None:
            guard.attach(trainer.run.model, trainer.optimizers)
        for step in range(steps):
            codes, loss = trainer.step(step)
            counter.add(codes, step)
            if policy is not None:
                guard.step(loss=loss)
            if (step + 1) % EVALUATED_EVERY == 0 and step + 1 < steps:  # unguarded, too: some quantizers start in it
                with guard.evaluate():
                    trainer.judge()
                trainer.run.model.train()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        done = [(each["step"], each["codebook"], each["action"], each["result"]) for each in guard.interventions]
        guard_seconds = guard.seconds
        with guard.evaluate():
            error, perplexities, usages = trainer.judge()
    return CellResult(
        scenario=scenario.name,
        arm=arm.name,
        seed=seed,
        steps=steps,
        policy=fingerprint,
        packages=_packages(),
        error=error,
        perplexity=perplexities,
        usage=usages,
        trace=counter.trace,
        alerts=listener.alerts,
        interventions=done,
        readings=next(iter(listener.readings.values()), []),
        codebooks=len(listener.readings),
        guard_share=round(guard_seconds / seconds, 4) if seconds > 0 else 0.0,
        cpu_seconds=round(cpu_seconds, 2),
    )


class _Counter:
    """Counts codes over windows of steps, once for all steps of a window."""

    def __init__(self, K: int) -> None:
        self.K = K
        self.trace: list[list[float]] = []
        self._seen: list[list[Tensor]] = []

    def add(self, codes: Sequence[Tensor], step: int) -> None:
        """Keep the codes of one step; negative ones are no tokens."""
        for level, own in enumerate(codes):
            if level == len(self._seen):
                self._seen.append([])
            self._seen[level].append(own.flatten())
        if step % WINDOW == WINDOW - 1:
            counts = [_count(torch.cat(own), self.K) for own in self._seen]
            self.trace.append([round(perplexity(each), 2) for each in counts if each.any()])
            self._seen = []


class _Trainer:
    """A model in training, with its cause or without."""

    def __init__(self, scenario: Scenario, arm: Arm, seed: int) -> None:
        self.scenario = scenario
        self.has_cause = arm.has_cause
        self.run = _prepare(scenario, arm, seed)
        self.run.draws = torch.Generator().manual_seed(seed)
        self.adversary = _Adversary(self.run.data.train.shape[-1]) if scenario.has_adversary else None
        self.optimizers = [self.run.optimizer, *([self.adversary.optimizer] if self.adversary is not None else [])]

    def step(self, step: int) -> tuple[list[Tensor], Tensor]:
        """Train one step; return the codes of each level, -1 for padding, and the loss.

        A loss that is no number moves no weight, as with a gradient scaler.
        """
        scenario, run = self.scenario, self.run
        if scenario.routine is not None:
            scenario.routine(run, step)
        if scenario.disturb is not None and step >= scenario.onset and self.has_cause:
            scenario.disturb(run, step)
        x, mask = self._pad(scenario.draw(run, step, scenario.batch))
        if run.spoiled:
            x = x.clone()
            x[: max(int(run.spoiled * len(x)), 1)] = math.nan
        decoded, codes, loss = run.model(x, None if self.has_cause else mask)
        loss = loss + _error(decoded, x, mask) / run.data.variance
        if self.adversary is not None:
            loss = loss + _ADVERSARY_WEIGHT * self.adversary.fooled(decoded)
        if bool(loss.isfinite()):
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            if self.adversary is not None:
                self.adversary.learn(x, decoded.detach())
        return [_only_tokens(each, mask) for each in codes], loss.detach()

    def _pad(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return items of which 2 to 6 vectors are left, and which ones: (B, t) bool; as they are where none is due."""
        if not self.scenario.is_padded:
            return x, None
        mask = torch.arange(x.shape[1]) < torch.randint(2, 7, (len(x), 1), generator=self.run.draws)
        return x * mask.unsqueeze(-1), mask

    @torch.no_grad()
    def judge(self) -> tuple[float | None, list[float], list[float]]:
        """Return error, perplexities and usages on the held-out items."""
        run, draws, is_passed_by = self.run, self.run.draws, self.run.model.is_passed_by
        run.model.eval()
        run.model.is_passed_by = False
        run.draws = torch.Generator().manual_seed(_START_STREAM)
        x, mask = self._pad(run.data.test)
        run.draws = draws
        decoded, codes, _ = run.model(x, None if self.has_cause else mask)
        run.model.is_passed_by = is_passed_by
        error = float(_error(decoded, x, mask)) / run.data.variance
        K = run.model.bottleneck.K
        counts = [_count(_only_tokens(own, mask), K) for own in codes]
        return (
            error if math.isfinite(error) else None,
            [round(perplexity(each), 3) for each in counts],
            [round(usage(each), 4) for each in counts],
        )


def _prepare(scenario: Scenario, arm: Arm, seed: int) -> Run:
    """Build model and optimizer, and let the codebook start as scenario and arm want it to."""
    torch.manual_seed(seed)
    quantizer = build_quantizer(arm.family or scenario.family, scenario.D, scenario.K, arm.options_of(scenario))
    data = scenario.load()
    torch.manual_seed(seed)  # the same encoder and decoder around every quantizer
    model = _coder(scenario, quantizer, has_cause=arm.has_cause)
    if scenario.is_pretrained:
        model.load_state_dict(_pretrained(scenario, seed, has_cause=arm.has_cause), strict=False)
    optimizer = _adam(model, scenario.lr)
    run = Run(model, data, optimizer, torch.Generator().manual_seed(seed + _START_STREAM), scenario.lr)
    if (start := arm.start_of(scenario)) is not None:
        start(run)
    return run


def _adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Return Adam as one kernel for all weights: a tenth of a small model's step less."""
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True)


def _coder(scenario: Scenario, quantizer: Bottleneck, *, has_cause: bool) -> Coder:
    width, arguments = scenario.load().train.shape[-1], scenario.model_of(has_cause=has_cause)
    return Coder(width, scenario.D, quantizer, tokens=scenario.tokens, **arguments)


def _pretrained(scenario: Scenario, seed: int, *, has_cause: bool) -> dict[str, Tensor]:
    """Return weights of encoder and decoder that were trained without a quantizer.

    Scenarios that have data, sizes and model in common share them.
    """
    arguments = scenario.model_of(has_cause=has_cause)
    key = (scenario.data, scenario.D, scenario.tokens, tuple(sorted(arguments.items())), seed)
    if key not in _PRETRAINED:
        torch.manual_seed(seed)
        model = _coder(scenario, Bottleneck(nn.Identity(), _never, 1), has_cause=has_cause)
        model.is_passed_by = True
        run = Run(model, scenario.load(), _adam(model, 2e-3), torch.Generator(), scenario.lr)
        run.draws.manual_seed(seed + _START_STREAM)
        for step in range(_PRETRAINING):
            x = any_items(run, step, _PRETRAINING_TOKENS // run.data.train.shape[1])
            run.optimizer.zero_grad()
            _error(model(x)[0], x, None).backward()
            run.optimizer.step()
        _PRETRAINED[key] = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return _PRETRAINED[key]


_PRETRAINED: dict[tuple[Any, ...], dict[str, Tensor]] = {}


def _never(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> Any:
    raise AssertionError("a model in training without its quantizer called it")


class _Adversary:
    """A discriminator of vectors, with an optimizer of its own (hinge loss, as VQ-GANs have it)."""

    def __init__(self, width: int) -> None:
        self.module = nn.Sequential(nn.Linear(width, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.optimizer = _adam(self.module, 1e-3)

    def fooled(self, decoded: Tensor) -> Tensor:
        """Return the loss of a decoder that wants its output taken for real."""
        return -cast(Tensor, self.module(decoded)).mean()

    def learn(self, real: Tensor, decoded: Tensor) -> None:
        """Train one step on what is real and what was decoded."""
        loss = functional.relu(1 - self.module(real)).mean() + functional.relu(1 + self.module(decoded)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _error(decoded: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    squares = (decoded - x).square()
    return squares.mean() if mask is None else squares[mask].mean()


def _only_tokens(codes: Tensor, mask: Tensor | None) -> Tensor:
    return codes if mask is None else torch.where(mask, codes, -1)


def _count(codes: Tensor, K: int) -> Tensor:
    return torch.bincount(codes[codes >= 0].flatten(), minlength=K)

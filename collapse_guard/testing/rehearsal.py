"""Rehearsing a policy: a small healthy model is trained, its codebook is spoilt, and what the policy did is told.

The model is an autoencoder of clustered points with an EMA codebook, small enough for thousands of steps a minute. It
stands for no model of yours: it shows whether a policy sees a collapse, what it tries, and whether that is enough
where the repair is possible. How soon it sees it depends on the policy's cadence alone, and carries over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.events import Event
from collapse_guard.guard import Guard
from collapse_guard.policies import Policy, load_policy
from collapse_guard.statistics import perplexity

from .injection import Injection, inject
from .recorder import Recorder

__all__ = ["MOST_STEPS", "Rehearsal", "RehearsalModel", "rehearse", "steps_for"]

MOST_STEPS = 6_000
_CLUSTERS = 48
_BATCH = 256
_LOOK = 10  # steps over which the perplexity is pooled that decides whether harm was done


class _Quantizer(nn.Module):
    """A sound EMA codebook, which starts from its first batch."""

    table: Tensor
    sums: Tensor
    sizes: Tensor
    steps: Tensor

    def __init__(self, K: int, D: int) -> None:
        super().__init__()
        self.decay, self.commitment = 0.95, 0.25
        self.register_buffer("table", torch.randn(K, D))
        self.register_buffer("sums", self.table.clone())
        self.register_buffer("sizes", torch.ones(K))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize (n, D); return the straight-through output, (n,) codes and the commitment loss."""
        if self.training and not self.steps:
            with torch.no_grad():
                chosen = z[torch.randperm(len(z))[: len(self.table)]]
                self.table[: len(chosen)] = chosen
                self.sums.copy_(self.table)
        codes = torch.cdist(z.detach(), self.table).argmin(dim=-1)
        quantised = self.table[codes]
        loss = self.commitment * functional.mse_loss(z, quantised)
        if self.training:
            self._update(z.detach(), codes)
        return z + (quantised - z).detach(), codes, loss

    @torch.no_grad()
    def _update(self, z: Tensor, codes: Tensor) -> None:
        self.steps += 1
        hits = functional.one_hot(codes, len(self.sizes)).to(z.dtype)
        self.sizes.mul_(self.decay).add_(hits.sum(dim=0), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hits.t() @ z, alpha=1 - self.decay)
        self.table.copy_(self.sums / (self.sizes + 1e-3).unsqueeze(-1))


class RehearsalModel(nn.Module):
    """An autoencoder of 16-dimensional points around an EMA codebook.

    Args:
        K: number of codes. D: their dimension.
    """

    def __init__(self, K: int = 64, D: int = 8) -> None:
        """Build the parts."""
        super().__init__()
        self.encoder = nn.Linear(16, D)
        self.quantizer = _Quantizer(K, D)
        self.decoder = nn.Linear(D, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch (n, 16), and its (n,) codes."""
        quantised, codes, loss = self.quantizer(self.encoder(x))
        return functional.mse_loss(self.decoder(quantised), x) + loss, codes


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """How a policy took one injection.

    Attributes:
        injection: what was done; `None` where nothing was, and nothing should be seen.
        mode: of the policy.
        began: optimizer steps before the injection.
        before, lowest, last: perplexity before it, the lowest after it, and at the end, each over ten steps.
        false_alarm: step of an alert before anything was wrong; one of severity `info` is none.
        seen: step of the first alert after it. events: all that the guard told.
        finished: whether every loss of the last steps was finite.
    """

    injection: Injection | None
    mode: str
    began: int
    before: float
    lowest: float
    last: float
    false_alarm: int | None
    seen: int | None
    finished: bool
    events: list[Event] = field(repr=False)

    @property
    def harmed(self) -> bool:
        """Whether the perplexity fell below half of what it was, or a loss became infinite or NaN."""
        return self.lowest < self.before / 2 or not self.finished

    @property
    def holds(self) -> bool:
        """Whether the policy did what it is for: nothing without need, and else enough."""
        if self.false_alarm is not None or (self.seen is not None and not self.harmed):
            return False
        return not self.harmed or self.is_over or (self.seen is not None and self.mode == "observe")

    @property
    def is_over(self) -> bool:
        """Whether the codebook is in use again at the end, whoever brought that about."""
        return self.finished and self.last > self.before / 2

    @property
    def repaired(self) -> bool:
        """Whether the codebook is in use again at the end, and an intervention stands for it."""
        return self.is_over and any(each["result"] == "recovered" for each in self.interventions)

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.false_alarm is not None:
            return f"false alarm at step {self.false_alarm}, when nothing was wrong"
        if not self.harmed:
            return "no harm was done" + ("" if self.seen is None else f", and yet an alert at step {self.seen}")
        if self.seen is None:
            return "not seen, and over by itself" if self.is_over else "NOT SEEN"
        seen = f"seen after {self.seen - self.began} steps"
        if self.repaired:
            return f"{seen}, repaired"
        if self.is_over:
            return f"{seen}, and over by itself"
        return f"{seen}; the policy only observes" if self.mode == "observe" else f"{seen}, NOT REPAIRED"

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """What was done, in order: step, action, and how it ended."""
        outcomes = {e.fields["attempt"]: e.fields for e in self.events if e.event == "outcome"}
        acts = [event for event in self.events if event.event == "intervention"]
        return [
            {
                "step": act.step,
                "action": act.fields["action"],
                "result": outcomes.get(act.fields["attempt"], {}).get("outcome", act.fields["result"]),
            }
            for act in acts
        ]


def steps_for(policy: Policy) -> tuple[int, int]:
    """Return the step at which a rehearsal of this policy spoils the codebook, and how many it takes in all."""
    every = policy.sample.every_steps
    began = max(100, policy.warmup_steps + 3 * every)
    spans = [each.count for rule in policy.rules for each in (rule.verify.within, rule.cooldown.for_)]
    return began, min(MOST_STEPS, began + max(600, 10 * every, 2 * max(spans, default=0)))


def rehearse(
    policy: str | Path | Mapping[str, Any] | Policy,
    injection: Injection | None,
    *,
    steps: int | None = None,
    codes: int = 64,
    seed: int = 0,
) -> Rehearsal:
    """Train the built-in model under a policy, spoil its codebook, and say what came of it.

    Args:
        policy: as for a `Guard`.
        injection: what is done to the codebook; `None` to see whether the policy leaves a healthy one alone.
        steps: optimizer steps; enough for a few verifications where not given.
        codes: K.
        seed: of data, weights and injection.

    Raises:
        PolicyError: the policy is not valid.
        ValueError: the injection comes after the last step.
    """
    policy = load_policy(policy)
    began, enough = steps_for(policy)
    began, steps = began if injection is None else injection.at, steps if steps is not None else enough
    if injection is not None and began >= steps:
        raise ValueError(f"expected an injection before the last of {steps} steps, got one at {began}")
    sink, series, losses = Recorder(), list[float](), list[float]()
    with _own_random_stream(seed), Guard(policy, console=False, sinks=[sink]) as guard:
        model = RehearsalModel(codes).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        guard.attach(model, optimizer)
        centres = 3 * torch.randn(_CLUSTERS, 16)
        injections = () if injection is None else (injection,)
        counts = torch.zeros(codes)
        with inject(model, *injections, seed=seed):
            for step in range(steps):
                x = centres[torch.randint(_CLUSTERS, (_BATCH,))] + 0.1 * torch.randn(_BATCH, 16)
                loss, used = model(x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                guard.step(loss=losses[-1], epoch=step // 100)
                counts += torch.bincount(used, minlength=codes)
                if (step + 1) % _LOOK == 0:
                    series.append(perplexity(counts.long().numpy()))
                    counts.zero_()
    first = began // _LOOK
    alerts = [(event.step, event.fields["severity"]) for event in sink.events if event.event == "alert"]
    early = (step for step, severity in alerts if severity != "info" and (injection is None or step < began))
    return Rehearsal(
        injection=injection,
        mode=policy.mode,
        began=began,
        before=series[max(0, first - 1)],
        lowest=min(series[first:], default=math.nan) if injection is not None else series[max(0, first - 1)],
        last=series[-1],
        false_alarm=next(early, None),
        seen=next((step for step, _ in alerts if injection is not None and step >= began), None),
        finished=all(map(math.isfinite, losses[-_LOOK:])),
        events=sink.events,
    )


@contextmanager
def _own_random_stream(seed: int) -> Iterator[None]:
    """Draw from a stream of one's own, and put the caller's back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

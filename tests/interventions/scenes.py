"""Small runs with one trouble each: an encoder that begins as the identity, a quantizer, a loss that holds z near x.

What is wrong is put in on purpose, so that one remedy is right and others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Event, Guard, Sink
from tests import quantizers
from tests.loops import Recorder, policy_of

D = 8
CENTRES = torch.randn(8, D, generator=torch.Generator().manual_seed(3)) * 3


class Broken(quantizers.Plain):
    """Smoothed counts are fractions, never multiplied back by n, as in the reference story; nothing is normalised."""

    def update(self, z: Tensor, codes: Tensor) -> None:
        hits = functional.one_hot(codes, len(self.rho)).to(z.dtype)
        self.rho.mul_(self.decay).add_(hits.sum(0), alpha=1 - self.decay)
        self.alpha.mul_(self.decay).add_(hits.t() @ z, alpha=1 - self.decay)
        n = self.rho.sum()
        self.omega.copy_(self.alpha / ((self.rho + 1e-5) / (n + len(self.rho) * 1e-5)).unsqueeze(1))


class Small(nn.Module):
    """Encoder and quantizer; `weights` scale the terms of the loss: z near x, z small, all z moving one way."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        with torch.no_grad():
            self.encoder.weight.copy_(torch.eye(D))
            self.encoder.bias.zero_()
        self.quantizer = quantizer
        self.weights = {"near": 1.0, "small": 0.0, "drift": 0.0}

    def loss(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        z = self.encoder(x)
        output = self.quantizer(z)
        own = next(each for each in output if each.is_floating_point() and each.numel() == 1).sum()
        terms = {
            "near": functional.mse_loss(z, x if target is None else target),
            "small": z.square().mean(),
            "drift": -self.encoder.bias.mean(),
        }
        loss: Tensor = own + sum((self.weights[name] * term for name, term in terms.items()), torch.zeros(()))
        return loss

    @torch.no_grad()
    def error(self, x: Tensor, target: Tensor) -> float:
        """Return how far what comes out of the quantizer is from a target, whatever the loss is made of."""
        self.eval()
        output = self.quantizer(self.encoder(x))
        self.train()
        return float(functional.mse_loss(output[0], target))


def modes(step: int, n: int = 64) -> Tensor:
    """Return (n, D) inputs of eight modes, the same ones at the same step of each run."""
    generator = torch.Generator().manual_seed(1000 + step)
    return CENTRES[torch.randint(8, (n,), generator=generator)] + 0.3 * torch.randn(n, D, generator=generator)


@dataclass
class Scene:
    """A model with its optimizer, its inputs, and blows to the encoder's bias: what each step adds to its gradient."""

    quantizer: nn.Module
    lr: float = 0.01
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    inputs: Callable[[int], Tensor] = modes
    blow: Callable[[int], float] = lambda step: 0.0
    weights: dict[str, float] = field(default_factory=dict)
    target: Callable[[int, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.model = Small(self.quantizer).train()
        self.model.weights |= self.weights
        self.optim = self.optimizer(self.model.parameters(), lr=self.lr)
        self.recorder = Recorder()
        self.done = 0

    def guarded(self, rule: dict[str, Any], sinks: Sequence[Sink] = ()) -> Guard:
        """Return a guard under a policy of one rule that reads every five steps."""
        policy = policy_of({"name": "trouble", "for": 1, "clear": {"for": 2}, "verify": {"within": "60 steps"}} | rule)
        return Guard(policy, console=False, sinks=[*sinks, self.recorder]).attach(self.model, self.optim)

    def train(self, steps: int, guard: Guard | None = None) -> None:
        """Go on for some steps."""
        for _ in range(steps):
            x = self.inputs(self.done)
            target = None if self.target is None else self.target(self.done, x)
            loss = self.model.loss(x, target)
            self.optim.zero_grad()
            (loss + self.blow(self.done) * self.model.encoder.bias.mean()).backward()
            self.optim.step()
            self.done += 1
            if guard is not None:
                told = float(loss.detach()) if target is None else self.model.error(x, target)
                guard.step(loss=told)

    def told(self) -> list[str]:
        """Return what became of interventions, in order: `fast_ema applied`, `fast_ema recovered`."""
        return [_words(event) for event in self.recorder.of("intervention", "outcome")]


def _words(event: Event) -> str:
    fields = event.fields
    what = fields["result"] if event.event == "intervention" else fields["outcome"]
    return f"{fields['action']} {what}" + (" undone" if fields.get("undone") else "")


def plain(
    K: int = 16, decay: float = 0.9, kind: type[quantizers.Plain] = quantizers.Plain, commitment: float = 0.25
) -> quantizers.Plain:
    """Return a home-made quantizer that starts on its inputs."""
    torch.manual_seed(0)
    module = kind(K, D)
    start = modes(999, K)
    module.omega.copy_(start)
    module.alpha.copy_(start)
    module.decay, module.commitment_cost = decay, commitment
    return module

"""A small autoencoder with a real quantizer under DDP, told to collapse, on ranks that see different data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import Event, Guard
from collapse_guard.adapters import discover
from collapse_guard.ranks import fingerprint
from collapse_guard.testing import Recorder

DIM = 8

POLICY: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "mode": "act",
    "sample": {"every": "4 steps", "when_suspect": "2 steps", "min_tokens": 32},
    "rules": [
        {
            "name": "collapsed",
            "when": "perplexity < 3",
            "for": 2,
            "clear": {"when": "perplexity >= 4", "for": 1},
            "severity": "critical",
            "cooldown": "4 steps",
            "verify": {"within": "12 steps"},
            "ladder": [
                {"reset_codes": {"scope": "all", "source": "kmeans"}},
                {"fallback_tokenizer": {"backend": "sklearn", "refit_every": "6 steps"}},
            ],
        }
    ],
}


class Autoencoder(nn.Module):
    """Linear encoder, quantizer, linear decoder."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM)
        self.quantizer = quantizer
        self.decoder = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        options = {} if mask is None else {"mask": mask}
        quantized, _, commitment = self.quantizer(self.encoder(x), **options)
        loss = (self.decoder(quantized) - x).square().mean() + commitment.sum()
        assert isinstance(loss, Tensor)
        return loss


class MixedUp(nn.Module):
    """Reshapes (B, T, DIM) latents by way of (B, DIM, T) before a quantizer, and back after it; takes no mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, loss = self.inner(z.mT.reshape(z.shape))
        return quantized.reshape(z.mT.shape).mT, codes, loss


class Cut(nn.Module):
    """Detaches what a quantizer returns, so that the task's gradient ends there; takes no mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, loss = self.inner(z)
        return quantized.detach(), codes, loss


def quantizer(kind: str, **options: Any) -> nn.Module:
    """Return a quantizer of vector-quantize-pytorch that keeps its codebook the same on all ranks."""
    made: nn.Module
    if kind == "ema":
        made = VectorQuantize(DIM, 24, decay=0.9, threshold_ema_dead_code=0, **{"sync_codebook": True, **options})
    elif kind == "mixed":
        made = MixedUp(quantizer("ema", **options))
    elif kind == "cut":
        made = Cut(quantizer("ema", **options))
    elif kind == "learnable":
        made = VectorQuantize(DIM, 24, ema_update=False, learnable_codebook=True, sync_codebook=True, **options)
    else:
        made = ResidualVQ(
            dim=DIM,
            num_quantizers=3,
            codebook_size=16,
            decay=0.9,
            threshold_ema_dead_code=0,
            sync_codebook=True,
            **options,
        )
    return made


@torch.no_grad()
def spoil(model: nn.Module) -> None:
    """Blow all codes up but one, so that every token falls on that one; averages with them."""
    for view in discover(model).views:
        for _, tensor in view.tensors():
            if tensor.ndim == 2:
                tensor[1:] *= 1000.0
        view.written()


def batch(step: int, rank: int, n: int = 48) -> Tensor:
    """Return (1, n, DIM) latents of eight clouds, other ones on each rank and step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    centres = torch.randn(8, DIM, generator=torch.Generator().manual_seed(7)) * 3
    which = torch.randint(8, (n,), generator=generator)
    return (centres[which] + 0.3 * torch.randn(n, DIM, generator=generator)).unsqueeze(0)


class Marks(Recorder):
    """A recorder that takes, at each act of the guard, a fingerprint of every tensor of the model and the optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._model, self._optimizer = model, optimizer
        self.marks: list[tuple[str, int, dict[str, int]]] = []

    def write(self, event: Event) -> None:
        super().write(event)
        if event.event in ("intervention", "outcome", "tended"):
            self.marks.append((event.event, event.step, marks_of(self._model, self._optimizer)))


def marks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return a fingerprint of every tensor, by name; of what is sharded, of which each rank has its own part, none."""
    tensors = dict(model.state_dict())
    for index, state in enumerate(optimizer.state.values()):
        tensors |= {f"state{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return {name: int(fingerprint(tensor)) for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}


def told(recorder: Recorder) -> dict[str, Any]:
    """Return what a run's guard did and read, as plain data."""
    names = ("codebook", "codebooks", "action", "result", "outcome", "summary", "where", "reason", "rule", "request")
    kinds = ("alert", "intervention", "outcome", "tended", "cleared", "exhausted", "fault", "carried_out")
    return {
        "readings": [(event.step, {**event.fields}) for event in recorder.of("reading")],
        "story": [
            (event.step, event.event, {name: event.fields[name] for name in names if name in event.fields})
            for event in recorder.of(*kinds)
        ],
    }


def ddp_run(
    rank: int,
    size: int,
    *,
    kind: str = "ema",
    steps: int = 40,
    policy: Mapping[str, Any] = POLICY,
    spoil_at: tuple[int, ...] = (6,),
    masked: tuple[int, ...] = (),
    data: Callable[[int, int], Tensor] = batch,
    during: Callable[[int, int, Guard, nn.Module], None] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train under DDP with a guard and return what it told, with the fingerprints at each act.

    Args:
        masked: ranks of which no token is one.
        during: called before each step with step, rank, guard and model.
    """
    torch.manual_seed(seed)
    model = Autoencoder(quantizer(kind, **(options or {})))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    recorder = Marks(model, optimizer)
    mask = torch.zeros(1, 48, dtype=torch.bool) if rank in masked else torch.ones(1, 48, dtype=torch.bool)
    with Guard(dict(policy), console=False, sinks=[recorder]).attach(model, optimizer) as guard:
        for step in range(steps):
            if step in spoil_at:
                spoil(model)
            if during is not None:
                during(step, rank, guard, model)
            loss = ddp(data(step, rank), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step(loss=loss.detach())
    return told(recorder) | {"marks": recorder.marks, "end": marks_of(model, optimizer)}

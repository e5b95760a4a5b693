"""How codebooks of the zoo start: each start prepares a model before the first step; and how one gets at the codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .scenario import Run

__all__ = [
    "Start",
    "averages",
    "crowd",
    "deep_levels_too_large",
    "dummy_forward",
    "enlarge",
    "finished",
    "heat",
    "in_own_units",
    "learnable",
    "lift",
    "narrow_cone",
    "place_shifted",
    "scale_latents",
    "spread_of",
    "start_from_latents",
    "start_small",
    "swap_betas",
    "write_codes",
]

Start = Callable[[Run], None]
_SEEN = 8192  # items that a start from latents looks at
_LLOYD = 10  # rounds of k-means that make a learnable codebook a finished one


def learnable(run: Run) -> Tensor | None:
    """Return the codebook (K, D) of taming or diffusers; `None` where a quantizer that has none stands in its place."""
    embedding = getattr(run.model.bottleneck.quantizer, "embedding", None)
    return None if embedding is None else cast(nn.Embedding, embedding).weight


def averages(run: Run) -> Any:
    """Return the inner codebook of vector-quantize-pytorch or encodec; `None` where another quantizer stands."""
    return getattr(run.model.bottleneck.quantizer, "_codebook", None)


def spread_of(rows: Tensor) -> Tensor:
    """Return () how far latents (n, D) lie from their mean, the root mean square of a coordinate."""
    return (rows - rows.mean(dim=0)).square().mean().sqrt()


@torch.no_grad()
def write_codes(module: Any, rows: Tensor) -> None:
    """Write rows (K, D) into a quantizer's codebook, and into its moving averages where it has some."""
    codebook = getattr(module, "_codebook", None)
    if codebook is None:
        module.embedding.weight.copy_(rows)
        return
    codebook.embed.copy_(rows)
    codebook.embed_avg.copy_(rows)
    codebook.cluster_size.fill_(1.0)


@torch.no_grad()
def _first_latents(run: Run, most: int) -> Tensor:
    """Return (n, D) latents of training items under the untrained encoder."""
    model = run.model
    rows = torch.randint(len(run.data.train), (most,), generator=run.draws)
    return model.latents(run.data.train[rows]).flatten(0, 1)


def start_from_latents(run: Run) -> None:
    """Put every code on a latent of a training item, drawn at random, with little noise: a good start at any K."""
    rows = _first_latents(run, _SEEN)
    chosen = rows[torch.randperm(len(rows), generator=run.draws)[: run.model.bottleneck.K]]
    noise = torch.randn(chosen.shape, generator=run.draws)
    write_codes(run.model.bottleneck.quantizer, chosen + 1e-3 * rows.std() * noise)


@torch.no_grad()
def scale_latents(run: Run, factor: float) -> None:
    """Make the latents `factor` times as large, and let the decoder take them for it.

    Without a quantizer between them, encoder and decoder compute what they did before.
    """
    last, first = cast(nn.Linear, run.model.encoder[-1]), cast(nn.Linear, run.model.decoder[0])
    last.weight.mul_(factor)
    last.bias.mul_(factor)
    first.weight.div_(factor)


def start_small(factor: float) -> Start:
    """Return a start on latents that were made `factor` times as large, as a pretrained encoder may have them.

    The learning rate is for latents of the usual size: with each step encoder and codes move far for such small ones.
    """

    def start(run: Run) -> None:
        scale_latents(run, factor)
        start_from_latents(run)

    return start


def lift(spreads: float) -> Start:
    """Return a start that puts the latents so many spreads away from the origin, and lets the decoder take them for it.

    So are embeddings of a language model, of which most have a large part in common. The codes stay where they are: a
    cosine codebook has them all around the origin, and sees the latents all the same way.
    """

    @torch.no_grad()
    def start(run: Run) -> None:
        rows = _first_latents(run, 1024)
        last, first = cast(nn.Linear, run.model.encoder[-1]), cast(nn.Linear, run.model.decoder[0])
        offset = (spreads * spread_of(rows) - rows.mean(dim=0)).repeat(len(last.bias) // run.model.D)
        last.bias.add_(offset)
        first.bias.sub_(first.weight @ offset)

    return start


def in_own_units(factor: float) -> Start:
    """Return a start on latents that are `factor` times as large: for a codebook that scales its codes back to them.

    So does vector-quantize-pytorch with `affine_param` (Huh et al. 2023, section 4).
    """

    def start(run: Run) -> None:
        start_from_latents(run)
        codes = averages(run)
        if codes is not None:
            write_codes(run.model.bottleneck.quantizer, factor * codes.embed[0])

    return start


def place_shifted(*, scale: float = 1.0, shift: float = 0.0) -> Start:
    """Return a start with normal codes of `scale` times the latents' spread, `shift` spreads away from their mean."""

    def start(run: Run) -> None:
        rows = _first_latents(run, 1024)
        spread = spread_of(rows)
        codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
        write_codes(run.model.bottleneck.quantizer, rows.mean(dim=0) + spread * (scale * codes + shift))

    return start


def deep_levels_too_large(run: Run) -> None:
    """Start the first level of a residual on latents, and the others with codes at ten times the latents' spread."""
    rows = _first_latents(run, _SEEN)
    spread = spread_of(rows)
    for level, layer in enumerate(cast(nn.ModuleList, run.model.bottleneck.quantizer.layers)):
        codes = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
        chosen = rows[torch.randperm(len(rows), generator=run.draws)[: run.model.bottleneck.K]]
        write_codes(layer, 10.0 * spread * codes if level else chosen)


def narrow_cone(run: Run) -> None:
    """Let all codes of a cosine codebook point the same way, but for little noise, away from the latents' mean."""
    rows = _first_latents(run, 1024)
    away = -functional.normalize(rows.mean(dim=0), dim=0)
    noise = 0.05 * torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws) / math.sqrt(rows.shape[1])
    write_codes(run.model.bottleneck.quantizer, functional.normalize(away + noise, dim=-1))


def crowd(run: Run) -> None:
    """Start all codes around one latent, within a thousandth of the latents' spread."""
    rows = _first_latents(run, 1024)
    spread = spread_of(rows)
    noise = torch.randn(run.model.bottleneck.K, rows.shape[1], generator=run.draws)
    write_codes(run.model.bottleneck.quantizer, rows[0] + 1e-3 * spread * noise)


def enlarge(learned: int) -> Start:
    """Return a start of a learnable codebook: so many codes on latents, and copies of them for all others.

    Of equal codes the first one takes all tokens, so that the copies are not trained either.
    """

    def start(run: Run) -> None:
        start_from_latents(run)
        table = cast(Tensor, learnable(run)).data
        table.copy_(table[torch.arange(len(table)) % learned].clone())

    return start


@torch.no_grad()
def finished(run: Run) -> None:
    """Settle a learnable codebook by k-means, and freeze it and the encoder: only the decoder is trained on.

    So a tokenizer is whose codes others have been trained on: whatever moved a code would be wrong.
    """
    start_from_latents(run)
    rows, table = _first_latents(run, _SEEN), cast(Tensor, learnable(run))
    for _ in range(_LLOYD):
        nearest = torch.cdist(rows, table).argmin(dim=1)
        counts = torch.bincount(nearest, minlength=len(table)).unsqueeze(-1)
        sums = torch.zeros_like(table).index_add_(0, nearest, rows)
        table.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), table))
    for each in (*run.model.encoder.parameters(), table):
        each.requires_grad_(False)


def heat(factor: float) -> Start:
    """Return a start on latents, after which a learnable codebook has `factor` times the learning rate of the rest."""

    def start(run: Run) -> None:
        start_from_latents(run)
        table, (group,) = learnable(run), run.optimizer.param_groups
        group["params"] = [each for each in group["params"] if each is not table]
        run.optimizer.add_param_group({"params": [table], "lr": factor * run.lr})

    return start


def swap_betas(run: Run) -> None:
    """Start on latents, and let Adam have its two betas in the wrong order: 0.999, then 0.9.

    Where there is no gradient, a step is soon divided by next to nothing, and the momentum lasts. So it is for a code
    that no token meets.
    """
    start_from_latents(run)
    for group in run.optimizer.param_groups:
        group["betas"] = (0.999, 0.9)


@torch.no_grad()
def dummy_forward(run: Run) -> None:
    """Let the model see one item of zeros in evaluation mode, as what counts its parameters does.

    Where codes wait for k-means, vector-quantize-pytorch starts them on that, whatever the mode.
    """
    run.model.eval()
    run.model(torch.zeros_like(run.data.train[:1]))
    run.model.train()

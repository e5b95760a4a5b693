"""Where codes go: a whole codebook whose ids are matched to those before, or a few codes beside those that live."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from collapse_guard.adapters import CodebookView
from collapse_guard.kmeans import (
    CodebookFit,
    Matching,
    assign,
    draw_by_odds,
    match,
    mean_rows,
    spread_out,
    squared_errors,
    unit_rows,
    with_lengths,
)

__all__ = [
    "WholeCodebook",
    "are_distinct",
    "as_decoded",
    "beside_the_living",
    "in_place_of",
    "place_beside",
    "scale_counts",
    "why_nowhere",
]

_REFINEMENTS = 5
_DUST = 0.01  # of the length that a quarter of the latents exceeds


def are_distinct(latents: Tensor) -> bool:
    """Whether (n, D) latents hold at least two different ones. Waits for the device."""
    return len(latents) > 1 and bool((latents != latents[0]).any())


def why_nowhere(view: CodebookView, latents: Tensor) -> str | None:
    """Say why codes cannot be placed on (n, D) latents now; `None` where they can. Waits for the device."""
    if not view.is_initialised():
        return "the codebook is not initialised yet: its weights or its own start would overwrite what is written now"
    if len(latents) == 0:
        return "no finite latents were seen: there is nothing to place codes on"
    if not are_distinct(latents):
        return f"all {len(latents)} latents are the same: the encoder has collapsed, and no codebook can follow it"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class WholeCodebook:
    """What to write in place of a codebook.

    Attributes:
        vectors: (K, D) as the view's rows are decoded, in the order that keeps most ids.
        counts: (K,) moving-average counts, where the codebook keeps any.
        matching: the order, and how many latents change their id all the same.
    """

    vectors: Tensor
    counts: Tensor | None
    matching: Matching

    @property
    def facts(self) -> dict[str, int]:
        """How many of how many latents change their id, for the event log."""
        return {"ids_changed": self.matching.changed, "ids_compared": self.matching.tokens}


def in_place_of(view: CodebookView, fit: CodebookFit, latents: Tensor, refill: float) -> WholeCodebook:
    """Return what to write of a k-means codebook so that as few ids as possible change their meaning.

    Args:
        view: the codebook as it still is. Where the guard has switched its normalisation off, the ids are those from
            before: of normalised latents.
        fit: of the new one.
        latents: (n, D) finite, n >= 1, that it was fitted to.
        refill: least moving-average count of a code, as a fraction of the mean count.
    """
    matching = match(view.codebook().float(), fit.codebook, latents, view.metric, former=view.metric_by_design)
    order = matching.order.to(fit.codebook.device)
    counts = None
    if view.ema_count is not None:
        present = view.ema_count.get()
        counts = scale_counts(fit.counts[order].to(present.device), present, refill)
    return WholeCodebook(as_decoded(view, fit.codebook[order], latents), counts, matching)


def beside_the_living(
    view: CodebookView, rows: Tensor, latents: Tensor, *, source: str, refill: float, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Choose what to write for some codes of a codebook while the others stay.

    Args:
        view: the codebook.
        rows: (m,) code indices to place.
        latents: (n, D) finite, n >= 1.
        source: as for `place_beside`.
        refill: moving-average count of each placed code, as a fraction of the mean count.
        seed: of the draw.

    Returns:
        (m, D) vectors as the view's rows are decoded, and (m,) counts where the codebook keeps any.
    """
    living = torch.ones(view.K, dtype=torch.bool)
    living[rows] = False
    table = view.codebook().float()
    table, found = table[living.to(table.device)], latents
    if view.metric == "cosine":
        table, found = unit_rows(table), unit_rows(latents)
    places = place_beside(table, found, len(rows), source=source, seed=seed)
    counts = None
    if view.ema_count is not None:
        mean = float(view.ema_count.get().float().mean())
        if not (math.isfinite(mean) and mean > 0):  # broken, or of a quantizer that updates nothing
            mean = len(latents) / view.K
        counts = torch.full((len(rows),), refill * mean)
    return as_decoded(view, places, latents, living=table), counts


def place_beside(living: Tensor, latents: Tensor, m: int, *, source: str, seed: int) -> Tensor:
    """Choose places for `m` codes given those that live.

    `reservoir` draws different latents at random: codes as dense as latents, of about equal use. `distortion` draws
    them in proportion to their squared distance from the codes that live. `kmeans` draws them in proportion to their
    squared distance from what is already placed (the D^2 sampling of k-means++, Arthur & Vassilvitskii 2007) and then
    refines the new places, and only those, by Lloyd iterations among all codes.

    Args:
        living: (k, D) codes that stay, k may be 0.
        latents: (n, D) finite, n >= 1.
        m: places wanted.
        source: "kmeans", "reservoir" or "distortion".
        seed: of the draw.

    Returns:
        (m, D), distinct from each other: where latents repeat, copies are jittered by a thousandth of their spread.
    """
    generator = torch.Generator(device=latents.device).manual_seed(seed)
    if source == "reservoir":
        chosen = _draw(latents, m, generator)
    elif source == "distortion":
        chosen = _draw_by_distortion(living, latents, m, generator)
    else:
        chosen = _refine(living, latents, spread_out(latents, m, seed=seed, living=living))
    return _separate(chosen, living, latents, generator)


def _draw(latents: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Draw different latents, so that padding gets one code; of too few all, and some twice."""
    latents = _without_dust(latents)
    order = torch.randperm(len(latents), generator=generator, device=latents.device)
    distinct = _different(latents[order[: 2 * m]])  # as a rule, without looking at all of them
    if len(distinct) < m and len(latents) > 2 * m:
        distinct = _different(latents[order])
    more = torch.randint(len(distinct), (max(m - len(distinct), 0),), generator=generator, device=latents.device)
    return torch.cat([distinct[:m], distinct[more]])


def _without_dust(latents: Tensor) -> Tensor:
    """Return latents with those that are next to nothing beside the others at zero, where they are alike.

    Such are residuals of tokens on which a code was just placed: what its rounding left is no place for another one.
    """
    lengths = torch.linalg.vector_norm(latents, dim=-1, keepdim=True)
    return latents.masked_fill(lengths < _DUST * lengths.quantile(0.75), 0.0)


def _different(rows: Tensor) -> Tensor:
    """Return (n, D) rows without those that are there already further up."""
    found, inverse = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    first = places.new_full((len(found),), len(rows)).scatter_reduce_(0, inverse, places, "amin")
    return rows[first.sort().values]


def _draw_by_distortion(living: Tensor, latents: Tensor, m: int, generator: torch.Generator) -> Tensor:
    if not len(living):
        return _draw(latents, m, generator)
    errors = squared_errors(latents, living, assign(latents, living))
    chosen = latents[draw_by_odds(errors, min(m, len(latents)), generator)]
    return chosen if len(chosen) == m else torch.cat([chosen, _draw(latents, m - len(chosen), generator)])


def _refine(living: Tensor, latents: Tensor, chosen: Tensor) -> Tensor:
    k = len(living)
    for _ in range(_REFINEMENTS):
        codes = assign(latents, torch.cat([living, chosen]))
        mine = codes >= k
        chosen = mean_rows(latents[mine], codes[mine] - k, chosen)
    return chosen


def _separate(chosen: Tensor, living: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Jitter rows until all are distinct; float32 keeps a thousandth of the spread apart from zero."""
    spread = latents.std(dim=0, correction=0).mean().clamp(min=latents.abs().mean() * 1e-2).clamp(min=1e-6)
    for _ in range(8):
        together = torch.cat([living, chosen])
        _, inverse, counts = torch.unique(together, dim=0, return_inverse=True, return_counts=True)
        repeated = (counts[inverse] > 1)[len(living) :]
        if not bool(repeated.any()):
            break
        noise = torch.randn(chosen.shape, generator=generator, device=chosen.device) * spread * 1e-3
        chosen = torch.where(repeated.unsqueeze(-1), chosen + noise, chosen)
    return chosen


def as_decoded(view: CodebookView, vectors: Tensor, latents: Tensor, living: Tensor | None = None) -> Tensor:
    """Return (m, D) places as the view's rows are decoded: with a length where angles alone were placed.

    Args:
        view: the codebook.
        vectors: (m, D) places.
        latents: (n, D) finite, n >= 1, with the lengths that they have.
        living: (k, D) codes that stay, whose latents are not those of the new places.
    """
    return with_lengths(vectors, latents, living) if view.decodes_raw and view.metric == "cosine" else vectors


def scale_counts(counts: Tensor, present: Tensor, refill: float) -> Tensor:
    """Return EMA counts for a codebook that was placed anew: shares as found, total as it was, none near death.

    Args:
        counts: (K,) latents per code.
        present: (K,) EMA counts as they are.
        refill: floor, as a fraction of the mean.
    """
    total = present.float().sum()
    total = torch.where(total.isfinite() & (total > 0), total, counts.sum().float())
    shares = counts.float() / counts.sum().clamp(min=1)
    return torch.maximum(shares * total, refill * total / len(counts))

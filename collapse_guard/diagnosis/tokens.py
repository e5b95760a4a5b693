"""Causes that lie in what is coded: padding, few distinct inputs, pieces of wider vectors, an empty residual."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collapse_guard.kmeans import totals
from collapse_guard.policies import Cause, Diagnosis

from .facts import Facts, ramp, within_codes

__all__ = ["few_modes", "padded", "reshaped", "starved_level"]

_ALIKE = 0.02  # of the spread: latents nearer than that are the same vector


def padded(facts: Facts) -> Diagnosis | None:
    """Within one forward most latents are one and the same vector, and the others are diverse."""
    share, others = _same_vector(facts)
    confidence = 0.9 * ramp(share, 0.25, 0.5) * ramp(others, 0.3, 0.6)
    if confidence <= 0:
        return None
    return Diagnosis(
        cause=Cause.PADDED_TOKENS,
        confidence=confidence,
        says=(
            f"{share:.0%} of the latents of a forward are one and the same vector, and {others:.0%} of the others "
            "differ from each other: padding or masked positions are being coded"
        ),
        evidence={"same_vector": share, "others_distinct": others},
        advice="keep padded and masked positions away from the quantizer, or give it their mask",
        line=(
            "quantized, codes, loss = quantizer(latents, mask=mask)"
            if facts.view.adapter == "vector-quantize-pytorch"
            else "quantized[mask], codes, loss = quantizer(latents[mask])"
        ),
        remedy="alert",
    )


def few_modes(facts: Facts) -> Diagnosis | None:
    """The codes in use part the latents as well as any would: k-means finds no more, or there are no more to find.

    Codes that merely trail latents on the move leave an error too, but none that more codes would take away.
    """
    reading, latents = facts.reading, facts.latents
    error = reading.relative_error
    if error is None or error >= 0.5 or len(latents) < 16 or reading.usage >= 0.5 or reading.K <= 8:
        return None
    parted = min(error, within_codes(facts.latents, facts.codes))
    if parted >= 0.1:
        return None
    in_use = max(round(reading.perplexity), 1)
    k = min(4 * in_use + 4, reading.K, 64)
    same, found = _kmeans_error(latents, in_use), _kmeans_error(latents, k)
    gained = max(same - found, 0.0)
    seen = [mark.perplexity for mark in facts.read if mark.perplexity is not None]
    lost = max(seen, default=reading.perplexity) / reading.perplexity
    # A small error is no proof: of latents along a line few codes leave little, and more would leave next to nothing.
    modes = _modes(facts, 4 * in_use) / in_use
    missed = ramp(parted / found if found > 0 else math.inf, 2, 4) * ramp(modes, 2, 4)
    # With that many in use k-means was hardly asked for more codes: then only as few distinct latents are a proof.
    missed = max(missed, ramp(k / in_use, 2, 1) * ramp(modes, 1.1, 1.5))
    confidence = 0.95 * ramp(parted, 0.1, 0.04) * ramp(gained, 0.08, 0.03) * ramp(lost, 6, 3) * (1 - missed)
    confidence *= ramp(reading.usage, 0.5, 0.3) * ramp(error, 0.5, 0.25)  # to lie half a spread off is still to trail
    if confidence <= 0:
        return None
    trail = f", once they trail them no more (now {error:.1%})" if error > 2 * parted and error > 0.04 else ""
    return Diagnosis(
        cause=Cause.FEW_MODES,
        confidence=confidence,
        says=(
            f"{in_use} codes in use leave {parted:.1%} of the latents' variance{trail}, and k-means with {k} codes "
            f"would leave {found:.1%}: the data has no more modes"
        ),
        evidence={
            "relative_error": error,
            "within_codes": parted,
            "kmeans_error": found,
            "kmeans_codes": float(k),
            "perplexity_lost": lost,
        },
        advice="nothing is wrong; a smaller codebook would do",
        remedy="",
    )


def reshaped(facts: Facts) -> Diagnosis | None:
    """Latents are runs of positions, or pieces cut out of wider vectors."""
    return _mixed(facts) if facts.reading.reshaped == 1 else _cut(facts)


def _mixed(facts: Facts) -> Diagnosis:
    """The graph shows that positions were taken for features."""
    D = facts.reading.D
    return Diagnosis(
        cause=Cause.ARTIFICIAL_RESHAPE,
        confidence=0.95,
        says=(
            f"the {D} features of a latent are a run of positions, not the {D} channels of one position: a reshape "
            "has mixed them up where a permutation was due"
        ),
        evidence={"reshaped": 1.0},
        advice=(
            "permute channels and positions before the quantizer, and back after it; until then `restore_layout` "
            "rearranges what the quantizer is given"
        ),
        line="quantizer(x.movedim(1, -1)), and quantized.movedim(-1, 1) after it  # both, in place of both reshapes",
        remedy="restore_layout",
    )


def _cut(facts: Facts) -> Diagnosis | None:
    """Latents are pieces cut out of wider vectors, so that one codebook has to serve unlike kinds of them."""
    beat, D = facts.beat, facts.reading.D
    widths = [each for each in facts.beats if each.width > D]
    knob = facts.view.commitment
    heads = getattr(getattr(knob, "owner", None), "heads", 1)
    if not widths or (isinstance(heads, int) and heads > 1):
        return None
    beat = widths[-1]
    width, pieces = int(beat.width), int(beat.width) // D
    confidence = (0.3 + 0.4 * ramp(beat.between, 0.05, 0.35)) * max(facts.trouble, 0.6)
    if confidence <= 0:
        return None
    return Diagnosis(
        cause=Cause.ARTIFICIAL_RESHAPE,
        confidence=confidence,
        says=(
            f"latents of {D} features are pieces of vectors of {width}, cut into {pieces}; {beat.between:.0%} of their "
            "variance lies between the pieces"
        ),
        evidence={"width": beat.width, "pieces": float(pieces), "between": beat.between},
        advice=f"project the {width} features to {D}, or give the codes {width} dimensions; do not cut",
        line=f"self.project = nn.Linear({width}, {D})  # and quantizer(self.project(features)), without .view(-1, {D})",
        remedy="alert",
    )


def starved_level(facts: Facts) -> Diagnosis | None:
    """A finer level of a residual has next to nothing left to code, or is hardly ever asked."""
    level, reading = facts.reading.level, facts.reading
    first = facts.levels.get(0)
    if not level or first is None:
        return None
    variance = reading.latent_variance if reading.latent_variance is not None else math.nan
    left = variance / first.latent_variance if first.latent_variance else math.nan
    if facts.left_over < left:  # the coarser codes have yet to follow their latents, and will then leave still less
        left = facts.left_over
    asked = reading.tokens / max(first.tokens, 1)
    ratio = reading.norm_ratio if reading.norm_ratio is not None else math.nan
    nothing = ramp(-math.log10(max(left, 1e-12)), 1.5, 2.3)
    rarely = ramp(asked, 0.3, 0.1)
    confidence = 0.95 * max(nothing * max(ramp(ratio, 1.5, 4), 0.9), rarely) * facts.trouble
    if confidence <= 0:
        return None
    says = f"level {level} has {left:.2g} of the variance of level 0 to code, with codes {ratio:.2g} times as long"
    if rarely > nothing:
        says = f"level {level} is given {asked:.0%} of the tokens of level 0"
    return Diagnosis(
        cause=Cause.STARVED_LEVEL,
        confidence=confidence,
        says=says,
        evidence={"variance_left": left, "tokens_share": asked, "norm_ratio": ratio},
        advice="take fewer levels, or start this one from k-means of its own residuals",
        remedy="reset_codes",
    )


def _same_vector(facts: Facts) -> tuple[float, float]:
    """Return the share of a forward's latents that are its commonest vector, and how many of the others are distinct.

    The mean over the latest forwards that have enough latents.
    """
    shares, others = [], []
    for forward in facts.forwards.unique()[-3:]:
        rows = facts.latents[facts.forwards == forward][:128]
        if len(rows) < 8:
            continue
        size = _alike(rows)
        near = _distances(rows, rows) <= size
        common = near[near.sum(dim=1).argmax()]
        shares.append(float(common.float().mean()))
        rest = near[~common][:, ~common]
        others.append(float(rest.sum(dim=1).le(1).float().mean()) if len(rest) > 1 else 0.0)
    if not shares:
        return math.nan, math.nan
    return sum(shares) / len(shares), sum(others) / len(others)


def _modes(facts: Facts, most: int) -> int:
    """Return how many balls it takes to cover the latents of the latest forward, counted up to `most`.

    Each has a radius of a twentieth of their spread; the next one is put on the latent farthest from those before it.
    Where that takes one for every other latent, more latents would take more: then it is `most`.
    """
    rows = facts.latents[facts.forwards == facts.forwards.max()][:256]
    size = 2.5 * _alike(rows)
    nearest = _distances(rows, rows[:1]).squeeze(1)
    count = 1
    while count < most and float(nearest.max()) > size:
        nearest = torch.minimum(nearest, _distances(rows, rows[nearest.argmax()].unsqueeze(0)).squeeze(1))
        count += 1
    return most if count > len(rows) / 2 else count


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Return (n, m) distances, difference by difference: products would drown small ones far from the origin."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _alike(rows: Tensor) -> float:
    """Return within which distance rows are taken for the same vector."""
    spread = float((rows - rows.mean(dim=0)).square().sum(dim=-1).mean().sqrt())
    return _ALIKE * spread + 1e-12


@torch.no_grad()
def _kmeans_error(latents: Tensor, k: int) -> float:
    """Return what part of the latents' variance k-means with k codes leaves; farthest points first, 6 rounds."""
    points = latents[-256:].float()
    points = points - points.mean(dim=0)
    total = float(points.square().sum(dim=-1).mean())
    if not total > 0:
        return 0.0
    nearest = torch.cdist(points, points[:1]).squeeze(1)
    chosen = [0]
    for _ in range(k - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(points, points[chosen[-1:]]).squeeze(1))
    table = points[chosen].clone()
    for _ in range(6):
        codes = torch.cdist(points, table).argmin(dim=1)
        counts = torch.bincount(codes, minlength=k).clamp(min=1)
        table = totals(points, codes, k) / counts.unsqueeze(-1)
    return float(torch.cdist(points, table).min(dim=1).values.square().mean()) / total

"""Causes that lie in the codebook: how it is moved, where it began, and what becomes of codes that nobody uses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collapse_guard.adapters import TensorRef
from collapse_guard.policies import Cause, Diagnosis

from .facts import Facts, ramp
from .memory import Mark

__all__ = ["forgetful", "left_behind", "misplaced", "replacement", "runaway", "shrinking", "starvation"]

_REMEMBERED = 4  # tokens of each code that averages should remember
_QUOTIENTS = 256  # rows of which EMA sum / EMA count is compared with the table


def runaway(facts: Facts) -> Diagnosis | None:
    """Code norms grow by themselves; where the table is an EMA quotient, by a factor that can be named."""
    factor, total = _quotient_factor(facts)
    is_unscaled = _is_unscaled(facts)
    own = _own_growth(facts)
    ratio = facts.ratio
    confidence = 0.95 * ramp(math.log10(own), 0.5, 1.0) * ramp(facts.reach, 2, 5)
    if is_unscaled:
        confidence = max(confidence, 0.98 * ramp(ratio, 1.5, 3))
    if confidence <= 0:
        return None
    evidence = {"norm_ratio": ratio, "grown_by": own, "per_reading": _per_mark(facts)}
    says = f"code norms are {ratio:.3g} times the latents' norm and have grown {own:.3g} times as fast as the latents"
    advice = "repair what updates the codebook; no reset can hold before"
    line = ""
    if is_unscaled:
        evidence |= {"table_over_quotient": factor, "ema_total": total}
        says = (
            f"code norms are {ratio:.0f} times the latents' norm: each code is {factor:.3g} times its EMA sum / EMA "
            f"count, and the counts add up to n = {total:.3g}: the smoothed cluster size is not multiplied back by n"
        )
        advice = "multiply the smoothed cluster size back by n where the codebook is computed; no reset can hold before"
        line = _unscaled_line(facts)
    elif facts.view.kind == "learnable":
        advice = "give the codebook a smaller learning rate of its own, or let moving averages move it"
    return Diagnosis(
        cause=Cause.RUNAWAY_CODEBOOK,
        confidence=confidence,
        says=says,
        evidence=evidence,
        advice=advice,
        line=line,
        remedy="fallback_tokenizer",
    )


def shrinking(facts: Facts) -> Diagnosis | None:
    """Codes that are in use have become far shorter than they were and than the latents are.

    Codes out of use say nothing: under smoothed counts they fade by themselves.
    """
    before = facts.start_norm
    if not facts.read or not bool(facts.used.any()) or not before > 0:
        return None
    mean = float(facts.code_norms[facts.used].median())
    latents = facts.latent_norm / facts.read[0].latent_norm if facts.read[0].latent_norm > 0 else math.nan
    own, used, ratio = mean / before / min(latents, 1.0), mean / facts.latent_norm, facts.ratio
    began = before / facts.read[0].latent_norm if facts.read[0].latent_norm > 0 else math.nan
    confidence = 0.95 * ramp(-math.log10(max(own, 1e-12)), 0.3, 0.6) * ramp(used, 0.8, 0.5)
    confidence *= ramp(began, 4, 2)  # codes that began far too long only settle
    if confidence <= 0:
        return None
    of_ema = facts.view.ema_sum is not None
    return Diagnosis(
        cause=Cause.SHRINKING_CODEBOOK,
        confidence=confidence,
        says=f"codes in use have fallen to {own:.2g} of their length, and are {used:.2g} times as long as the latents",
        evidence={"norm_ratio": ratio, "grown_by": own, "used_norm_ratio": used},
        advice=(
            "where the codebook is started from k-means, multiply each EMA sum by its count"
            if of_ema
            else "keep weight decay and penalties away from the codebook"
        ),
        line=_started_line(facts) if of_ema else "",
        remedy="fallback_tokenizer" if of_ema else "reset_codes",
    )


def misplaced(facts: Facts) -> Diagnosis | None:
    """The codebook began elsewhere, or at another scale, and most of it still is as it was."""
    if not facts.read:
        return None
    first, start = facts.read[0], facts.start
    scale = start.code_norm / first.latent_norm if first.latent_norm > 0 else math.nan
    offset = _offset(start.codes, first)
    misfit = max(ramp(abs(math.log10(scale)) if scale > 0 else math.nan, 0.3, 0.6), ramp(offset, 1.2, 2.5))
    still = 1 - ramp(abs(math.log10(max(facts.grown(start), 1e-9))), 0.3, 0.6)
    settled = 1 - _moved(facts, first)
    seen = 0.9 if start.step == 0 else 0.55  # a mark of later may show what training has made of the start
    confidence = seen * misfit * still * settled * facts.trouble * (0.3 if _is_unscaled(facts) else 1.0)
    if confidence <= 0:
        return None
    norms = start.codes.norm(dim=-1)
    are_unit = bool((norms - 1).abs().max() < 1e-3) and not 0.8 < first.latent_norm < 1.25
    says = f"the codebook began at {scale:.2g} times the latents' norm"
    if offset > 1.2:
        says = f"the codebook began {offset:.2g} spreads away from the latents"
    if are_unit:
        says = f"the codes began as unit vectors, and the latents have norm {first.latent_norm:.3g}"
    return Diagnosis(
        cause=Cause.MISPLACED_CODEBOOK,
        confidence=confidence,
        says=f"{says}; it has not come nearer since",
        evidence={"start_scale": scale, "start_offset": offset, "grown_by": facts.grown(start)},
        advice="start the codebook from k-means of the first latents"
        + (", or normalise the latents as well" if are_unit else ""),
        line=_kmeans_start_line(facts),
        remedy="reset_codes",
    )


def left_behind(facts: Facts) -> Diagnosis | None:
    """The codes served the latents once; since then the latents have moved, and the codes did not follow."""
    best = facts.best()
    error = facts.reading.relative_error
    if best is None or best is facts.now or error is None or best.relative_error is None:
        return None
    moved = _moved(facts, best)
    worse = error / max(best.relative_error, 0.02)
    calm = 1 - ramp(math.log10(max(_own_growth(facts), 1e-9)), 0.5, 1.0)
    confidence = 0.9 * moved * ramp(worse, 1.3, 2.5) * ramp(error, 0.3, 0.6) * calm
    if confidence <= 0:
        return None
    distance = _distance(facts.now, best)
    growth = facts.latent_norm / best.latent_norm if best.latent_norm > 0 else math.nan
    codes = float((facts.now.codes.mean(dim=0) - best.codes.mean(dim=0)).norm()) / max(facts.spread, 1e-12)
    return Diagnosis(
        cause=Cause.CODEBOOK_LEFT_BEHIND,
        confidence=confidence,
        says=(
            f"since step {best.step} the latents have moved by {distance:.2g} of their spread and their norm by a "
            f"factor of {growth:.2g}, the codes by {codes:.2g}; their error is {worse:.2g} times what it was"
        ),
        evidence={"latents_moved": distance, "latents_grown": growth, "codes_moved": codes, "error_grown": worse},
        advice="let the codebook follow faster, or the encoder move slower: a smaller decay or encoder learning rate",
        line=_decay_line(facts),
        remedy="reset_codes",
    )


def starvation(facts: Facts) -> Diagnosis | None:
    """Most codes are unused although they lie well: there are too few tokens for so many, and nothing revives them."""
    reading = facts.reading
    error = reading.relative_error if reading.relative_error is not None else math.nan
    used = float(facts.code_norms[facts.used].median()) / facts.latent_norm if bool(facts.used.any()) else math.nan
    well = ramp(error, 1.0, 0.6) * (1 - ramp(abs(math.log10(used)) if used > 0 else math.nan, 0.2, 0.5))
    confidence = 0.8 * ramp(reading.dead_fraction, 0.4, 0.75) * well * facts.trouble
    if confidence <= 0:
        return None
    per_code = reading.tokens / reading.K
    wanted = 1 << max(math.ceil(math.log2(max(2 * reading.perplexity, 2))), 1)
    return Diagnosis(
        cause=Cause.STARVATION,
        confidence=confidence,
        says=(
            f"{reading.dead_fraction:.0%} of {reading.K} codes are dead at {per_code:.2g} tokens a code, and the codes "
            f"in use serve the latents well (relative error {error:.2g})"
        ),
        evidence={"dead_fraction": reading.dead_fraction, "tokens_per_code": per_code, "relative_error": error},
        advice=f"bring dead codes back steadily, or take about {wanted} codes",
        line=_revival_line(facts),
        remedy="upkeep",
    )


def forgetful(facts: Facts) -> Diagnosis | None:
    """Most codes are unused, and moving averages remember less than half a token of a code in even use.

    Of t tokens a step an average of decay d remembers t / (1 - d), the sum of its weights; of each of K codes a share.
    What is forgotten between two of its tokens lies wherever the second one was, and serves nothing for long.
    """
    reading, decay, supply = facts.reading, facts.reading.decay, _tokens_a_step(facts)
    if facts.view.ema_count is None or decay is None or not 0 <= decay < 1 or not supply > 0:
        return None
    remembered = supply / ((1 - decay) * reading.K)
    confidence = 0.9 * ramp(remembered, 0.6, 0.4) * ramp(reading.dead_fraction, 0.4, 0.75) * facts.trouble
    if confidence <= 0:
        return None
    wanted = max(1 - supply / (_REMEMBERED * reading.K), decay)
    return Diagnosis(
        cause=Cause.FORGETFUL_AVERAGES,
        confidence=confidence,
        says=(
            f"at {supply:.4g} tokens a step averages of decay {decay:.3g} remember {remembered:.2g} tokens of each of "
            f"{reading.K} codes, of which {reading.dead_fraction:.0%} are dead"
        ),
        evidence={"remembered_per_code": remembered, "tokens_a_step": supply, "dead_fraction": reading.dead_fraction},
        advice=f"take a decay of {wanted:.3g} or more, larger batches, or fewer codes",
        line=f"decay={wanted:.3g}",
        remedy="take_over_updates",
    )


def replacement(facts: Facts) -> Diagnosis | None:
    """Dead codes are being rewritten by the quantizer itself, and are dead again."""
    pairs = [
        (old, new)
        for old, new in zip(facts.marks, facts.marks[1:], strict=False)
        if old.dead is not None and new.dead is not None and old.version == new.version
    ]
    rewritten, again = 0, 0
    for old, new in pairs:
        assert old.dead is not None
        assert new.dead is not None
        moved = _is_another(old.codes, new.codes)
        rewritten += int((old.dead & moved).sum())
        again += int((old.dead & moved & new.dead).sum())
    dead = sum(int(old.dead.sum()) for old, _ in pairs if old.dead is not None)
    share, futile = rewritten / max(dead, 1), again / max(rewritten, 1)
    confidence = 0.9 * ramp(share, 0.15, 0.5) * ramp(futile, 0.4, 0.8) * ramp(facts.reading.dead_fraction, 0.3, 0.6)
    threshold, supply = _threshold(facts), _tokens_a_step(facts)
    demand = threshold * facts.reading.K
    if threshold > 0 and supply > 0:
        confidence = max(confidence, 0.9 * ramp(demand / supply, 1.5, 4))
    if confidence <= 0:
        return None
    says = f"{share:.0%} of the dead codes are rewritten between readings, and {futile:.0%} of those are dead again"
    line = ""
    if threshold > 0:
        says += f"; codes expire below a count of {threshold:g}: {demand:.0f} tokens, and a step has {supply:.0f}"
        line = f"{facts.path_of(facts.view.module, 'threshold_ema_dead_code')} = 0  # now {threshold:g}; use upkeep"
    return Diagnosis(
        cause=Cause.REPLACEMENT_FAILS,
        confidence=confidence,
        says=says,
        evidence={"rewritten": share, "dead_again": futile, "threshold": threshold},
        advice="place revived codes at latents; write table, EMA sum and EMA count together, with a count to live on",
        line=line,
        remedy="upkeep",
    )


def _quotient_factor(facts: Facts) -> tuple[float, float]:
    """Return by what factor used codes exceed EMA sum / EMA count, and the sum of the counts; NaN where not known."""
    view = facts.view
    if view.ema_sum is None or view.ema_count is None or not isinstance(view.table, TensorRef):
        return math.nan, math.nan
    sums, counts = view.ema_sum.get(), view.ema_count.get().float().cpu()
    alive = (counts > 1e-2).nonzero().squeeze(1)[:_QUOTIENTS]
    if not len(alive):
        return math.nan, math.nan
    quotient = sums[alive.to(sums.device)].float().norm(dim=-1).cpu() / counts[alive]
    return float((facts.code_norms[alive] / quotient.clamp(min=1e-30)).median()), float(counts.sum())


def _is_unscaled(facts: Facts) -> bool:
    """Whether the codes are as many times too long as the moving counts add up to."""
    factor, total = _quotient_factor(facts)
    return factor > 3 and total > 0 and abs(math.log(factor / total)) < 0.3


def _is_another(old: Tensor, new: Tensor) -> Tensor:
    """Return which rows are other vectors than they were; one that has only faded is not."""
    before: Tensor = old.norm(dim=-1)
    after: Tensor = new.norm(dim=-1)
    is_turned = (torch.cosine_similarity(old, new, dim=-1) < 0.8) & (after > 0.3 * before) & (before > 1e-6)
    return is_turned | (after > 1.5 * before.clamp(min=1e-6))


def _own_growth(facts: Facts) -> float:
    """Return by what factor the codes have outgrown the latents, since the guard last wrote them if it did."""
    own = [mark for mark in facts.marks if mark.version == facts.now.version]
    norms = [mark.latent_norm for mark in own if mark.latent_norm > 0]
    latents = facts.latent_norm / norms[0] if norms else 1.0
    growth = facts.code_norm / own[0].code_norm / max(latents, 1.0) if own[0].code_norm > 0 else math.inf
    return growth if math.isfinite(growth) and growth > 0 else 1.0


def _per_mark(facts: Facts) -> float:
    """Return the mean factor of the codes' growth from one mark to the next."""
    count = max(len(facts.marks) - 1, 1)
    return float(max(facts.grown(facts.start), 1e-30) ** (1 / count))


def _offset(codes: Tensor, mark: Mark) -> float:
    """Return the distance between the means of codes and latents, in spreads of both."""
    mean = mark.latent_mean
    if mean is None:
        return math.nan
    centre = codes.mean(dim=0)
    spread = math.sqrt(max(mark.latent_variance, 0)) + float((codes - centre).square().sum(dim=-1).mean().sqrt())
    return float((centre - mean).norm()) / max(spread, 1e-12)


def _distance(now: Mark, before: Mark) -> float:
    """Return how far the latents' mean has moved, in their present spread."""
    if now.latent_mean is None or before.latent_mean is None:
        return math.nan
    return float((now.latent_mean - before.latent_mean).norm()) / max(math.sqrt(max(now.latent_variance, 0)), 1e-12)


def _moved(facts: Facts, since: Mark) -> float:
    """Return how clearly the latents have moved or changed their scale since a mark, in [0, 1]."""
    growth = facts.latent_norm / since.latent_norm if since.latent_norm > 0 else math.nan
    scale = ramp(abs(math.log10(growth)) if growth > 0 else math.nan, 0.25, 0.6)
    return max(scale, ramp(_distance(facts.read[-1], since), 0.8, 2.0))


def _tokens_a_step(facts: Facts) -> float:
    """Return the tokens of one optimizer step; NaN where only one reading was taken."""
    steps = [mark.step for mark in facts.marks[-2:]]
    return facts.reading.tokens / (steps[1] - steps[0]) if len(steps) == 2 and steps[1] > steps[0] else math.nan


def _threshold(facts: Facts) -> float:
    value = getattr(facts.view.module, "threshold_ema_dead_code", 0)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _unscaled_line(facts: Facts) -> str:
    count, total = facts.view.ema_count, facts.view.ema_sum
    if count is None or total is None or not isinstance(facts.view.table, TensorRef):
        return ""
    return (
        f"in {type(count.owner).__name__}: n = self.{count.attribute}.sum(); "
        f"size = (self.{count.attribute} + eps) / (n + K * eps) * n; "
        f"self.{facts.view.table.attribute} = self.{total.attribute} / size"
    )


def _started_line(facts: Facts) -> str:
    total, count = facts.view.ema_sum, facts.view.ema_count
    if total is None or count is None:
        return ""
    where = facts.path_of(total.owner, total.attribute)
    return f"{where}.copy_(centroids * counts.unsqueeze(-1))  # not centroids alone"


def _kmeans_start_line(facts: Facts) -> str:
    if facts.view.adapter == "vector-quantize-pytorch":
        return f"VectorQuantize(dim={facts.reading.D}, codebook_size={facts.reading.K}, kmeans_init=True)"
    return ""


def _revival_line(facts: Facts) -> str:
    if facts.view.replacement is not None and not facts.view.replacement.is_on:
        name = next(iter(facts.view.replacement.off))
        return f"{facts.path_of(facts.view.replacement.owner, name)} = 2"
    return ""


def _decay_line(facts: Facts) -> str:
    decay = facts.view.decay
    if decay is None:
        return ""
    value = decay.get()
    return f"{facts.path_of(decay.owner, decay.attribute)} = {max(1 - 5 * (1 - value), 0.8):.3g}  # now {value:g}"

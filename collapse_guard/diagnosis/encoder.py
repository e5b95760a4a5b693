"""Causes that lie in the encoder and in what reaches it: latents without spread, gradients missing or too large."""

from __future__ import annotations

import math
import statistics

from collapse_guard.adapters import Knob
from collapse_guard.policies import Cause, Diagnosis

from .facts import Facts, ramp
from .pulse import ONLY_PULL

__all__ = ["collapsed_encoder", "exploding", "no_gradient", "non_finite"]


def non_finite(facts: Facts) -> Diagnosis | None:
    """Latents or the loss are NaN or infinite."""
    reading = facts.reading
    share = 1 - reading.finite_fraction if reading.finite_fraction is not None else 0.0
    is_lost = reading.loss is not None and not math.isfinite(reading.loss)
    if share <= 0 and not is_lost:
        return None
    what = f"{share:.1%} of the latents are NaN or Inf" if share > 0 else "the loss is NaN or Inf"
    return Diagnosis(
        cause=Cause.NON_FINITE,
        confidence=1.0,
        says=what + ("" if not (share > 0 and is_lost) else ", and so is the loss"),
        evidence={"not_finite": share},
        advice="look at the loss scale, the learning rate and the input; go back to a checkpoint from before",
        remedy="rollback",
    )


def collapsed_encoder(facts: Facts) -> Diagnosis | None:
    """The latents' variance, or the number of directions that they spread over, is gone."""
    marks = facts.encoded
    if not marks:
        return None
    now = marks[-1]
    earlier = [mark.latent_variance for mark in marks]
    widest = max(*earlier[:2], statistics.median(earlier), 0.0)
    left = now.latent_variance / widest if widest > 0 else 0.0
    ranks = [mark.latent_rank for mark in marks if mark.latent_rank is not None]
    rank, best = (ranks[-1], max(ranks)) if ranks else (math.nan, math.nan)
    flat = now.latent_variance / now.latent_power if now.latent_power > 0 else 0.0
    by_variance = ramp(-math.log10(max(left, 1e-12)), 0.9, 1.6)
    by_rank = ramp(best / rank if rank > 0 else math.nan, 2, 3.5) * ramp(rank, 3.5, 2.2)
    by_rank *= 1 - 0.5 * ramp(left, 1, 2)
    pulled = ramp(facts.beat.pull, 0.6, 0.85) * max(ramp(left, 0.7, 0.4), by_rank)
    from_start = ramp(-math.log10(max(flat, 1e-12)), 3, 5)
    wider = now.latent_norm / marks[0].latent_norm if marks[0].latent_norm > 0 else 1.0
    calm = 1 - 0.4 * ramp(wider, 2, 5)  # latents that have grown so much have not collapsed, they were thrown
    ill = facts.trouble  # lost directions are an illness whatever is made of those that are left
    confidence = 0.95 * max(max(by_variance, from_start) * ill, max(by_rank, pulled) * max(ill, 0.75)) * calm
    if confidence <= 0:
        return None
    beat, weight = facts.beat, facts.reading.commitment_weight
    evidence = {"variance_left": left, "latent_rank": rank, "rank_before": best, "flatness": flat}
    says = f"the latents have {left:.2g} of the variance that they had, over {rank:.2g} directions ({best:.2g} before)"
    driver, line = "", ""
    if beat.pull > 0.5:
        evidence |= {"commitment_share": beat.pull}
        driver = f"; {beat.pull:.0%} of the encoder's gradient is the pull of the commitment"
    if weight is not None:
        evidence |= {"commitment_weight": weight}
        driver += f" (weight {weight:g})" if driver else ""
    knob = facts.view.commitment
    is_driven = bool(driver) or (weight is not None and weight >= 1)
    if is_driven and isinstance(knob, Knob) and weight is not None:
        line = f"{facts.path_of(knob.owner, knob.attribute)} = {weight / 10:.2g}  # now {weight:g}"
    return Diagnosis(
        cause=Cause.ENCODER_COLLAPSE,
        confidence=confidence,
        says=says + driver,
        evidence=evidence,
        advice=(
            "lower the commitment weight; a codebook reset cannot give the latents their spread back"
            if is_driven
            else "look at the encoder: its learning rate, its last normalisation, what its loss rewards; no reset helps"
        ),
        line=line,
        remedy="decay_commitment" if knob is not None and knob.get() > 0 else "alert",
    )


def no_gradient(facts: Facts) -> Diagnosis | None:
    """Nothing of the task's gradient comes through the quantizer to the encoder."""
    # Where nothing arrives at the output either, no backward came that way: a discriminator's step looks like that.
    beats = [beat for beat in facts.beats if not math.isnan(beat.arrived) and (beat.arrived, beat.out) != (0, 0)]
    if not beats:
        return None
    nothing = [beat.arrived == 0 for beat in beats]
    only = [beat.apart < ONLY_PULL for beat in beats if not math.isnan(beat.apart)]
    blocked = [abs(beat.through) < 0.02 for beat in beats if not math.isnan(beat.through)]
    sure = 0.75 if len(beats) == 1 else 0.97
    if all(nothing):
        confidence, says = sure, "no gradient arrives at the quantizer's input"
    elif only and all(only):
        confidence, says = sure, "the only gradient at the quantizer's input is the pull of the commitment"
    elif blocked and all(blocked):
        confidence = 0.9 * sure
        says = "the gradient at the quantizer's output does not arrive at its input"
    else:
        return None
    beat = beats[-1]
    return Diagnosis(
        cause=Cause.NO_GRADIENT,
        confidence=confidence,
        says=f"{says}, at {len(beats)} of {len(beats)} steps looked at: the straight-through estimator is missing",
        evidence={"arrived": beat.arrived, "apart": beat.apart, "through": beat.through, "steps": float(len(beats))},
        advice="hand the decoder z + (q - z).detach() and not q",
        line="quantized = latents + (quantized - latents).detach()",
        remedy="bridge_gradient",
    )


def exploding(facts: Facts) -> Diagnosis | None:
    """The encoder's gradients have grown out of all proportion, and the latents or the loss with them."""
    norms = [beat.norm for beat in facts.beats if not math.isnan(beat.norm)]
    if len(norms) < 2:
        return None
    usual = max(statistics.median(norms[:-1]) if len(norms) > 2 else norms[0], 1e-30)
    usual = min(usual, max(norms[0], 1e-30))
    grown = max(norms[-1], norms[-2]) / usual if math.isfinite(norms[-1]) else math.inf
    losses = [mark.loss for mark in facts.marks if mark.loss is not None]
    risen = losses[-1] / max(losses[0], 1e-12) if losses and losses[0] > 0 and math.isfinite(losses[-1]) else math.nan
    first = facts.read[0] if facts.read else None
    wider = facts.latent_norm / first.latent_norm if first is not None and first.latent_norm > 0 else math.nan
    consequence = max(ramp(risen, 1.5, 4), ramp(wider, 2, 5))
    confidence = 0.95 * ramp(math.log10(min(max(grown, 1.0), 1e30)), 1.0, 1.7) * consequence
    if confidence <= 0:
        return None
    return Diagnosis(
        cause=Cause.EXPLODING_GRADIENTS,
        confidence=confidence,
        says=(f"the gradient at the quantizer's input is {grown:.3g} times what it was, the latents' norm {wider:.3g}"),
        evidence={"gradient_grown": grown, "loss_grown": risen, "latents_grown": wider},
        advice="clip gradients, or lower the encoder's learning rate",
        line="torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()",
        remedy="clip_gradients",
    )

"""Causes that lie in how codes and latents fit: compared otherwise than before, or where hardly any latent is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collapse_guard.kmeans import fit_codebook, nearest_errors
from collapse_guard.policies import Cause, Diagnosis

from .facts import Facts, ramp

__all__ = ["metric_changed", "unfitted"]

_LATENTS_A_CODE = 4  # to fit codes by
_IDLE_MARKS = 4  # the last ones, at which codes have to be idle
_NEVER = 0.1  # of its even share of all tokens so far: a code that has had no more was never in use


def metric_changed(facts: Facts) -> Diagnosis | None:
    """The quantizer normalises what it did not when the run began, or the other way round."""
    before = next((mark for mark in facts.marks if mark.metric), None)
    now = facts.view.metric_by_design
    if before is None or before.metric == now or facts.view.is_unnormalised:
        return None
    words = {"l2": "by distance", "cosine": "by angle, as unit vectors"}
    return Diagnosis(
        cause=Cause.METRIC_CHANGED,
        confidence=0.97,
        says=(
            f"latents and codes were compared {words[before.metric]} at step {before.step}, and are compared "
            f"{words[now]} now"
        ),
        evidence={"compared_otherwise_at": float(before.step)},
        advice="train on with the configuration that the run began with",
        line=f"use_cosine_sim={before.metric == 'cosine'}" if facts.view.adapter == "vector-quantize-pytorch" else "",
        remedy="disable_normalisation" if facts.view.normalisation is not None else "alert",
    )


def unfitted(facts: Facts) -> Diagnosis | None:
    """Codes lie idle at one reading after the other, and as many fitted to the latents would leave far less error.

    Fitted to the older half of what is remembered, and judged by the newer one: codes that some latents need that come
    in turns are not idle at each reading, and codes that trail latents on the move are not helped by older ones.
    """
    reading, view, latents = facts.reading, facts.view, facts.many
    older, newer = latents[: len(latents) // 2], latents[len(latents) // 2 :]
    k = min(reading.K, len(older) // _LATENTS_A_CODE)
    idle = _idle_throughout(facts)
    if idle is None or k < 2 or reading.dead_fraction < 0.25:
        return None
    share = float(idle.float().mean())
    middle = newer.mean(dim=0) if view.metric == "l2" else newer.new_zeros(())
    fitted = fit_codebook(older, k, backend="torch", metric=view.metric, budget=6).codebook
    left = [
        float(nearest_errors(newer - middle, codes - middle, view.metric).mean()) for codes in (facts.table, fitted)
    ]
    gain = left[1] / left[0] if left[0] > 0 else math.nan
    confidence = 0.9 * ramp(share, 0.05, 0.15) * ramp(gain, 0.65, 0.55)
    if confidence <= 0:
        return None
    return Diagnosis(
        cause=Cause.UNFITTED_CODEBOOK,
        confidence=confidence,
        says=(
            f"{share:.0%} of the codes were idle at each of {_IDLE_MARKS} readings, and {k} codes fitted to older "
            f"latents would leave {gain:.0%} of the error to newer ones: they lie where hardly any latent is"
        ),
        evidence={"idle_throughout": share, "error_if_fitted": gain, "fitted_codes": float(k)},
        advice="start the codebook from latents of all kinds of data, not of one batch alone",
        remedy="reset_codes",
    )


def _idle_throughout(facts: Facts) -> Tensor | None:
    """Return (s,) bool: which of some codes were idle at the last marks, and never in use before; `None` if unknown.

    Data in turns that a mark always meets at the same place would show the same codes idle at each.
    """
    dead = [mark.dead for mark in facts.marks if mark.dead is not None and mark.version == facts.now.version]
    if len(dead) < _IDLE_MARKS:
        return None
    idle = torch.stack(dead[-_IDLE_MARKS:]).all(dim=0)
    if facts.uses is not None:
        picked = torch.arange(len(idle)) * len(facts.uses) // len(idle)
        idle &= facts.uses[picked] < _NEVER * facts.uses.sum() / len(facts.uses)
    return idle

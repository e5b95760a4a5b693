"""Why, in one plain sentence, from the numbers of a reading alone."""

from __future__ import annotations

from collapse_guard.policies import Reading

__all__ = ["explain"]

_LONG_CODES = 10.0
_SHORT_CODES = 0.1
_FLAT_LATENTS = 1e-10
_LARGE_MOMENTS = 3.0


def explain(reading: Reading) -> str:
    """Name what the reading shows as the likely cause, with its numbers.

    Args:
        reading: the reading that made a rule fire.

    Returns:
        One sentence. It states what was measured; where nothing stands out, it says so.
    """
    for look in (_broken_latents, _flat_latents, _norms, _mixed, _concentration, _remembered):
        if (sentence := look(reading)) is not None:
            return sentence
    return "no single number of this reading stands out"


def _broken_latents(reading: Reading) -> str | None:
    if reading.finite_fraction is None or reading.finite_fraction >= 1:
        return None
    share = 1 - reading.finite_fraction
    return f"{share:.1%} of the latents are NaN or Inf: look at the loss scale, the learning rate and the input"


def _flat_latents(reading: Reading) -> str | None:
    if reading.latent_variance is None or reading.latent_variance > _FLAT_LATENTS:
        return None
    return (
        f"the latents themselves have collapsed (variance {reading.latent_variance:.2g}): the encoder, not the codebook"
    )


def _norms(reading: Reading) -> str | None:
    ratio = reading.norm_ratio
    if ratio is None:
        return None
    if ratio > _LONG_CODES:
        return (
            f"code norms are {ratio:.0f} times the latents' norm, so every input falls on the shortest code. What "
            "updates the codebook makes it grow, as an EMA count does that is normalised and never multiplied back by n"
        )
    if ratio < _SHORT_CODES:
        how = f"{1 / ratio:.0f} times shorter than the latents" if ratio > 0 else "zero"  # an average never fed
        return f"codes are {how}: all of them lie near the origin"
    return None


def _mixed(reading: Reading) -> str | None:
    if reading.reshaped != 1:
        return None
    return (
        "each latent is a run of positions, not the channels of one position: a reshape stands where a permutation was "
        "due"
    )


def _concentration(reading: Reading) -> str | None:
    if reading.top_share >= 0.5:
        norms = f"; code norms are {reading.norm_ratio:.2g} times the latents' norm" if reading.norm_ratio else ""
        return f"one code takes {reading.top_share:.0%} of {reading.tokens} tokens{norms}"
    if reading.dead_fraction >= 0.5:
        return f"{reading.dead_fraction:.0%} of the codes are dead in a window of {reading.tokens} tokens"
    return None


def _remembered(reading: Reading) -> str | None:
    if reading.moment_ratio is None or reading.moment_ratio <= _LARGE_MOMENTS:
        return None
    return (
        f"the encoder's Adam remembers gradients {reading.moment_ratio:.0f} times as large as those it is shown now, "
        "and divides its steps by them: a collapse leaves that behind"
    )

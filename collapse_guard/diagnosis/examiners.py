"""The examiners: who looks at the facts of a case for which causes, and at readings of which stage.

An examiner is a function of the facts and of nothing else. It returns one diagnosis, with a confidence in [0, 1] that
is low where little speaks for it, or `None`. To look for a further cause, name it in `policies.causes`, write a
function and add an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from collapse_guard.policies import Cause, Diagnosis

from .codebook import forgetful, left_behind, misplaced, replacement, runaway, shrinking, starvation
from .encoder import collapsed_encoder, exploding, no_gradient, non_finite
from .facts import Facts
from .fit import metric_changed, unfitted
from .tokens import few_modes, padded, reshaped, starved_level

__all__ = ["EXAMINERS", "Examiner", "diagnose"]

_MOST = 4
_LEAST = 0.1


@dataclass(frozen=True, slots=True)
class Examiner:
    """Who looks for what.

    Attributes:
        causes: what it may find.
        examine: facts -> a diagnosis, or `None`.
        stage: of the readings that it looks at, `train` or `eval`.
        explains: more general causes that this one explains away: as far as it is likely, they are not.
    """

    causes: tuple[Cause, ...]
    examine: Callable[[Facts], Diagnosis | None]
    stage: str = "train"
    explains: tuple[Cause, ...] = ()


_ILL_FITTED = (Cause.UNFITTED_CODEBOOK,)  # what tells why codes lie where they do says more

EXAMINERS: tuple[Examiner, ...] = (
    Examiner((Cause.NON_FINITE,), non_finite),
    Examiner((Cause.METRIC_CHANGED,), metric_changed, explains=_ILL_FITTED),
    Examiner((Cause.RUNAWAY_CODEBOOK,), runaway, explains=_ILL_FITTED),
    Examiner((Cause.SHRINKING_CODEBOOK,), shrinking, explains=_ILL_FITTED),
    Examiner((Cause.MISPLACED_CODEBOOK,), misplaced, explains=_ILL_FITTED),
    Examiner((Cause.CODEBOOK_LEFT_BEHIND,), left_behind, explains=_ILL_FITTED),
    Examiner((Cause.ENCODER_COLLAPSE,), collapsed_encoder),
    Examiner((Cause.NO_GRADIENT,), no_gradient),
    Examiner((Cause.EXPLODING_GRADIENTS,), exploding),
    # Idle codes that lie where there are no latents lack no tokens.
    Examiner((Cause.UNFITTED_CODEBOOK,), unfitted, explains=(Cause.STARVATION,)),
    # Whoever forgets what came has too few tokens by that.
    Examiner((Cause.FORGETFUL_AVERAGES,), forgetful, explains=(Cause.STARVATION, *_ILL_FITTED)),
    Examiner((Cause.STARVATION,), starvation),
    Examiner((Cause.REPLACEMENT_FAILS,), replacement, explains=_ILL_FITTED),
    # A level with nothing left to code leaves its codes idle, and what little it gets may have few modes.
    Examiner((Cause.STARVED_LEVEL,), starved_level, explains=(Cause.STARVATION, Cause.FEW_MODES)),
    Examiner((Cause.PADDED_TOKENS,), padded, explains=_ILL_FITTED),
    # Where k-means finds no use for more codes either, tokens are not what idle codes lack.
    Examiner((Cause.FEW_MODES,), few_modes, explains=(Cause.STARVATION,)),
    Examiner((Cause.ARTIFICIAL_RESHAPE,), reshaped),
)
"""In the order in which equally likely causes are told."""


def diagnose(
    facts: Facts,
    examiners: Sequence[Examiner] = EXAMINERS,
    dismiss: Callable[[Examiner, Exception], None] | None = None,
) -> tuple[Diagnosis, ...]:
    """Return the likely causes, likeliest first, at most four; one below a confidence of 0.1 is left out.

    Args:
        facts: of the case.
        examiners: who is asked; those of another stage than the reading's are not.
        dismiss: told of an examiner that raised; without it the exception goes on.
    """
    found: list[Diagnosis] = []
    left: dict[Cause, float] = {}  # of a cause, what others leave of it
    for examiner in list(examiners):
        if examiner.stage != facts.reading.stage:
            continue
        try:
            diagnosis = examiner.examine(facts)
        except Exception as error:
            if dismiss is None:
                raise
            dismiss(examiner, error)
            continue
        if diagnosis is not None:
            found.append(diagnosis)
            for cause in examiner.explains:
                left[cause] = left.get(cause, 1.0) * (1 - diagnosis.confidence)
    weighed = [replace(each, confidence=each.confidence * left.get(each.cause, 1.0)) for each in found]
    likely = [each for each in weighed if each.confidence >= _LEAST]
    return tuple(sorted(likely, key=lambda each: -each.confidence)[:_MOST])

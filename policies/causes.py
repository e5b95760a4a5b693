"""Causes: why a codebook is in trouble, as plain values that a policy may look at and a log can hold.

A `Diagnosis` claims one cause, with its evidence in numbers. It is made elsewhere, from latents and codebooks; here
only names, units and the written form are fixed. Decisions look at the cause and the confidence and at nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .vocabulary import Word

__all__ = ["LEADING", "Cause", "Diagnosis", "diagnoses_from", "leads"]

LEADING = 0.5
"""Confidence from which a cause counts as found."""


class Cause(Word):
    """Why a codebook is in trouble, or seems to be; the message says what it means."""

    RUNAWAY_CODEBOOK = "runaway_codebook", "what updates the codebook makes its codes grow, whatever the latents do"
    SHRINKING_CODEBOOK = "shrinking_codebook", "what updates the codebook makes its codes shrink towards the origin"
    MISPLACED_CODEBOOK = "misplaced_codebook", "the codebook began far from the latents, or at another scale"
    CODEBOOK_LEFT_BEHIND = "codebook_left_behind", "the latents move faster than the codebook follows"
    ENCODER_COLLAPSE = (
        "encoder_collapse",
        "the latents themselves have lost their spread",
    )
    STARVATION = "starvation", "too few tokens for so many codes, and nothing brings the unused ones back"
    FORGETFUL_AVERAGES = "forgetful_averages", "moving averages forget a code before its next token comes"
    METRIC_CHANGED = "metric_changed", "latents and codes are compared otherwise than when the run began"
    UNFITTED_CODEBOOK = (
        "unfitted_codebook",
        "codes lie idle at every reading, and codes fitted anew would serve the latents far better",
    )
    NO_GRADIENT = "no_gradient", "the encoder learns nothing through the quantizer"
    NON_FINITE = "non_finite", "latents or loss are NaN or infinite"
    EXPLODING_GRADIENTS = "exploding_gradients", "the encoder's gradients have grown out of all proportion"
    ARTIFICIAL_RESHAPE = (
        "artificial_reshape",
        "a reshape makes latents that are none: runs of positions, or pieces of a wider feature vector",
    )
    STARVED_LEVEL = "starved_level", "the coarser levels of the residual leave this one next to nothing to code"
    PADDED_TOKENS = "padded_tokens", "most tokens are the same vector, as padding and masked positions are"
    FEW_MODES = "few_modes", "the latents have no more distinct values than codes in use: nothing is wrong"
    REPLACEMENT_FAILS = "replacement_fails", "the quantizer's own replacement of dead codes does not hold"
    EVAL_UPDATE = "eval_update", "evaluation updates the codebook"
    EVAL_START = "eval_start", "evaluation starts the codebook anew"
    EVAL_BATCH_NORM = "eval_batch_norm", "running statistics before the quantizer are not those of the batches"
    EVAL_DROPOUT = "eval_dropout", "dropout before the quantizer spreads the latents in training alone"
    EVAL_SAMPLING = "eval_sampling", "codes are drawn at random in training, and the likeliest one is always the same"
    EVAL_PATH = "eval_path", "something else in the model acts otherwise in evaluation"
    EVAL_AVERAGED_WEIGHTS = "eval_averaged_weights", "what is evaluated are averaged weights, not those that train"
    EVAL_SHIFT = "eval_shift", "the data of evaluation differ from those of training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One likely cause.

    Attributes:
        cause: what it is.
        confidence: in [0, 1]; from `LEADING` on it counts as found.
        says: what was measured, in one plain sentence with its numbers.
        evidence: the numbers, by name; finite.
        advice: what to do about it, in one sentence.
        line: the line of code to change or write, where it is known; else empty.
        remedy: the action of a ladder that fits; empty where none does.
    """

    cause: Cause
    confidence: float
    says: str
    evidence: Mapping[str, float] = field(default_factory=dict, hash=False)
    advice: str = ""
    line: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        """Refuse a confidence that none can be."""
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence of {self.cause.value}: expected a number in [0, 1], got {self.confidence}")

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data, numbers that are not finite left out."""
        return {
            "cause": self.cause.value,
            "confidence": self.confidence,
            "says": self.says,
            "evidence": {name: float(value) for name, value in self.evidence.items() if math.isfinite(value)},
            "advice": self.advice,
            "line": self.line,
            "remedy": self.remedy,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Diagnosis:
        """Rebuild a diagnosis from `as_dict`; what a newer version added is ignored.

        Raises:
            ValueError, KeyError: it names a cause that this version does not know, or none at all.
        """
        texts = {name: str(plain.get(name, "")) for name in ("says", "advice", "line", "remedy")}
        evidence = dict(plain.get("evidence") or {})
        return cls(cause=Cause(plain["cause"]), confidence=float(plain["confidence"]), evidence=evidence, **texts)


def diagnoses_from(records: Any) -> tuple[Diagnosis, ...]:
    """Rebuild what a log or a checkpoint holds; what cannot be read, or only a newer version knows, is left out."""
    found = []
    for record in records if isinstance(records, (list, tuple)) else ():
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            found.append(Diagnosis.from_dict(record))
    return tuple(found)


def leads(causes: Iterable[Diagnosis], names: Iterable[str], confidence: float = LEADING) -> Diagnosis | None:
    """Return the likeliest cause, if it is one of those named and claimed with at least this confidence.

    What is found beside a likelier cause may well follow from it: latents that are pulled after a codebook which runs
    away lose their spread, too.
    """
    likeliest = max(causes, key=lambda each: each.confidence, default=None)
    if likeliest is None or likeliest.cause.value not in set(names) or likeliest.confidence < confidence:
        return None
    return likeliest

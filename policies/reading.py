"""The reading: what a policy may look at, as plain numbers.

A reading is the frozen record of one codebook over one window. It is produced elsewhere (from integer code counts
and a few sampled latents); this module only fixes the names, the units and the ranges that policies, logs and
reports share. Nothing here knows torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .causes import Diagnosis, diagnoses_from

__all__ = ["MAY_BE_MISSING", "NUMERIC_FIELDS", "Reading"]

_NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One codebook, one window of tokens, at one optimizer step.

    Values that could not be measured (no latents sampled yet, no such knob on the quantizer) are `None`.

    Attributes:
        step: optimizer steps completed when the window closed, counted by the guard itself, from 1.
        codebook: name of the codebook, the module path of its quantizer.
        K: number of codes. D: dimension of a code.
        tokens: number of codes counted in the window, at the steps that were recorded; masked positions and dropped
            levels are not tokens.
        perplexity: exp of the entropy (nats) of the pooled code counts, in [1, K]; 0 where there are no tokens.
        ceiling: the perplexity that perfectly uniform codes would show with this many tokens, in [1, K].
        perplexity_ratio: perplexity / ceiling; about 1 for uniform codes.
        usage: share of codes with a count above zero, in [0, 1].
        dead_fraction: share of codes with a count below `dead_below` times the uniform share, in [0, 1].
        top_share: largest share of tokens on one code, in [0, 1].
        rest_ratio: perplexity_ratio of the tokens that are not on the most used code, from 0 to about 1: near 1 where
            that code has what is always the same, such as silence, and the others are in even use. Of n < 128 such
            tokens n/128 of it; 0 where there is none, and in records from before this field.
        stage: "train" or "eval".
        epoch: epochs begun, from 0; `None` in a loop that does not say.
        group: name of the residual whose levels are coded one after another, where the codebook is one of them.
        level: which of them it is, from 0, the coarsest; given together with `group` or not at all.
        norm_ratio: median norm of all K codes / median norm of the latents.
        used_norm_ratio: the same over used codes only.
        latent_rank: effective rank of the latents, in [1, D]: exp of the entropy of the normalised covariance
            spectrum. codebook_rank: the same of the codebook.
        latent_variance: E|z - mean z|^2.
        relative_error: E|z - q|^2 / E|z - mean z|^2 of the sampled latents under the codebook as it is now.
        quantization_error: E|z - q|^2 itself, 0 or more. Of data that have become easier it falls, while the relative
            one may rise; of latents that have become larger it rises, while the relative one may fall.
        finite_fraction: share of latents without NaN or Inf, in [0, 1].
        commitment_weight: coefficient of the loss term that pulls the encoder towards the codes.
        decay: decay of the codebook's moving average, in [0, 1].
        loss: the value that the user named for verification.
        eval_to_train: in evaluation, perplexity_ratio / that of the latest reading in training, 0 or more; `None` in
            training, in evaluation before any reading there, and of a finer level of a residual to which coarser codes
            left next to nothing in training: less than a thousandth of the variance, and each less than a tenth.
        spread_ratio: sqrt(E|e - mean e|^2 over all codes / latent_variance), 0 or more: about 1 when codes lie where
            the latents are, far below where they all crowd in one place.
        commitment_share: commitment_weight x E|z - q|^2 / D / loss, 0 or more: how much of the loss is that pull, where
            the loss is the whole of it and nothing else scales the quantizer's own. `None` unless the loss is above 0,
            and where codes are farther off than the latents' mean: then not the pull is too strong.
        rewrites: how often the guard has written this codebook so far, or the level of its residual that it wrote most.
        frozen: 1 while the guard keeps the quantizer's own updates out of the codebook and lets it stand but for
            refits, as a fallback does, else 0; `None` in evaluation.
        unmoved: 1 if no code has moved since the reading before, else 0; `None` in evaluation and at the first reading.
        reshaped: 1 if the autograd graph shows that positions were taken for features, by a reshape where a permutation
            was due, so that each latent is a run of positions; 0 if it shows that features are channels, those of a
            wider vector's pieces included; `None` in evaluation, and where it cannot be told.
        moment_ratio: how much larger gradients an Adam remembers than it is shown now, from what moves the encoder, 0
            or more: about 1 for noise as ever, less for gradients that point one way, far above 1 after a collapse, and
            above 1 where they shrink as a run converges. `None` in evaluation, without an Adam, and but for the 300
            steps after an intervention, upkeep and a restart that worked aside: later it is the run's own doing.
        replacement_share: below which share of what even use gives it in a forward the quantizer replaces a code by
            itself: its threshold x K / tokens of an update, 0 or more, and 0 while the guard keeps its replacement out.
            `None` in evaluation, and where it replaces none. At 1 it replaces about two fifths of all codes a step.
        sampling_ratio: E|z - e|^2 of the last latents with the codes that they were given, over the same with their
            nearest codes, about 1 or more: how much farther off codes are that training draws at random. `None` in
            evaluation, and of a quantizer that draws none.
        task_gradient: how much of the task's gradient arrives at the quantizer's input, in [0, 1], felt at one step:
            the length of what is not the pull of a commitment towards the codes, as a share of the same at the output,
            or of all that arrives at the input where that is less. Near 0 where the encoder learns nothing of its task,
            since the codes hand no gradient on. `None` in evaluation, of a level of a residual, where no gradient comes
            back, and at readings within 10 steps of one that has it, unless a rule is at work.
        causes: why, likeliest first; only known where a rule was about to alert or to act.
    """

    step: int
    codebook: str
    K: int
    D: int
    tokens: int
    perplexity: float
    ceiling: float
    perplexity_ratio: float
    usage: float
    dead_fraction: float
    top_share: float
    rest_ratio: float = 0.0
    stage: str = "train"
    epoch: int | None = None
    group: str | None = None
    level: int | None = None
    norm_ratio: float | None = None
    used_norm_ratio: float | None = None
    latent_rank: float | None = None
    codebook_rank: float | None = None
    latent_variance: float | None = None
    relative_error: float | None = None
    quantization_error: float | None = None
    finite_fraction: float | None = None
    commitment_weight: float | None = None
    decay: float | None = None
    loss: float | None = None
    eval_to_train: float | None = None
    spread_ratio: float | None = None
    commitment_share: float | None = None
    rewrites: int | None = None
    frozen: int | None = None
    unmoved: int | None = None
    reshaped: int | None = None
    moment_ratio: float | None = None
    replacement_share: float | None = None
    sampling_ratio: float | None = None
    task_gradient: float | None = None
    causes: tuple[Diagnosis, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as plain data in field order: strings, numbers, `None`, and `causes` if there are any."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return plain | {"causes": [each.as_dict() for each in self.causes]} if self.causes else plain

    def as_record(self) -> dict[str, Any]:
        """Return the reading as JSON can hold it: what is NaN or infinite is `None`, and written in `not_finite`."""
        plain = self.as_dict()
        odd = {
            name: str(float(value))
            for name, value in plain.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        return plain | dict.fromkeys(odd) | {"not_finite": odd} if odd else plain

    def excerpt(self, *names: str) -> dict[str, Any]:
        """Return a few of the fields by name, as plain data."""
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Reading:
        """Rebuild a reading from `as_dict` or `as_record`; unknown keys (from a newer version) are ignored."""
        known = {field.name for field in fields(cls)}
        odd = record.get("not_finite")
        named = odd.items() if isinstance(odd, Mapping) else ()
        restored: dict[str, Any] = {
            name: float(text) for name, text in named if text in _NOT_FINITE and name in NUMERIC_FIELDS
        }
        restored["causes"] = diagnoses_from(record.get("causes"))
        error, variance = record.get("relative_error"), record.get("latent_variance")
        if "quantization_error" not in record and error is not None and variance is not None:  # of an older version
            restored["quantization_error"] = error * variance
        return cls(**{key: value for key, value in {**record, **restored}.items() if key in known})


_PLAIN_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Reading) if field.name != "causes")

NUMERIC_FIELDS: tuple[str, ...] = tuple(
    field.name for field in fields(Reading) if field.name not in {"codebook", "stage", "group", "level", "causes"}
)
"""Names that a condition may use on its left side."""

MAY_BE_MISSING: frozenset[str] = frozenset(field.name for field in fields(Reading) if field.default is None)
"""Of these, those that may be `None`."""

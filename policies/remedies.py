"""Actions beyond the codebook's own rows: decay, losses, gradients, learning rates, the encoder, the whole model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from .action import Action
from .duration import Duration, PositiveSteps, StepsOrNever
from .errors import MismatchError, quote

__all__ = [
    "REMEDIES",
    "BridgeGradient",
    "ClipGradients",
    "DisableNormalisation",
    "FastEma",
    "FreezeEncoder",
    "LowerLr",
    "RaiseCodebookLr",
    "RestartOptimizer",
    "RestoreLayout",
    "Rollback",
    "ScaleLossWeight",
    "SlowEma",
    "Substitute",
    "TakeOverUpdates",
]

_Path = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s.]+(\.[^\s.]+)*$")]


class SlowEma(Action):
    """Let the codebook follow more slowly: raise the decay of its moving averages to a target.

    Attributes:
        target: decay to reach, in (0, 1); one that is there or above refuses.
    """

    action: ClassVar[str] = "slow_ema"

    target: Annotated[float, Field(gt=0, lt=1)] = 0.99


class FastEma(Action):
    """Let the codebook follow faster: lower the decay of its moving averages to a target.

    Attributes:
        target: decay to reach, in (0, 1); one that is there or below refuses.
    """

    action: ClassVar[str] = "fast_ema"

    target: Annotated[float, Field(gt=0, lt=1)] = 0.9


class ScaleLossWeight(Action):
    """Multiply a weight of your own loss, within bounds, and put it back once the codebook has been healthy.

    Attributes:
        weight: path of the number from the model: attributes, keys of mappings and indices of lists, with dots:
            `loss.perceptual_weight`, `hparams.beta`.
        factor: what it is multiplied by, above 0 and not 1.
        floor: it is never taken below this, 0 or more.
        ceiling: it is never taken above this; `null`: no bound.
        restore_after: healthy steps in a row after which it is put back; `null`: it stays.
    """

    action: ClassVar[str] = "scale_loss_weight"

    weight: _Path
    factor: Annotated[float, Field(gt=0)] = 0.5
    floor: Annotated[float, Field(ge=0)] = 0.0
    ceiling: Annotated[float | None, Field(gt=0)] = None
    restore_after: StepsOrNever = Duration(500, "steps")

    @model_validator(mode="after")
    def _changes_something(self) -> ScaleLossWeight:
        if self.factor == 1:
            raise MismatchError("a factor other than 1", "1", "It would change nothing.", place=("factor",))
        if self.ceiling is not None and self.ceiling < self.floor:
            raise MismatchError(f"a ceiling of at least the floor, {self.floor:g}", quote(self.ceiling))
        return self


class DisableNormalisation(Action):
    """Let the quantizer search and decode with latents as long as they are, where a setting of it allows that."""

    action: ClassVar[str] = "disable_normalisation"


class RestoreLayout(Action):
    """Let the quantizer be given its latents position by position, where a reshape has made features of positions.

    Attributes:
        source: where the codes are placed once enough such latents were seen: where latents drawn at random lie
            (`reservoir`), for the most even use; at `kmeans` centroids, for the least error; or at latents drawn by
            `distortion`.
        refill: moving-average count given to a placed code, as a fraction of the mean count, in (0, 1].
    """

    action: ClassVar[str] = "restore_layout"

    source: Literal["reservoir", "kmeans", "distortion"] = "reservoir"
    refill: Annotated[float, Field(gt=0, le=1)] = 0.5


class BridgeGradient(Action):
    """Hand the gradient of what is decoded on to the encoder, as a straight-through estimator does; values stay."""

    action: ClassVar[str] = "bridge_gradient"


class ClipGradients(Action):
    """Bound the norm of all gradients of each optimizer, step by step.

    Attributes:
        max_norm: the largest norm that a step may see, above 0. A step whose norm is not finite sees zeros.
        for_: how long (YAML `for`), 1 step or more; `null`: from now on.
    """

    action: ClassVar[str] = "clip_gradients"

    max_norm: Annotated[float, Field(gt=0)] = 1.0
    for_: Annotated[StepsOrNever, Field(alias="for")] = None


class FreezeEncoder(Action):
    """Keep the optimizers from moving what feeds the quantizer, for a while.

    Attributes:
        module: path of the encoder in the model; `null`: every parameter that the quantizer's input depends on.
        for_: how long (YAML `for`), 1 step or more.
    """

    action: ClassVar[str] = "freeze_encoder"

    module: _Path | None = None
    for_: Annotated[PositiveSteps, Field(alias="for")] = Duration(1000, "steps")


class LowerLr(Action):
    """Scale learning rates down, whatever the scheduler says; the scheduler goes on by its own plan.

    Attributes:
        factor: what each step's learning rate is multiplied by, in (0, 1).
        of: whose: of `all` parameters of the optimizers, or of the `encoder`, what feeds the quantizer.
        for_: how long (YAML `for`), 1 step or more; `null`: from now on.
    """

    action: ClassVar[str] = "lower_lr"

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    of: Literal["all", "encoder"] = "all"
    for_: Annotated[StepsOrNever, Field(alias="for")] = None


class RaiseCodebookLr(Action):
    """Scale the learning rate of the codebook alone up, where an optimizer moves it.

    Attributes:
        factor: what each step's learning rate is multiplied by, above 1.
        for_: how long (YAML `for`), 1 step or more; `null`: from now on.
    """

    action: ClassVar[str] = "raise_codebook_lr"

    factor: Annotated[float, Field(gt=1)] = 10.0
    for_: Annotated[StepsOrNever, Field(alias="for")] = None


class RestartOptimizer(Action):
    """Let the optimizers that move the encoder forget both moments and begin their step count anew; weights stay."""

    action: ClassVar[str] = "restart_optimizer"
    is_gradual: ClassVar[bool] = True


class TakeOverUpdates(Action):
    """Keep the quantizer's own updates out and move the codebook by a correct moving average instead.

    Attributes:
        decay: of the moving average, in (0, 1).
        start: from `kmeans` centroids of recent latents, for the least error; from such latents themselves, drawn at
            random (`reservoir`), for the most even use; or from the codes as they stand (`keep`).
    """

    action: ClassVar[str] = "take_over_updates"

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    start: Literal["kmeans", "reservoir", "keep"] = "kmeans"


class Substitute(Action):
    """Let another quantizer stand in: finite scalar quantization between two learned projections.

    Attributes:
        quantizer: `fsq`, of vector-quantize-pytorch.
        levels: of each of its dimensions, 2 or more; their product must be the number of codes. `null`: chosen so.
    """

    action: ClassVar[str] = "substitute"

    quantizer: Literal["fsq"] = "fsq"
    levels: Annotated[tuple[Annotated[int, Field(ge=2)], ...] | None, Strict(False), Field(min_length=1)] = None


class Rollback(Action):
    """Put model and optimizers back to how they were when every codebook was last healthy.

    Attributes:
        every: the least time between two snapshots, 1 step or more; one is kept, and taken at healthy readings only.
        keep_on: where it is kept: `cpu`, the `device` of each tensor, or `auto`: there as long as it takes a tenth of
            the device's free memory or less.
    """

    action: ClassVar[str] = "rollback"

    every: PositiveSteps = Duration(500, "steps")
    keep_on: Literal["auto", "cpu", "device"] = "auto"


REMEDIES: tuple[type[Action], ...] = (
    SlowEma,
    FastEma,
    ScaleLossWeight,
    DisableNormalisation,
    RestoreLayout,
    BridgeGradient,
    ClipGradients,
    FreezeEncoder,
    LowerLr,
    RaiseCodebookLr,
    RestartOptimizer,
    TakeOverUpdates,
    Substitute,
    Rollback,
)
"""All of this module, in the order in which actions are listed."""

"""What a ladder may name: actions and their parameters, as plain values.

An action here is a name and a validated set of numbers. What it does to a quantizer is written elsewhere, under the
same name; a policy can name actions, never code.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .action import Action
from .announced import announced_actions
from .duration import Duration, PositiveSteps
from .errors import suggest
from .remedies import REMEDIES

__all__ = [
    "Action",
    "Alert",
    "CoolSampling",
    "DecayCommitment",
    "EaseReplacement",
    "EvalFix",
    "FallbackTokenizer",
    "RaiseCommitment",
    "ResetCodes",
    "SaveCheckpoint",
    "StopTraining",
    "Upkeep",
    "action_named",
    "actions",
    "register_action",
]


class ResetCodes(Action):
    """Put codes back where the latents are.

    Attributes:
        scope: `dead` codes only, or `all` of them.
        source: where new vectors come from: `kmeans` centroids of sampled latents, the latents in the `reservoir` drawn
            at random, or drawn by `distortion`: the worse one is served by its code, the sooner.
        refill: moving-average count given to a revived code, as a fraction of the mean count, in (0, 1].
    """

    action: ClassVar[str] = "reset_codes"

    scope: Literal["dead", "all"] = "dead"
    source: Literal["kmeans", "reservoir", "distortion"] = "kmeans"
    refill: Annotated[float, Field(gt=0, le=1)] = 0.5


class DecayCommitment(Action):
    """Multiply the commitment weight by a factor, so that the encoder is pulled less towards few codes.

    Attributes:
        factor: what the weight is multiplied by, in (0, 1).
        floor: the weight is never taken below this, above 0.
    """

    action: ClassVar[str] = "decay_commitment"

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.25
    floor: Annotated[float, Field(gt=0)] = 0.01


class RaiseCommitment(Action):
    """Pull the encoder towards its codes where nothing does, or not enough, so that latents do not outgrow codes.

    Attributes:
        to: the weight that is set, above 0; a weight that is there or above refuses.
    """

    action: ClassVar[str] = "raise_commitment"

    to: Annotated[float, Field(gt=0)] = 0.25


class CoolSampling(Action):
    """Let training draw codes nearer to the latents: multiply the temperature at which it draws them.

    Attributes:
        factor: what the temperature is multiplied by, in (0, 1).
    """

    action: ClassVar[str] = "cool_sampling"

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class EaseReplacement(Action):
    """Let the quantizer replace fewer codes by itself: only such as are hardly used, not all below their even use.

    Attributes:
        to: below which share of what even use gives it a code is still replaced, in (0, 1); where it is so, or less,
            already, that refuses.
    """

    action: ClassVar[str] = "ease_replacement"

    to: Annotated[float, Field(gt=0, lt=1)] = 0.1


class FallbackTokenizer(Action):
    """Take the update away from the quantizer: a k-means codebook stands in for its own.

    Attributes:
        backend: the library that fits it, `faiss` or `sklearn`.
        refit_every: the first wait before it follows the moving latents, 1 step or more.
        refit_growth: each later wait is so many times the one before, 1 or more: an encoder settles.
        refit_iterations: k-means iterations of one refit, 1 to 1000.
    """

    action: ClassVar[str] = "fallback_tokenizer"

    backend: Literal["faiss", "sklearn"] = "faiss"
    refit_every: PositiveSteps = Duration(50, "steps")
    refit_growth: Annotated[float, Field(ge=1)] = 1.5
    refit_iterations: Annotated[int, Field(ge=1, le=1000)] = 5


class Upkeep(Action):
    """Move codes that are hardly used to where they are needed, again and again, until the rule is clear.

    Attributes:
        every: the least time between two moves, 1 step or more; codes are moved right after a reading.
        below: a code used less than this fraction of the uniform share since the last move is moved, in (0, 1]; the
            most used code, which may be all padding, and its tokens do not count for that share.
        most: at most this share of all codes is moved at once, in (0, 1].
        source: where they move to: latents drawn by `distortion`, in proportion to their error, for the least error; or
            from the `reservoir` at random, for the most even use.
        refill: moving-average count given to a moved code, as a fraction of the mean count, in (0, 1].
        until: share of the planned training after which nothing is moved any more, in (0, 1]; 1 where no plan is known.
    """

    action: ClassVar[str] = "upkeep"
    is_gradual: ClassVar[bool] = True

    every: PositiveSteps = Duration(25, "steps")
    below: Annotated[float, Field(gt=0, le=1)] = 0.1
    most: Annotated[float, Field(gt=0, le=1)] = 0.1
    source: Literal["distortion", "reservoir"] = "distortion"
    refill: Annotated[float, Field(gt=0, le=1)] = 0.5
    until: Annotated[float, Field(gt=0, le=1)] = 0.9


class EvalFix(Action):
    """Make evaluation assign codes as training does.

    Attributes:
        method: what is done. `assignment`: in evaluation the quantizer assigns as in training, and nothing that it
            writes meanwhile lasts; `statistics`: the running statistics of batch normalisation before it are recomputed
            before each evaluation; `dropout`: dropout before it is switched off in training; `auto`: what removes the
            cause that was found, and nothing where it is another one.
    """

    action: ClassVar[str] = "eval_fix"

    method: Literal["auto", "assignment", "statistics", "dropout"] = "auto"


class Alert(Action):
    """Touch nothing: a rung that only tells."""

    action: ClassVar[str] = "alert"


class SaveCheckpoint(Action):
    """Ask the training loop for a checkpoint; the codebook is touched no more than by `alert`."""

    action: ClassVar[str] = "save_checkpoint"


class StopTraining(Action):
    """Ask the training loop to stop; a run that goes on all the same is judged like any other."""

    action: ClassVar[str] = "stop_training"


_BUILT_IN: tuple[type[Action], ...] = (
    ResetCodes,
    DecayCommitment,
    RaiseCommitment,
    EaseReplacement,
    CoolSampling,
    FallbackTokenizer,
    Upkeep,
    *REMEDIES,
    EvalFix,
    Alert,
    SaveCheckpoint,
    StopTraining,
)
_ACTIONS: dict[str, type[Action]] = {model.action: model for model in _BUILT_IN}

_logger = logging.getLogger("collapse_guard")

_RUNG_OPTIONS = {"action", "params", "repeat", "within", "budget"}


def actions() -> Mapping[str, type[Action]]:
    """Return the known actions by name, those that other packages announce included: it cannot be written to."""
    _register_announced()
    return MappingProxyType(_ACTIONS)


@cache
def _register_announced() -> None:
    """Register what other packages announce, once; a name that is taken is told and left out."""
    for name, (model, _) in announced_actions().items():
        try:
            register_action(name, model)
        except ValueError as error:
            _logger.warning("action %s was left out: %s", name, error)


def register_action(name: str, model: type[Action]) -> None:
    """Let policies name one more action.

    Args:
        name: the name in a ladder, in snake_case; it must equal `model.action`.
        model: its parameters. Registering the same model again changes nothing.

    Raises:
        ValueError: if the name belongs to another model, to an option of a rung, or is not the model's own.
    """
    declared = getattr(model, "action", None)
    if name != declared:
        expected = f"expected {model.__name__} to declare `action: ClassVar[str] = {name!r}`"
        raise ValueError(f"{expected}, got {declared!r}. An action carries its own name, for the log.")
    if not name.isidentifier() or name in _RUNG_OPTIONS:
        reserved = ", ".join(sorted(_RUNG_OPTIONS))
        raise ValueError(f"expected an action name in snake_case other than {reserved}, got {name!r}. Choose another.")
    if _ACTIONS.setdefault(name, model) is not model:
        taken = _ACTIONS[name]
        raise ValueError(f"expected a new action name, got {name!r}, which is {taken.__module__}.{taken.__qualname__}.")


def action_named(name: str) -> type[Action]:
    """Return the parameters' model of an action.

    Raises:
        LookupError: for an unknown name; the message lists the known ones.
    """
    try:
        return actions()[name]
    except KeyError:
        raise LookupError(f"unknown action {name!r}. {suggest(name, _ACTIONS)}") from None

"""Which intervention performs which action; those that only tell or ask are defined here."""

from __future__ import annotations

from typing import Any

from collapse_guard.policies import Alert, SaveCheckpoint, StopTraining, announced_actions

from .base import Intervention
from .bridge_gradient import BridgeGradientIntervention
from .clip_gradients import ClipGradientsIntervention
from .cool_sampling import CoolSamplingIntervention
from .decay_commitment import DecayCommitmentIntervention
from .disable_normalisation import DisableNormalisationIntervention
from .ease_replacement import EaseReplacementIntervention
from .ema_decay import FastEmaIntervention, SlowEmaIntervention
from .eval_fix import EvalFixIntervention
from .fallback_tokenizer import FallbackTokenizerIntervention
from .freeze_encoder import FreezeEncoderIntervention
from .learning_rate import LowerLrIntervention, RaiseCodebookLrIntervention
from .loss_weight import ScaleLossWeightIntervention
from .raise_commitment import RaiseCommitmentIntervention
from .reset_codes import ResetCodesIntervention
from .restart_optimizer import RestartOptimizerIntervention
from .restore_layout import RestoreLayoutIntervention
from .rollback import RollbackIntervention
from .substitute import SubstituteIntervention
from .take_over_updates import TakeOverUpdatesIntervention
from .upkeep import UpkeepIntervention

__all__ = ["INTERVENTIONS", "find_intervention"]


class AlertIntervention(Intervention[Alert]):
    """A rung that only tells: the ladder waits there for a human, and its verification sees whether one came."""

    reaches_graphs = True

    def apply(self) -> str:
        """Do nothing to the model."""
        return "nothing was touched; a human is asked to look"


class RequestIntervention(Intervention[SaveCheckpoint | StopTraining]):
    """A rung that only asks: the loop carries it out after this step, or says why it could not."""

    reaches_graphs = True

    def apply(self) -> str:
        """Ask the training loop; nothing is done to the model."""
        self.site.ask(self.params.action)
        return "nothing was touched; the training loop is asked for it"


INTERVENTIONS: dict[str, type[Intervention[Any]]] = {
    "alert": AlertIntervention,
    "bridge_gradient": BridgeGradientIntervention,
    "clip_gradients": ClipGradientsIntervention,
    "cool_sampling": CoolSamplingIntervention,
    "decay_commitment": DecayCommitmentIntervention,
    "disable_normalisation": DisableNormalisationIntervention,
    "ease_replacement": EaseReplacementIntervention,
    "eval_fix": EvalFixIntervention,
    "fallback_tokenizer": FallbackTokenizerIntervention,
    "fast_ema": FastEmaIntervention,
    "freeze_encoder": FreezeEncoderIntervention,
    "lower_lr": LowerLrIntervention,
    "raise_codebook_lr": RaiseCodebookLrIntervention,
    "raise_commitment": RaiseCommitmentIntervention,
    "reset_codes": ResetCodesIntervention,
    "restart_optimizer": RestartOptimizerIntervention,
    "restore_layout": RestoreLayoutIntervention,
    "rollback": RollbackIntervention,
    "save_checkpoint": RequestIntervention,
    "scale_loss_weight": ScaleLossWeightIntervention,
    "slow_ema": SlowEmaIntervention,
    "stop_training": RequestIntervention,
    "substitute": SubstituteIntervention,
    "take_over_updates": TakeOverUpdatesIntervention,
    "upkeep": UpkeepIntervention,
}


def find_intervention(action: str) -> type[Intervention[Any]]:
    """Return the intervention that performs an action, also one that another package announces.

    Raises:
        KeyError: no intervention is known under this name; the message lists the known ones.
        TypeError: what a package announces as one is none.
    """
    if action in INTERVENTIONS:
        return INTERVENTIONS[action]
    announced = announced_actions()
    if action not in announced:
        known = ", ".join(sorted([*INTERVENTIONS, *announced]))
        raise KeyError(f"no intervention performs {action!r}; known: {known}")
    found = announced[action][1]
    if not isinstance(found, type) or not issubclass(found, Intervention):
        raise TypeError(f"expected the action {action!r} of another package to bring an Intervention, got {found!r}")
    return found

"""Which intervention performs which action; those that only tell or ask are defined here."""

from __future__ import annotations

from typing import Any

from collapse_guard.policies import Alert, SaveCheckpoint, StopTraining

from .base import Intervention
from .decay_commitment import DecayCommitmentIntervention
from .eval_fix import EvalFixIntervention
from .fallback_tokenizer import FallbackTokenizerIntervention
from .reset_codes import ResetCodesIntervention
from .upkeep import UpkeepIntervention

__all__ = ["INTERVENTIONS", "find_intervention"]


class AlertIntervention(Intervention[Alert]):
    """A rung that only tells: the ladder waits there for a human, and its verification sees whether one came."""

    def apply(self) -> str:
        """Do nothing to the model."""
        return "nothing was touched; a human is asked to look"


class RequestIntervention(Intervention[SaveCheckpoint | StopTraining]):
    """A rung that only asks: the loop carries it out after this step, or says why it could not."""

    def apply(self) -> str:
        """Ask the training loop; nothing is done to the model."""
        self.site.ask(self.params.action)
        return "nothing was touched; the training loop is asked for it"


INTERVENTIONS: dict[str, type[Intervention[Any]]] = {
    "alert": AlertIntervention,
    "decay_commitment": DecayCommitmentIntervention,
    "eval_fix": EvalFixIntervention,
    "fallback_tokenizer": FallbackTokenizerIntervention,
    "reset_codes": ResetCodesIntervention,
    "save_checkpoint": RequestIntervention,
    "stop_training": RequestIntervention,
    "upkeep": UpkeepIntervention,
}


def find_intervention(action: str) -> type[Intervention[Any]]:
    """Return the intervention that performs an action.

    Raises:
        KeyError: no intervention is known under this name; the message lists the known ones.
    """
    if action not in INTERVENTIONS:
        raise KeyError(f"no intervention performs {action!r}; known: {', '.join(sorted(INTERVENTIONS))}")
    return INTERVENTIONS[action]

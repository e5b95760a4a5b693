"""`eval_fix`: evaluation assigns codes as training does, by what removes the difference that was found.

The quantizer may assign as in training for the length of each forward in evaluation, after which everything that it
wrote is put back; running statistics of batch normalisation may be recomputed from kept inputs before each evaluation;
dropout before the quantizer may be switched off in training. Nothing is done about data that differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from collapse_guard.adapters.recognition import CannotTryError
from collapse_guard.adapters.refs import Knob
from collapse_guard.evaluation import Evaluations
from collapse_guard.evaluation.state import tensors_of
from collapse_guard.policies import Cause, EvalFix

from .base import Intervention, Site
from .evaluation_holds import AssignmentHold, StatisticsHold
from .holds import Hold
from .parts import HoldPart, InterventionError, KnobPart, Part, TensorsPart

__all__ = ["EvalFixIntervention"]

_METHODS = {
    Cause.EVAL_UPDATE: "assignment",
    Cause.EVAL_START: "assignment",
    Cause.EVAL_SAMPLING: "assignment",
    Cause.EVAL_PATH: "assignment",
    Cause.EVAL_AVERAGED_WEIGHTS: "assignment",
    Cause.EVAL_BATCH_NORM: "statistics",
    Cause.EVAL_DROPOUT: "dropout",
}
_AS_TRAINING = (Cause.EVAL_START, Cause.EVAL_SAMPLING, Cause.EVAL_PATH)
"""Causes for which the quantizer runs in training mode; for the others it is enough to put back what it wrote."""
_SURE = 0.5


class EvalFixIntervention(Intervention[EvalFix]):
    """Right when training is healthy and evaluation is not. Ends with the guard: it is no part of a checkpoint."""

    touches = frozenset({"evaluation"})
    stays = True

    def __init__(self, params: EvalFix, site: Site) -> None:
        """Look where the quantizer is, and what is before it."""
        super().__init__(params, site)
        self._method = params.method
        self._trains = params.method == "assignment"
        self._quantizer: nn.Module | None = None
        self._holds: dict[str, Hold] = {}
        if site.evaluations is not None and site.model is not None:
            evaluations, name = site.evaluations, site.view.name
            self._quantizer = site.model.get_submodule(evaluations.quantizer_of(name))
            seed = site.seed
            self._holds["assignment"] = AssignmentHold(self._quantizer, name, evaluations, lambda: self._trains, seed)
            self._holds["statistics"] = StatisticsHold(site.model, name, evaluations)

    def refusal(self) -> str | None:
        """Refuse where no evaluation was compared with training, or where another cause was found."""
        evaluations = self.site.evaluations
        if (reason := super().refusal()) is not None:
            return reason
        if evaluations is None or self._quantizer is None:
            return "no evaluation is known to this guard: run it within guard.evaluate()"
        method, why = self._chosen(evaluations)
        if not method:
            return why
        if method == "assignment" and "forward" not in self.site.view.readers:
            called = ", ".join(self.site.view.readers)
            return f"its codes are assigned in {called}(), which is called past every hook on its forward"
        if method == "statistics" and not self._normalising():
            return "no batch normalisation with running statistics runs before the quantizer"
        if method == "dropout" and not self._dropouts():
            return "no dropout that is on runs before the quantizer"
        return None

    def _chosen(self, evaluations: Evaluations) -> tuple[str, str]:
        """Return what is to be done, or why nothing is."""
        causes = evaluations.causes(self.site.view.name)
        if self.params.method != "auto":
            return self.params.method, ""
        if not causes or causes[0].confidence < _SURE:
            return "", "no cause was found that it could remove: as far as seen, both modes assign alike"
        cause = causes[0].cause
        self._trains = cause in _AS_TRAINING
        fits = _METHODS.get(cause, "") if causes[0].remedy else ""
        advice = f"{causes[0].advice[:1].upper()}{causes[0].advice[1:]}"
        return fits, f"it removes no {cause.value}: {causes[0].says}. {advice}"

    def _normalising(self) -> Sequence[str]:
        return self._found("batch_norm")

    def _dropouts(self) -> Sequence[str]:
        return self._found("dropout")

    def _found(self, group: str) -> Sequence[str]:
        comparison = self.site.evaluations.comparison(self.site.view.name) if self.site.evaluations else None
        return comparison.modules.get(group, ()) if comparison is not None else ()

    def parts(self) -> list[Part]:
        """Return what any method may change; of what one of them does not, nothing is said."""
        model, quantizer = self.site.model, self._quantizer
        if model is None or quantizer is None:
            return []
        return [
            # What an evaluation wrote into the codebook of a run that goes on is not put there again.
            TensorsPart("quantizer", lambda: dict(tensors_of(quantizer)), is_undone=False),
            TensorsPart("running_statistics", lambda: _statistics_of(model)),
            *(_DropoutPart(f"{path}.p", Knob(module, "p")) for path, module in _dropouts_of(model)),
            *map(HoldPart, self.holds()),
        ]

    def holds(self) -> Sequence[Hold]:
        """Return the hooks of both methods that keep some."""
        return tuple(self._holds.values())

    def apply(self) -> str:
        """Do what was chosen."""
        evaluations, name = self.site.evaluations, self.site.view.name
        assert evaluations is not None
        self._method, _ = self._chosen(evaluations)
        if self._method == "statistics":
            return self._recompute(evaluations, name)
        if self._method == "dropout":
            return self._switch_off()
        self._holds["assignment"].install()
        done = "in evaluation its quantizer runs in training mode" if self._trains else "its quantizer evaluates"
        state = evaluations.as_trained(name)
        back = ""
        if state is not None and any(float(moved) > 0 for moved in state.changed().values()):
            state.restore()
            back = "; what the last evaluation wrote was put back"
        return f"{done} with the codebook that training left, and what it writes does not last{back}"

    def _recompute(self, evaluations: Evaluations, name: str) -> str:
        hold = self._holds["statistics"]
        assert isinstance(hold, StatisticsHold)
        try:
            layers = hold.recompute()
        except CannotTryError as error:
            raise InterventionError(f"running statistics could not be recomputed: {error}") from error
        hold.install()
        which = ", ".join(layers)
        return f"running statistics of {which} recomputed from inputs of training; before each evaluation anew"

    def _switch_off(self) -> str:
        model = self.site.model
        assert model is not None
        told = []
        for path in self._dropouts():
            knob = Knob(model.get_submodule(path), "p")
            told.append(f"{path} {knob.get():g} -> 0")
            knob.set(0.0)
        return f"dropout before the quantizer switched off in training, too: {', '.join(told)}"

    def in_words(self) -> str:
        """Say what an evaluation after the end of the guard will show."""
        if self._method == "dropout":
            return "dropout before the quantizer is off"
        return "evaluation was made to assign as training does, by hooks that end with the guard: repair the model"

    def state_dict(self) -> dict[str, Any]:
        """Return which method is in force."""
        return {"method": self._method, "trains": self._trains}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take hold again."""
        self._method, self._trains = str(state["method"]), bool(state["trains"])
        if self._method in self._holds:
            self._holds[self._method].install()


class _DropoutPart(KnobPart):
    """The probability of a dropout, which nobody sets on resume unless it was changed."""

    def standing(self) -> Any:
        """Return the probability in force, if it is not the owner's own."""
        return self._knob.get() if self.changes() else None


def _statistics_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _dropouts_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, each) for path, each in model.named_modules() if isinstance(each, nn.modules.dropout._DropoutNd)]
